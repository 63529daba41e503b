import jax
import numpy as np
import pytest

from proxies_lib import data
from proxies_lib.config import replace
from proxies_lib.layout import FLOPS_OF_CALL, MAX_POINTS, Layout, layout_alone
from proxies_lib.runs import datasets
from proxies_lib.science import protocol
from proxies_lib.train import Trainer

SYNTHETIC = datasets.open_dataset("synthetic", 64)


@pytest.fixture(scope="module")
def trainer():
    return Trainer(*protocol.scales()["smoke"].base.program)


def same(a: dict, b: dict):
    """Equal results, bit for bit, time aside."""
    assert a["curves"].keys() == b["curves"].keys()
    for name in a["curves"]:
        np.testing.assert_array_equal(a["curves"][name], b["curves"][name], err_msg=name)
    for name in ("final_loss", "init_loss", "diverged", "diverged_step"):
        np.testing.assert_equal(a[name], b[name])


def test_training_learns_the_structure_and_stays_above_the_entropy_floor():
    run = replace(
        protocol.scales()["smoke"].base,
        d_model=16,
        n_layers=1,
        steps=600,
        warmup_steps=30,
        lr=0.03,
        batch_size=16,
    )
    result = Trainer(*run.program).train([run], SYNTHETIC)[0]
    p = data.zipf(64)
    unigram, floor = -np.sum(p * np.log(p)), data.synthetic_entropy(64, run.model.seq_len)
    # More than token frequencies: attention found the copies.
    assert floor < result["final_loss"] < unigram - 0.1
    assert result["init_loss"] > np.log(64)


def test_same_configuration_same_bits_another_seed_other_bits(trainer, smoke):
    first, again, other = (trainer.train([replace(smoke, seed=s)], SYNTHETIC)[0] for s in (0, 0, 1))
    same(first, again)
    assert first["final_loss"] != other["final_loss"] and first["init_loss"] != other["init_loss"]


def test_hyperparameters_are_inputs_one_program_serves_them_all(trainer, smoke):
    """No compilation happens when anything that is not a shape changes."""
    compiled = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    changes = [
        {"lr": 0.3},
        {"decay": "coupled", "weight_decay": 0.1},
        {"z_loss": 0.0},
        {"eps": 1e-6},
        {"b2": 0.99},
        {"warmup_steps": 10},
        {"seed": 3},
        {"steps": 20},
        {"clip_norm": 0.1},
        {"min_lr": 1e-3},
        {"linear_lr": 0.5},
        {"head_init": 0.5},
        {"query_init": 0.0},
        {"attention_power": 1.0},
        {"lr_scaling": "rms"},
        {"embedding_gradient": 0.01},
    ]
    runs = [replace(smoke, **change) for change in changes]
    losses = {trainer.train([run], SYNTHETIC)[0]["final_loss"] for run in runs}
    assert len(losses) == len(changes) and not compiled
    Trainer(*replace(smoke, d_model=16).program)
    assert len(compiled) == 3  # init, chunk, evaluate: the listener does see compilations


def test_divergence_is_data(trainer, smoke):
    result = trainer.train([replace(smoke, lr=1e30, z_loss=0.0)], SYNTHETIC)[0]
    assert result["diverged"] and np.isnan(result["final_loss"])
    points = len(result["curves"]["loss"])
    assert points == result["diverged_step"] // smoke.train.log_every + 1
    assert points < smoke.hparams.steps // smoke.train.log_every
    assert np.isfinite(result["curves"]["loss"][: points - 1]).all()


def test_points_of_one_call_are_those_of_many(trainer, smoke):
    """Bit for bit, also of a run that diverges in the middle of a call."""
    layout = layout_alone(smoke)
    assert layout.points == 8 == smoke.hparams.steps // smoke.train.log_every
    at_once = Trainer(*smoke.program, layout)
    for run in (smoke, replace(smoke, seed=1), replace(smoke, lr=1e30, z_loss=0.0)):
        same(at_once.train([run], SYNTHETIC)[0], trainer.train([run], SYNTHETIC)[0])
    with pytest.raises(ValueError, match="8 points a call"):
        at_once.train([replace(smoke, steps=20)], SYNTHETIC)


def test_a_call_is_as_long_as_small_runs_need_and_ends_with_the_run():
    for scale, study in protocol.scales().items():
        for d, n in study.sizes:
            run = replace(study.base, d_model=d, n_layers=n)
            points = layout_alone(run).points
            flops = run.flops / run.hparams.steps * run.train.log_every
            assert 1 <= points <= MAX_POINTS
            assert run.hparams.steps % (points * run.train.log_every) == 0
            assert points == 1 or points * flops <= FLOPS_OF_CALL
            if scale not in ("night", "long"):  # in between
                assert points > 1 if scale in ("smoke", "laptop") else points == 1
    base = protocol.scales()["laptop"].base
    longer = [replace(base, steps=k * base.hparams.steps) for k in (1, 2, 8)]
    assert len({layout_alone(run) for run in longer}) == 1, "one program"
    assert layout_alone(replace(base, steps=7 * base.train.log_every, warmup_steps=1)).points == 1


def test_lanes_do_not_see_their_neighbours(smoke):
    """The same run in a full, a padded and a partly diverged group gives the same bits."""
    lanes = Trainer(*smoke.program, Layout(lanes=4))
    mine, others = replace(smoke, lr=0.02), [replace(smoke, seed=s, lr=0.1) for s in (5, 6, 7)]
    alone = lanes.train([mine], SYNTHETIC)[0]
    same(alone, lanes.train([mine, *others], SYNTHETIC)[0])
    broken = lanes.train([replace(smoke, lr=1e30, z_loss=0.0), others[0], mine], SYNTHETIC)
    same(alone, broken[2])
    assert broken[0]["diverged"] and not broken[1]["diverged"]
    points = broken[0]["diverged_step"] // smoke.train.log_every + 1
    assert len(broken[0]["curves"]["loss"]) == points


def test_lanes_agree_with_one_run_at_a_time(trainer, smoke):
    one = trainer.train([smoke], SYNTHETIC)[0]
    lane = Trainer(*smoke.program, Layout(lanes=2)).train([smoke], SYNTHETIC)[0]
    for name in one["curves"]:
        np.testing.assert_allclose(
            one["curves"][name], lane["curves"][name], rtol=2e-3, atol=1e-6, err_msg=name
        )


def test_curves_hold_taps_and_tensor_statistics_by_name(trainer, smoke):
    curves = trainer.train([smoke], SYNTHETIC)[0]["curves"]
    for name in (
        "loss",
        "gradient_norm",
        "max_attention_logit/0",
        "block_rms/0",
        "mean_output_logit",
        "qk_cosine/0",
        "grad_rms/blocks/0/mlp_in/kernel",
        "update_rms/embed/embedding",
        "param_rms/head/kernel",
    ):
        assert curves[name].shape == curves["step"].shape and np.isfinite(curves[name]).all(), name
    assert curves["step"].tolist() == list(range(4, 40, 5))
    sizes = tensor_sizes(smoke)
    squares = sum((curves[name].astype(float) ** 2)[-1] * size for name, size in sizes.items())
    # The largest of the chunk against its last step.
    assert curves["gradient_norm"][-1] >= np.sqrt(squares) * 0.999


def tensor_sizes(run):
    from proxies_lib import model

    shapes = jax.eval_shape(lambda: model.init(run.model, jax.random.key(0)))
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return {
        "grad_rms/" + jax.tree_util.keystr(p, simple=True, separator="/"): s.size for p, s in leaves
    }
