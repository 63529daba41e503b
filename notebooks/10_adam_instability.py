# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · A theory of Adam's instability
#
# **Question.** Where do sudden spikes of the training loss come from, and which remedies work?
#
# **The paper** (Molybog et al. 2023, arXiv 2304.09871; P2 below) says: as long as gradients are independent in time, Adam's
# ratio r = m̂/√v̂ of a layer has one mode at 0. Early layers whose gradients fall below ε stop moving (stages 1 to 3); with
# frozen parameters and a large batch gradients then correlate in time, and r becomes bimodal (4); a rare batch lifts
# gradients above ε, all coordinates move by ±LR at once, and the loss explodes (5), until motion restores independence (6).

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
import pandas as pd
from IPython.display import Markdown

from proxies_lib.config import grid, replace
from proxies_lib.science import adam, analysis, checks, plots, protocol, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# One size at a high learning rate, and, half-way, a *burst*: for 2 % of the steps every batch is one token repeated. All this is
# forced: the burst is injected, ε is raised to 1e-3, above the gradients of early layers. *Rewind and skip* goes back to a few
# points before the burst and leaves it out; a test shows that rewinding to a real checkpoint gives this run bit for bit.

# %% tags=["grid"]
(d, n), steps, every = this.adam, this.base.hparams.steps, this.base.train.log_every // 2
quiet = replace(this.base, d_model=d, n_layers=n, lr=0.1, log_every=every, histograms=48)
burst, skip = protocol.burst(steps, every)
disturbed, raised = replace(quiet, **burst), replace(quiet, **burst, eps=1e-3)
stages = {
    "ε = 1e-8, no burst": quiet,
    "ε = 1e-3, no burst": replace(quiet, eps=1e-3),
    "ε = 1e-8": disturbed,
    "ε = 1e-3": raised,
    "ε = 1e-3, batch × 8": replace(raised, batch_size=8 * quiet.train.batch_size),
}
remedies = {
    "ε = 1e-3": raised,
    "ε = 1e-8": disturbed,
    "ε = 0": replace(raised, eps=0.0),
    "ε from 1e-3 to 1e-8": replace(raised, eps_decay=1e-5),
    "LR / 3": replace(raised, lr=0.03),
    "batch / 2": replace(raised, batch_size=quiet.train.batch_size // 2),
    "β = 0.8, 0.9": replace(raised, b1=0.8, b2=0.9),
    "embedding gradient / 10": replace(raised, embedding_gradient=0.1),
    "rewind and skip": replace(raised, **skip),
}

# %% [markdown]
# Two questions of ours: what if a few batches are the whole corpus, and what if small gradients underflow in a narrow format?

# %% tags=["grid"]
counts = {"every batch new": 0, "8 batches, again and again": 8, "one batch, again and again": 1}
repeated = {name: replace(quiet, lr=0.01, corpus_batches=count) for name, count in counts.items()}
formats = {
    f"{name}, loss × {by}": replace(quiet, gradient_dtype=name, loss_scale=float(by))
    for name in ("float16", "float8_e5m2", "float8_e4m3fn")
    for by in (1, 64)
}
runs = {
    name: grid(run, {"seed": this.seeds})
    for name, run in (stages | remedies | repeated | formats).items()
}

# %%
table, curves = report.collect(runs, this)

# %% tags=["nbval-check-output"]
print(f"{len(table)} rows, {table['key'].nunique()} runs, {table['seed'].nunique()} seeds; {burst}")

# %% [markdown]
# ## The ratio without a network
#
# Left: the more of the gradient is common to all steps, the more r gathers at ±1. Right: from where on Hartigan's dip test sees it.

# %%
distributions, rejections = adam.distributions((0.0, 0.1, 0.3, 0.5, 0.7, 0.9)), adam.rejections()
figure = plots.figure_ratio(distributions, rejections, 0.9, 0.95)
report.save(
    figure, "figP2_ratio", {"distributions": distributions, "rejections": rejections}, table, this
)

# %% [markdown]
# ## The stages, in training
#
# Of the first MLP layer of block 0; the dip of r beside that of the simulation at ρ = 0.5. Upright: the burst.

# %%
begin, window, layer = burst["rare_batch"], steps // 8, checks.TENSOR
simulated, observed = adam.by_seed(this.seeds), analysis.curves_of(table, curves)
observed = observed.assign(
    dip=[adam.dip_of_histogram(shares) for shares in adam.shares(observed, f"ratio/{layer}")]
)
spikes = analysis.spikes(observed, begin, burst["rare_batches"], window, checks.SMALL)
titles = {
    "ε = 1e-8": "default ε",
    "ε = 1e-3": "raised ε",
    "ε = 1e-3, batch × 8": "raised ε, batch × 8",
}
shown = pd.concat(
    [analysis.where(observed, method=[m, f"{m}, no burst"]).assign(point=m) for m in titles]
)
shown["method"] = (
    shown["method"]
    .str.endswith("no burst")
    .map({True: "without the burst", False: "with the burst"})
)

# %%
quantities = {
    "loss": ("training loss\n(nats/token)", "linear"),
    checks.GRADIENT: ("gradient RMS", "log"),
    checks.UPDATE: ("update RMS", "log"),
    f"gradient_cosine/{layer}": ("cosine of\nsuccessive gradients", "linear"),
    "dip": ("dip of r", "log"),
}
marks = begin, begin + burst["rare_batches"] - 1
lines = {checks.GRADIENT: (1e-3, "ε = 1e-3"), "dip": (simulated["dip"].mean(), "ρ = 0.5")}
figure = plots.figure_trajectories(shown, quantities, titles, lines, marks)
report.save(
    figure,
    "figP2_stages",
    {"stages": shown[["key", "seed", "method", "point", "step", *quantities]]},
    table,
    this,
)

# %% [markdown]
# ## Distributions of r and of the update Δ

# %%
moments = {
    begin - every: "before the burst",
    marks[0]: "its first step",
    marks[1]: "its last step",
    steps - 1: "end",
}
pair = analysis.where(observed, method=["ε = 1e-8", "ε = 1e-3"], step=list(moments))
tensors = {"embed": "embedding", layer: "block 0", f"blocks/{n - 1}/mlp_in": f"block {n - 1}"}
bars = pd.concat(
    [
        adam.histograms(pair, f"{kind}/{tensor}").assign(row=f"{letter}, {name}")
        for tensor, name in tensors.items()
        for kind, letter in (("ratio", "r"), ("update", "Δ"))
    ]
)
figure = plots.figure_histograms(bars.assign(column=bars["step"]), moments)
report.save(figure, "figP2_histograms", {"histograms": bars}, table, this)

# %% [markdown]
# ## The remedies, on the same spike
#
# Seeds, mean, 95 % interval. Steps lost: until the loss is back, or, going back, the steps thrown away.

# %%
rescued = analysis.where(analysis.remedies(table, spikes), method=list(remedies))
quantities = {
    "height": ("height of the spike (nats)", "linear"),
    "steps_lost": ("steps lost", "linear"),
    "tokens_lost": ("tokens lost", "linear"),
    "loss": (plots.LOSS_AXIS, "linear"),
}
figure = plots.figure_dots(rescued, quantities, list(remedies))
report.save(
    figure,
    "figP2_remedies",
    {"remedies": rescued[["key", "seed", "method", *quantities]]},
    rescued,
    this,
)

# %% [markdown]
# ## A corpus of few batches

# %%
times = {steps // 4 - 1: "after a quarter", steps // 2 - 1: "half-way", steps - 1: "end"}
bars = adam.histograms(
    analysis.where(observed, method=list(repeated), step=list(times)), f"ratio/{layer}"
)
figure = plots.figure_histograms(bars.assign(row="r, block 0", column=bars["step"]), times)
report.save(
    figure,
    "figP2_batches",
    {"histograms": bars},
    analysis.where(table, method=list(repeated)),
    this,
)

# %% [markdown]
# ## Gradients in narrow formats

# %%
zeros, linear = f"zero_gradients/{layer}", "linear"
quantities = {
    zeros: ("share of zero gradients", linear),
    checks.UPDATE: ("update RMS", linear),
    "loss": (plots.LOSS_AXIS, linear),
}
narrow = analysis.where(table, method=["ε = 1e-8, no burst", *formats])
ends = analysis.late(narrow, curves, list(quantities)[:2]).merge(
    analysis.with_loss(narrow)[["key", "loss"]]
)
figure = plots.figure_dots(ends, quantities, list(narrow["method"].unique()))
report.save(
    figure, "figP2_formats", {"formats": ends[["key", "seed", "method", *quantities]]}, narrow, this
)

# %% [markdown]
# ## What we see at laptop scale
#
# The simulation does what the theory says; in training little of it comes by itself. Below a raised ε updates collapse
# (stages 2 and 3), but neither frozen layers nor a larger batch make successive gradients measurably more alike, and r keeps
# one mode (4). The burst makes a spike (5) with the default ε as with the raised one; the loss comes back, but stays a little
# higher (6). So ε does not help against it; a lower LR and going back do. Lower β's and a decayed ε end lower all the same. One
# batch for a corpus does not make r bimodal. The narrowest format drops most early gradients, unless the loss is scaled.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/checks.py` before the runs. *Holds*: the whole interval over seeds
# lies on the claimed side.

# %%
verdicts = report.publish(
    checks.adam_instability(simulated, table, observed, spikes, begin, window), "10", this
)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
