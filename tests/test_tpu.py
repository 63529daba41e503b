import functools
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pandas as pd
import pytest

from proxies_lib import config, optim, paths, train
from proxies_lib.budget import costs, tpu
from proxies_lib.config import UserError
from proxies_lib.runs import tables
from proxies_lib.science import figures, notebooks, protocol

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu (the extra tpu-check) is not installed",
)


def flops(f, *shapes):
    return tpu.matmul_flops(jax.make_jaxpr(f)(*(jnp.zeros(shape) for shape in shapes)))


def test_products_are_counted_through_scan_remat_cond_and_custom_gradients():
    once = 2 * 3 * 5 * 7
    assert flops(lambda a, b: a @ b, (3, 5), (5, 7)) == once
    assert (
        flops(jax.jit(lambda a, b: jnp.einsum("nij,njk->nik", a, b)), (4, 3, 5), (4, 5, 7))
        == 4 * once
    )

    def layer(x, w):
        return jnp.tanh(x @ w), None

    def deep(body, x, w):
        return jax.lax.scan(body, x, w)[0].sum()

    forward, shapes = 11 * 2 * 3 * 5 * 5, ((3, 5), (11, 5, 5))
    assert flops(functools.partial(deep, layer), *shapes) == forward
    assert flops(jax.grad(functools.partial(deep, layer), argnums=1), *shapes) == 3 * forward
    assert (
        flops(jax.grad(functools.partial(deep, jax.checkpoint(layer)), argnums=1), *shapes)
        == 4 * forward
    )

    from proxies_lib.ops import dense

    assert (
        flops(jax.grad(lambda x, w: dense(x, w).sum(), argnums=(0, 1)), (3, 5), (5, 7)) == 3 * once
    )

    def branches(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert flops(branches, (3, 5), (5, 7)) == once


def test_products_of_a_train_step_are_the_models_flops_with_the_masked_half_of_attention(smoke):
    run = config.replace(smoke, d_model=16, n_layers=2)
    m, t = run.program
    h = {name: jnp.zeros(()) for name in optim.inputs(run.hparams)}
    state = jax.eval_shape(functools.partial(train.init, (m, t)), h, 0)
    tokens = jnp.zeros((t.log_every, t.batch_size, m.seq_len + 1), jnp.int32)
    counted = (
        tpu.matmul_flops(jax.make_jaxpr(functools.partial(train.chunk, (m, t)))(h, state, tokens))
        / t.log_every
    )
    tokens_a_step = t.batch_size * m.seq_len
    full = run.flops / run.hparams.steps + 6 * tokens_a_step * m.n_layers * m.seq_len * m.d_model
    probe = 2 * t.batch_size * m.n_layers * m.seq_len * m.d_model
    assert counted == full + probe


def test_collectives_are_counted_once_per_channel():
    hlo = """
  %ag.1 = bf16[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=1, dimensions={0}
  %ag.2 = bf16[16,8]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  %ar = (f32[], f32[4]{0}) all-reduce(%a, %b), channel_id=2
  %cp = (f32[8]{0}, f32[8]{0}, u32[]) collective-permute-start(%c), channel_id=3
  %cpd = f32[8]{0} collective-permute-done(%cp)
  %add = f32[8]{0} add(%all-gather.3, %cpd)
"""
    assert tpu.collectives(hlo) == {
        "all-gather": {"count": 1, "bytes": 256.0},
        "all-reduce": {"count": 1, "bytes": 20.0},
        "collective-permute": {"count": 1, "bytes": 32.0},
    }


def test_the_papers_sizes_have_their_names():
    names = ["2.4M", "9.4M", "19M", "42M", "85M", "151M", "302M", "1.2B", "4.8B"]
    sizes = protocol.scales()["paper"].sizes
    runs = [tpu.sized(name) for name in names]
    assert [(r.model.d_model, r.model.n_layers) for r in runs] == list(sizes)
    assert [tpu.name_of(r.model.n_params) for r in runs] == names
    assert (
        tpu.sized("10M") == tpu.sized("9.4M")
        and tpu.sized("4.8B").model.compute_dtype == "bfloat16"
    )


@pytest.mark.parametrize("size", ["7B", "5M", "4.8", "", "big", "1e9"])
def test_other_sizes_are_refused_with_the_list(size):
    with pytest.raises(
        UserError, match=rf"size='{re.escape(size)}': must be one of 2.4M, 9.4M, .* 4.8B"
    ):
        tpu.sized(size)


def test_topologies():
    assert tpu.shape_of("v5e:4x4") == ("v5e", (4, 4)) and tpu.shape_of("v6e:1x1") == ("v6e", (1, 1))
    assert tpu.shape_of("v5p:2x2x1") == ("v5p", (2, 2, 1)) and tpu.shape_of("v4:4x4x8") == (
        "v4",
        (4, 4, 8),
    )
    for kind, chip in tpu.CHIPS.items():
        assert all(tpu.shape_of(f"{kind}:{shape}")[0] == kind for shape in chip.slices)
    for bad in (
        "v5e",
        "v5e:4",
        "v5e:3x3",
        "v5e:2x2x2",
        "v5p:2x2",
        "v5p:1x1x1",
        "v9:2x2",
        "v5e:32x16",
        "v5e:0x2",
        "",
    ):
        with pytest.raises(UserError, match="topology=.*must be v5e:NxM"):
            tpu.shape_of(bad)


def test_what_the_compiler_asks_for_is_read():
    message = "RESOURCE_EXHAUSTED: … HLO temporaries (28.21G) exceeds available HBM (15.75G)."
    assert tpu._asked(message) == 28.21
    assert tpu._asked("Ran out of memory in memory space hbm. Used 17.5G of 15.75G hbm.") == 17.5
    assert tpu._asked("RESOURCE_EXHAUSTED") is None


@pytest.mark.parametrize("scale", protocol.scales())
def test_costs_add_up(scale):
    table = costs.costs(scale)
    made_for = protocol.study(scale).sections or tuple(notebooks.sections())
    costed = [
        figure.name
        for figure in figures.FIGURES.values()
        if figure.section != "00" and figure.methods and figure.section in made_for
    ]
    parts, total = table[(table["figure"] == "all") & (table["section"] != "all")], table.iloc[-1]
    assert total["section"] == "all" and list(table.query("figure != 'all'")["figure"]) == costed
    for name in ("runs", "flops"):
        assert total[name] < parts[name].sum()  # sections share runs
        assert total[name] == pytest.approx(parts[f"more_{name}"].sum())
    for section, drawn in table.query("figure != 'all'").groupby("section"):
        own = parts.set_index("section").loc[section]
        assert (drawn["flops"] <= own["flops"]).all() and (drawn["runs"] > 0).all()
    by_size = costs.cost_by_size(scale)
    assert by_size["runs"].sum() == total["runs"] and by_size["flops"].sum() == pytest.approx(
        total["flops"]
    )


def test_the_page_shows_what_the_code_says(monkeypatch):
    root = pathlib.Path(tpu.__file__).parents[2]
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(root / "papermill_runs"))
    page = (root / tpu.PAGE).read_text("utf-8")
    assert (
        all(costs.costs_table(scale) in page for scale in protocol.scales())
        and costs.sizes_table("paper") in page
    )
    assert costs.measured_table() in page, "write it again: proxies costs --table"
    assert tpu.slices_table() in page


def publish_seconds(folder, scale: str, without: str = ""):
    """A published table of a scale's runs, of 2 s each, without those of the section `without`."""
    runs = {section: set() for section in notebooks.sections()}
    for section, path in notebooks.sections().items():
        for arm in notebooks.grid_of(path, notebooks.reading(scale)).values():
            runs[section] |= set(arm)
    kept = set().union(*runs.values()) - runs.get(without, set())
    rows = [
        {"key": config.recipe(run), "recipe": config.recipe(run), "train_seconds": 2.0}
        | {"final_loss": 3.0, "init_loss": 4.0, "diverged": False, "diverged_step": -1}
        for run in kept
    ]
    curves = pd.DataFrame({"key": [row["key"] for row in rows], "step": 0})
    tables.export(pd.DataFrame(rows), curves, folder / scale, folder / "store")


def test_measured_seconds_stand_beside_the_planned_ones(tmp_path, monkeypatch, capsys):
    from proxies_lib import cli

    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path))
    assert costs.costs("smoke")["measured_seconds"].isna().all()
    assert (
        cli.main(["costs", "--scale", "smoke"]) == 0 and "measured" not in capsys.readouterr().out
    )
    publish_seconds(tmp_path, "smoke")
    table = costs.costs("smoke")
    assert (table["measured_seconds"] == 2 * table["runs"]).all()
    assert table["core_seconds"].tolist() == pytest.approx(3600 * table["core_hours"])
    assert cli.main(["costs", "--scale", "smoke"]) == 0
    total = table.iloc[-1]
    planned, measured = f"{total['core_seconds']:,.0f}", f"{2 * total['runs']:,}"
    assert f"| all | {planned} | {measured} |" in capsys.readouterr().out


def test_a_section_with_a_run_that_is_not_published_has_no_measured_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path))
    publish_seconds(tmp_path, "smoke", without="10")
    sections = costs.costs("smoke").query("figure == 'all'").set_index("section")
    lacking = sections.index[sections["measured_seconds"].isna()].tolist()
    assert lacking == ["10", "all"]
    lines = costs.measured_table(("smoke", "long")).splitlines()
    assert (
        lines[0]
        == "| section | smoke, planned | smoke, measured | long, planned | long, measured |"
    )
    (last,) = (line for line in lines if line.startswith("| 10 |"))
    assert last.endswith("| – | – | – |")  # long is not made for section 10


def test_without_the_compiler_the_extra_is_named(monkeypatch, capsys):
    from proxies_lib import cli

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main("tpu-check --size 4.8B --topology v5e:4x4".split()) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "pip install -e '.[tpu-check]'" in err


@needs_compiler
def test_a_small_model_compiles_for_a_slice():
    command = [
        sys.executable,
        "-m",
        "proxies_lib.cli",
        *"tpu-check --size 2.4M --topology v5e:2x2 --json".split(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.root())
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (
        row["chips"] == 4 and row["verdict"] == "fits" and 0 < row["need_gib"] < row["memory_gib"]
    )
    assert row["step_flops"] > row["model_flops"] > 8e12 and row["versions"]["libtpu"]
