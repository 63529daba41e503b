import functools
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxies_lib import config, interventions, model, ops, optim, paths, train
from proxies_lib.config import UserError, replace
from proxies_lib.interventions import intervention
from proxies_lib.layout import PLAIN, Layout
from proxies_lib.runs import sweep, tables
from proxies_lib.verify import BASE, IDENTITIES, STEPS, _compiled, verify


@intervention(version=1, cap=50.0)
class softcap:
    """cap · tanh(z / cap) before the softmax (Gemma 2)."""

    def attention_logits(z, h):
        return h["cap"] * jnp.tanh(z / h["cap"])  # between −cap and cap


@intervention(version=1, tau=30.0)
class qk_clip:
    """A head whose largest logit passed τ: its W_q, W_k times √(τ / largest) (Kimi K2)."""

    def after(params, seen, h):
        def clipped(block, largest_H):
            shrink_H = jnp.sqrt(jnp.minimum(1.0, h["tau"] / largest_H))
            attention = block["attention"]
            width = attention["query"]["kernel"].shape[-1] // largest_H.size
            wide = jnp.repeat(shrink_H, width)
            names = ("query", "key")
            shrunk = {name: {"kernel": attention[name]["kernel"] * wide} for name in names}
            return block | {"attention": attention | shrunk}

        return model.over_blocks(clipped, params, seen["max_attention_logit_of_head"])


@intervention(version=1)
class lion:
    def optimizer(h, step):
        return optax.scale_by_lion(h["b1"], h["b2"])


@intervention(version=1, rate=0.01)
class plain_sgd:
    """The whole update, without schedule, clipping and decay."""

    complete = True

    def optimizer(h, step):
        return optax.sgd(h["rate"])


@intervention(version=1)
class never_called:
    def block(config, linear, norm):
        class Idle(model.Block):
            def __init__(self):
                super().__init__(config, linear, norm)
                self.extra = norm(config.d_model)

        return Idle()


@intervention(version=1)
class peri_ln:
    """x + LN(f(LN(x)))."""

    def block(config, linear, norm):
        class Peri(model.Block):
            def __init__(self):
                super().__init__(config, linear, norm)
                self.behind_attention = norm(config.d_model)
                self.behind_mlp = norm(config.d_model)

            def attend(self, x_ND, batch, probe, h):
                y_ND, taps = super().attend(x_ND, batch, probe, h)
                return self.behind_attention(y_ND), taps

            def feed_forward(self, x_ND):
                return self.behind_mlp(super().feed_forward(x_ND))

        return Peri()


def text_of(body: str, head: str = "@intervention(version=1)\nclass own:") -> str:
    return f"{head}\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}"


def state_after(run, steps=3, layout=PLAIN):
    """Parameters and metrics after a few steps on made-up tokens."""
    h = inputs(run)
    shape = (steps, run.train.batch_size, run.model.seq_len + 1)
    tokens_CBT = np.random.default_rng(0).integers(run.model.vocab_size, size=shape)
    state = begun(run, layout)
    advance = functools.partial(train.chunk, run.program, layout=layout)
    return _compiled(advance, h, state, tokens_CBT)(h, state, tokens_CBT)


def begun(run, layout=PLAIN) -> dict:
    """The state before the first step."""
    begin = functools.partial(train.init, run.program, layout=layout)
    return _compiled(begin, inputs(run), 0)(inputs(run), 0)


def inputs(run) -> dict:
    return {name: np.float32(value) for name, value in optim.inputs(run.hparams).items()}


def gradients(run, params: dict, tokens_BT) -> tuple[dict, jax.Array]:
    """Of the loss, and the cross-entropy."""
    of_params = functools.partial(train.gradients, run.model, probe=False)
    args = inputs(run), params, tokens_BT
    return _compiled(of_params, *args)(*args)[:2]


def one_step(run, state: dict, tokens_BT, layout=PLAIN):
    step = functools.partial(train.step, run.program, probe=True, layout=layout)
    return _compiled(step, inputs(run), state, tokens_BT)(inputs(run), state, tokens_BT)


# ------------------------------------------------------------------ identity


def test_a_text_is_what_is_computed_whatever_its_comments_and_layout():
    same = """
    def attention_logits(z, h):
        '''Other words.'''
        return h["cap"] * jnp.tanh(z
                                   / h["cap"])
    """
    head = "@intervention(version=1, cap=50.0)\nclass softcap:"
    assert interventions.declared(softcap.text) == interventions.declared(text_of(same, head))
    assert "Gemma" not in softcap.text and "between" not in softcap.text
    assert "Gemma" in softcap.source and "between" in softcap.source
    assert softcap.declared.title == "softcap@1" and softcap.__doc__.startswith("cap")
    for other in (softcap.text.replace("tanh", "sin"), softcap.text.replace("50.0", "5.0")):
        changed = replace(BASE, intervention=other, intervention_numbers='{"cap": 5.0}')
        assert config.recipe(changed) != config.recipe(softcap(BASE, cap=5.0))


def test_a_run_carries_text_and_numbers_and_gives_them_back():
    run = softcap(BASE, cap=30)
    assert run.hparams.intervention_numbers == '{"cap": 30.0}'
    assert config.from_flat(json.loads(json.dumps(config.flat(run)))) == run
    assert optim.inputs(run.hparams)["cap"] == 30.0
    assert run.program == softcap(BASE).program, "numbers are inputs: they compile nothing"
    both = qk_clip(run, tau=10)
    assert interventions.titles(both.model.intervention) == "softcap@1 + qk_clip@1"
    assert interventions.numbers_of(both.hparams.intervention_numbers) == {"cap": 30, "tau": 10}
    assert config.recipe(softcap(BASE, cap=30)) != config.recipe(softcap(BASE, cap=31))
    assert config.recipe(qk_clip(softcap(BASE))) != config.recipe(softcap(qk_clip(BASE)))


def test_no_number_may_take_the_name_of_an_input_of_the_program():
    assert set(optim.inputs(BASE.hparams)) - set(config.FIELDS) == set(interventions.SWITCHES)


def test_runs_without_an_intervention_have_the_keys_they_had():
    assert {"intervention", "intervention_numbers"} <= set(config.YOUNGER)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def attention_logits(z, h): return z * K", "K .*from outside; only jax, jnp"),
        ("def attention_logits(z, h): return np.abs(z)", "np .*from outside"),
        ("def attention_logits(z, h):\n    import os\n    return z", "import os.*travel"),
        ("def attention_logit(z, h): return z", "attention_logit.*no place; places are"),
        ("def attention_logits(z): return z", r"must take \(z, h\)"),
        ("def attention_logits(z, h, *more): return z", r"must take \(z, h\)"),
        ("limit = 3\ndef branch(y, h): return y", "limit = 3.*may hold functions"),
        ("complete = True\ndef branch(y, h): return y", "complete.*own has none"),
        ("pass", "has no place"),
    ],
)
def test_a_text_that_is_no_intervention_is_refused_in_a_line(body, message):
    with pytest.raises(UserError, match=message) as refused:
        replace(BASE, intervention=text_of(body))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "classes with one decorator"),
        ("class own:\n    def branch(y, h): return y", "one decorator"),
        ("@intervention(lr=1.0)\nclass own:\n    def branch(y, h): return y", "field of a run"),
        ("@intervention(a=b)\nclass own:\n    def branch(y, h): return y", "numbers as keywords"),
        ("@intervention()\nclass own(int):\n    def branch(y, h): return y", "no base class"),
        ("def (", "not the text of a class"),
        ("(" * 500, "not the text of a class"),
        ("\0", "not the text of a class"),
    ],
)
def test_a_text_is_refused_without_being_run(text, message):
    with pytest.raises(UserError, match=message):
        replace(BASE, intervention=text)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match="softcap.*stands twice"):
        softcap(softcap(BASE))
    with pytest.raises(UserError, match="place='optimizer'.*lion, plain_sgd"):
        plain_sgd(lion(BASE))
    with pytest.raises(UserError, match="cup.*softcap has cap"):
        softcap(BASE, cup=3.0)
    with pytest.raises(UserError, match="intervention_numbers.*must give cap"):
        replace(BASE, intervention=softcap.text)
    with pytest.raises(UserError, match="intervention_numbers.*JSON object"):
        replace(softcap(BASE), intervention_numbers="[1]")
    with pytest.raises(UserError, match="histograms.*Adam's moments"):
        lion(replace(BASE, histograms=8))
    with pytest.raises(UserError, match="n_layers=0: must be 1 or more with `after`"):
        qk_clip(replace(BASE, n_layers=0))


def test_a_class_without_source_is_refused():
    names = {"intervention": intervention}
    with pytest.raises(UserError, match="source cannot be read"):
        exec(text_of("def branch(y, h): return y"), names)


def test_a_module_that_is_edited_and_imported_again_gives_its_new_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    head = "import jax.numpy as jnp\nfrom proxies_lib.interventions import intervention\n\n\n"
    file = tmp_path / "edited_idea.py"
    file.write_text(head + softcap.source)
    module = importlib.import_module("edited_idea")
    assert "tanh" in module.softcap.text
    file.write_text(head + softcap.source.replace("tanh", "arctan"))
    assert "arctan" in importlib.reload(module).softcap.text


def test_a_class_of_a_notebook_cell_is_found(tmp_path):
    cell = softcap.source + "\nprint(softcap.text)"
    program = f"""
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    shell.run_cell("from proxies_lib.interventions import intervention", store_history=True)
    shell.run_cell({cell!r}, store_history=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    printed = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(paths.root())},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert softcap.text in printed.stdout


# ------------------------------------------------------------------ places


def test_identities_at_every_place_give_the_base_run_bit_for_bit():
    every = replace(BASE, intervention=text_of("\n".join(IDENTITIES.values())))
    for layout in (PLAIN, Layout(scan=True)):
        plain, changed = (state_after(run, layout=layout) for run in (BASE, every))
        assert jax.tree.all(jax.tree.map(np.array_equal, plain[0]["params"], changed[0]["params"]))
        assert np.array_equal(plain[1]["loss"], changed[1]["loss"])


def test_a_cap_bounds_what_enters_the_softmax_and_the_tap_before_it_does_not():
    run = softcap(replace(BASE, lr=1.0), cap=0.5)
    _, metrics = state_after(run)
    taps = metrics["taps"]
    assert (taps["max_entering_logit"] <= 0.5).all()
    assert (taps["max_attention_logit"] > 0.5).all()
    _, plain = state_after(BASE)
    assert "max_entering_logit" not in plain["taps"]


def test_a_cap_turns_fused_attention_off(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    plain = replace(BASE, compute_dtype="bfloat16")
    assert ops.fused(plain.model)
    assert not ops.fused(softcap(plain).model) and not ops.fused(qk_clip(plain).model)
    assert ops.fused(lion(plain).model)


@pytest.mark.parametrize("layout", [PLAIN, Layout(scan=True)])
def test_clipped_heads_come_down_to_tau_on_the_same_batch(layout):
    run = qk_clip(replace(BASE, lr=1e-9, min_lr=0.0, weight_decay=0.0), tau=0.05)
    # The learning rate is next to nothing: between the two steps only the clip acts.
    tokens_BT = np.random.default_rng(0).integers(64, size=(4, 17))
    state, before = one_step(run, begun(run, layout), tokens_BT, layout)
    _, after = one_step(run, state, tokens_BT, layout)
    name = "max_attention_logit_of_head"
    first_layer = after["taps"][name][0]
    np.testing.assert_allclose(first_layer, np.minimum(before["taps"][name][0], 0.05), rtol=1e-3)
    # Clipping one layer moves the input of the next: it lands near tau, not on it.
    assert (after["taps"][name] < 1.3 * 0.05).all() and (before["taps"][name] > 0.06).all()


def test_an_optimizer_has_the_papers_schedule_and_decay_around_it_or_is_complete():
    run = lion(replace(BASE, lr=0.01, weight_decay=0.1, warmup_steps=0, clip_norm=1e9))
    start = begun(run)
    tokens_BT = np.random.default_rng(0).integers(64, size=(4, 17))
    state, _ = one_step(run, start, tokens_BT)
    head, before = state["params"]["head"]["kernel"], start["params"]["head"]["kernel"]
    # Lion's update is a sign: η up or down, beside the shrinking by λ.
    moved = np.abs(head - before * (1 - 0.1))
    np.testing.assert_allclose(moved, 0.01, rtol=1e-3)

    run = plain_sgd(BASE, rate=0.5)
    start = begun(run)
    state, _ = one_step(run, start, tokens_BT)
    grads = gradients(run, start["params"], tokens_BT)[0]
    for stepped, p, g in zip(
        *map(jax.tree.leaves, (state["params"], start["params"], grads)), strict=True
    ):
        np.testing.assert_allclose(stepped, p - 0.5 * g, rtol=1e-5, atol=1e-7)


def test_a_loss_is_added_and_parameters_are_used_as_reparametrized():
    body = """
    def loss(z, labels, params, h):
        return 2.0 * jnp.square(params["head"]["kernel"]).mean()

    def reparametrize(params, h):
        return params | {"head": {"kernel": 3.0 * params["head"]["kernel"]}}
    """
    run = replace(BASE, intervention=text_of(body))
    params = begun(run)["params"]
    tripled = params | {"head": {"kernel": 3.0 * params["head"]["kernel"]}}
    tokens_BT = np.random.default_rng(0).integers(64, size=(4, 17))
    evaluated = train.evaluate(run.model, inputs(run), params, tokens_BT[None])
    grads, ce = gradients(run, params, tokens_BT)
    of_base, base_ce = gradients(BASE, tripled, tokens_BT)
    np.testing.assert_allclose(evaluated, base_ce, rtol=1e-6)
    assert ce == base_ce
    expected = 3.0 * (of_base["head"]["kernel"] + 4.0 * tripled["head"]["kernel"] / (16 * 64))
    np.testing.assert_allclose(grads["head"]["kernel"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("it", [qk_clip, peri_ln], ids=lambda it: it.__name__)
def test_scanned_layers_agree_with_written_out_ones(it):
    run = it(replace(BASE, lr=0.01))
    plain, scanned = state_after(run), state_after(run, layout=Layout(scan=True))
    np.testing.assert_allclose(plain[1]["loss"], scanned[1]["loss"], rtol=1e-5)


def block_with(made: str) -> str:
    """The text of a block that makes something of its own."""
    return text_of(
        f"""
        def block(config, linear, norm):
            class Own(model.Block):
                def __init__(self):
                    super().__init__(config, linear, norm)
                    {made}
            return Own()
        """
    )


def initial(run, seed=0) -> dict:
    return model.init(run.model, jax.random.key(seed))


@pytest.mark.parametrize(
    "made, where, value",
    [
        ("self.gain = nnx.Param(jnp.full(3, 0.1, 'bfloat16'))", ("gain",), jnp.bfloat16(0.1)),
        ("self.last = norm(3, scale_init=nnx.initializers.zeros)", ("last", "scale"), 0),
        ("self.mlp_out = linear(64, 16, kernel_init=nnx.initializers.zeros)", ("mlp_out",), 0),
    ],
)
def test_a_parameter_of_a_blocks_own_begins_as_its_constructor_says(made, where, value):
    own = initial(replace(BASE, intervention=block_with(made)))
    base = initial(BASE)
    for i, block in own["blocks"].items():
        found = block
        for name in where:
            found = found[name]
        for leaf in jax.tree.leaves(found):
            assert leaf.dtype == jnp.float32
            np.testing.assert_array_equal(leaf, jnp.full_like(leaf, value))
        # What the paper's model has begins as the paper's does.
        np.testing.assert_array_equal(
            block["attention"]["query"]["kernel"], base["blocks"][i]["attention"]["query"]["kernel"]
        )


def test_random_parameters_of_a_blocks_own_differ_by_layer_and_seed():
    made = 'self.gate = nnx.Linear(16, 16, rngs=linear.keywords["rngs"])'
    run = replace(BASE, intervention=block_with(made))
    gates = [
        np.asarray(block["gate"]["kernel"])
        for seed in (0, 1)
        for block in initial(run, seed)["blocks"].values()
    ]
    assert len(gates) == 4
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(gates, 2))
    again = initial(run)["blocks"]
    assert all(
        np.array_equal(a, b["gate"]["kernel"])
        for a, b in zip(gates[:2], again.values(), strict=True)
    )


@pytest.mark.parametrize(
    "text, refused",
    [
        (block_with("self.gain = jnp.ones(3)"), "blocks/0/gain.*plain array.*nnx.Param only"),
        (
            block_with("self.bn = nnx.BatchNorm(3, rngs=nnx.Rngs(0))"),
            "blocks/0/bn/mean.*is a BatchStat",
        ),
        (
            block_with("self.drop = nnx.Dropout(0.1, rngs=nnx.Rngs(0))"),
            "blocks/0/drop/rngs/count.*is a RngCount",
        ),
        (
            text_of("def block(config, linear, norm): return nnx.Linear(2, 2, rngs=nnx.Rngs(0))"),
            "Linear.*must be a subclass of model.Block",
        ),
    ],
    ids=["plain array", "batch norm", "dropout", "no block"],
)
def test_a_block_that_a_step_could_not_carry_is_refused(text, refused):
    with pytest.raises(UserError, match=refused):
        initial(replace(BASE, intervention=text))


# ------------------------------------------------------------------ verify


def test_verify_tells_an_effect_from_none(capsys):
    strong = verify(softcap, cap=0.1)
    assert strong.first_change == 0 and strong.parameter_change > 0
    assert "bit for bit" in capsys.readouterr().out
    none = verify(qk_clip, tau=1e9)
    assert none.first_change is None and none.parameter_change == 0
    out = capsys.readouterr().out
    assert "no effect yet" in out and f"{STEPS} steps" in out and "fused attention is off" in out


def test_verify_catches_a_norm_that_is_built_and_never_called():
    with pytest.raises(UserError, match="never_called@1: blocks/0/extra/scale gets no gradient"):
        verify(never_called)
    called = verify(peri_ln)
    assert "blocks/1/behind_mlp/scale" in called.own_parameters


def test_verify_takes_a_base_run_that_has_interventions_of_its_own():
    assert verify(qk_clip, softcap(BASE, cap=5.0), tau=0.01).first_change is not None
    assert verify(softcap, lion(BASE), cap=0.1).first_change == 0


def test_verify_catches_numbers_that_are_not_finite():
    @intervention(version=1)
    class broken:
        def output_logits(z, h):
            return z + jnp.log(-jnp.ones(()))

    with pytest.raises(UserError, match="broken@1: the loss is not finite at step 0"):
        verify(broken)


# ------------------------------------------------------------------ stored runs


def test_worker_processes_train_it_and_the_store_and_an_exported_table_keep_the_text(
    tmp_path, monkeypatch
):
    smoke = replace(BASE, steps=STEPS)
    runs = [smoke, softcap(smoke, cap=0.1), softcap(smoke, cap=1e6)]
    plan = sweep.plan(runs, tmp_path / "store")
    assert "softcap@1" in plan.describe()
    sweep.run(plan, workers=2, engine="processes", quiet=True)
    plan = sweep.plan(runs, tmp_path / "store")
    assert not plan.missing
    table, curves = tables.table(list(plan.found), plan.folder)
    assert table["intervention"].tolist() == ["", softcap.text, softcap.text]
    base, capped, out_of_reach = table["final_loss"]
    assert capped != base == out_of_reach
    tables.export(table, curves, tmp_path / "out")
    runs_again, _ = tables.exported(tmp_path / "out")
    rows = runs_again[runs_again["intervention"] != ""].to_dict("records")
    known = {name: rows[0][name] for name in config.FIELDS}
    assert config.from_flat(known) in runs


def test_another_text_under_the_same_name_and_version_is_refused(tmp_path):
    sweep.run(sweep.plan([softcap(BASE)], tmp_path), workers=1, quiet=True)
    other = replace(softcap(BASE), intervention=softcap.text.replace("tanh", "sin"))
    with pytest.raises(UserError, match=r"softcap@1.*another text.*raise its version"):
        sweep.plan([other], tmp_path)
    (tmp_path / "interventions/softcap@1.py").write_bytes(b"\xff")  # damaged: written anew
    sweep.run(sweep.plan([softcap(BASE, cap=2.0)], tmp_path), workers=1, quiet=True)
    assert (tmp_path / "interventions/softcap@1.py").read_text("utf-8").strip() == softcap.text
    newer = replace(other, intervention=other.model.intervention.replace("version=1", "version=2"))
    assert len(sweep.plan([newer], tmp_path).missing) == 1


def softcap_of(example: str) -> str:
    """The class in the page's first example."""
    return re.search(r"^@intervention.*?\n\n\n", example, re.MULTILINE | re.DOTALL)[0]


def code_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_bring_an_intervention_and_an_optimizer(tmp_path):
    """The page's examples in a file of one's own, elsewhere, at smoke scale."""
    page = (paths.root() / "docs/interventions.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    example, *definitions = blocks
    definitions.insert(0, softcap_of(example))
    assert all(len(code_lines(text)) <= 12 for text in definitions)
    example = example.replace('study("laptop", {', 'study("smoke", {"sizes": [[8, 1]], ')
    own_ones = "\n\n".join(definitions[1:])
    script = f"""{example}
{own_ones}
own = {{it.__name__: grid(it(none), axes) for it in (lion, muon, max_z_loss, layer_scale)}}
table, _ = report.collect(own, this)
print(table.groupby("method")["loss"].count().to_dict())
"""
    (tmp_path / "mine.py").write_text(script)
    own = {
        f"PROXIES_{kind.upper()}": str(tmp_path / kind)
        for kind in ("cache", "store", "figures", "papermill_runs")
    }
    done = subprocess.run(
        [sys.executable, "mine.py"],
        cwd=tmp_path,
        env=os.environ | own | {"PYTHONPATH": str(paths.root())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("changes the loss from step") == 1
    assert "{'layer_scale': 6, 'lion': 6, 'max_z_loss': 6, 'muon': 6}" in done.stdout
    assert (tmp_path / "figures/smoke-softcap/softcap.png").stat().st_size > 1000
