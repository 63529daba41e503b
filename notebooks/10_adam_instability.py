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
# **The paper** (Molybog et al. 2023, arXiv 2304.09871; P2 below) says: as long as gradients are
# independent in time, Adam's [ratio](../../docs/glossary.md#ratio-r) r = m̂/√v̂ of a layer has one
# mode at 0. Early layers whose gradients fall below ε stop moving (stages 1 to 3); with frozen
# parameters and a large batch gradients then correlate in time, and r becomes bimodal (4); a rare
# batch lifts gradients above ε, all coordinates move by ±LR at once, and the loss explodes (5),
# until motion restores independence (6).

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | gpu | paper
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
# One size at a high learning rate, and, half-way, a [*burst*](../../docs/glossary.md#burst): for 2
# % of the steps every batch is one token repeated. All this is
# [forced](../../docs/glossary.md#forced): the burst is injected, ε is raised to 1e-3, above the
# gradients of early layers. *Rewind and skip* goes back to a few points before the burst and leaves
# it out; a test shows that rewinding to a real checkpoint gives this run bit for bit.

# %% tags=["grid"]
width, layers = this.adam
steps, every = this.base.hparams.steps, this.base.train.log_every // 2
quiet = replace(this.base, d_model=width, n_layers=layers, lr=0.1, log_every=every, histograms=48)
burst, skip = protocol.burst(steps, every)
disturbed = replace(quiet, **burst)
raised = replace(quiet, **burst, eps=1e-3)
batch = quiet.train.batch_size
stages = {
    "ε = 1e-8, no burst": quiet,
    "ε = 1e-3, no burst": replace(quiet, eps=1e-3),
    "ε = 1e-8": disturbed,
    "ε = 1e-3": raised,
    "ε = 1e-3, batch × 8": replace(raised, batch_size=8 * batch),
}

# %% [markdown]
# Is it this burst, or any? The same, with [uniform noise](../../docs/glossary.md#burst) for its
# batches instead of one token repeated:

# %% tags=["grid"]
noise = {
    "ε = 1e-8, noise": replace(disturbed, rare_kind="uniform"),
    "ε = 1e-3, noise": replace(raised, rare_kind="uniform"),
}

# %% [markdown]
# The remedies, one change each to the run with the raised ε and the burst:

# %% tags=["grid"]
remedies = {
    "ε = 1e-3": raised,
    "ε = 1e-8": disturbed,
    "ε = 0": replace(raised, eps=0.0),
    "ε from 1e-3 to 1e-8": replace(raised, eps_decay=1e-5),
    "LR / 3": replace(raised, lr=0.03),
    "batch / 2": replace(raised, batch_size=batch // 2),
    "β = 0.8, 0.9": replace(raised, b1=0.8, b2=0.9),
    "embedding gradient / 10": replace(raised, embedding_gradient=0.1),
    "rewind and skip": replace(raised, **skip),
}

# %% [markdown]
# Two questions of ours: what if a few batches are the whole corpus, and what if small gradients
# underflow in a narrow format?

# %% tags=["grid"]
slow = replace(quiet, lr=0.01)
repeated = {
    "every batch new": slow,
    "8 batches, again and again": replace(slow, corpus_batches=8),
    "one batch, again and again": replace(slow, corpus_batches=1),
}
formats = {}
for name in ("float16", "float8_e5m2", "float8_e4m3fn"):
    narrow = replace(quiet, gradient_dtype=name)
    formats[f"{name}, loss × 1"] = narrow
    formats[f"{name}, loss × 64"] = replace(narrow, loss_scale=64.0)
arms = stages | noise | remedies | repeated | formats
runs = {name: grid(run, {"seed": this.adam_seeds}) for name, run in arms.items()}

# %%
table, curves = report.collect(runs, this)

# %% tags=["nbval-check-output"]
n_runs, n_seeds = table["key"].nunique(), table["seed"].nunique()
print(f"{len(table)} rows, {n_runs} runs, {n_seeds} seeds; {burst}")

# %% [markdown]
# ## The ratio without a network
#
# **Drawn.** A simulation, no training. Left: the distribution of
# [r](../../docs/glossary.md#ratio-r), a color per ρ, the share of the gradient's variance that all
# steps have in common. Right: for each β1 and β2, the smallest ρ at which Hartigan's [dip
# test](../../docs/glossary.md#dip) finds more than one mode.
#
# **If the theory holds,** r has one mode at 0 for small ρ and two, near ±1, for large ρ.
#
# **What we see** is that: the more is common, the more r gathers at ±1. With a small β1 more must
# be common before the test sees it.

# %%
distributions = adam.distributions((0.0, 0.1, 0.3, 0.5, 0.7, 0.9))
rejections = adam.rejections()
figure = plots.figure_ratio(distributions, rejections, 0.9, 0.95)
drawn = {"distributions": distributions, "rejections": rejections}
report.save(figure, "figP2_ratio", drawn, table, this)

# %% [markdown]
# ## The stages, in training
#
# First the measures: the [dip](../../docs/glossary.md#dip) of r at every logged point, beside that
# of the simulation at ρ = 0.5, and the height of each [spike](../../docs/glossary.md#spike).

# %%
layer = checks.TENSOR  # the first MLP layer of block 0
begin, nearby = burst["rare_batch"], steps // 8
simulated = adam.by_seed(this.adam_seeds)
observed = analysis.curves_of(table, curves)
ratios = adam.shares(observed, f"ratio/{layer}")
observed = observed.assign(dip=[adam.dip_of_histogram(shares) for shares in ratios])
spikes = analysis.spikes(observed, begin, burst["rare_batches"], nearby, checks.SMALL)

# %% [markdown]
# Then the runs by column of the figure, each with its twin without the burst where there is one.

# %%
titles = {
    "ε = 1e-8": "default ε",
    "ε = 1e-3": "raised ε",
    "ε = 1e-3, batch × 8": "raised ε, batch × 8",
}
pairs = {method: [method, f"{method}, no burst"] for method in titles}
shown = pd.concat(
    analysis.where(observed, method=pair).assign(point=method) for method, pair in pairs.items()
)
is_quiet = shown["method"].str.endswith("no burst")
shown["method"] = is_quiet.map({True: "without the burst", False: "with the burst"})

# %% [markdown]
# **Drawn.** Against the step, from top to bottom: training loss, gradient RMS, update RMS, cosine
# of successive gradients and dip of r, all but the loss of the first MLP layer of block 0. A column
# each for the default ε, the raised ε, and the raised ε with an eightfold batch; with and without
# the burst, which the upright lines enclose. Dotted lines: ε, and the dip at ρ = 0.5.
#
# **If the theory holds,** with the raised ε gradients lie below ε and updates collapse (2, 3), the
# cosine and the dip rise before the burst (4), and the burst lifts the updates and makes a high
# spike of the loss (5), which then heals (6).
#
# **On the laptop** stages 2 and 3 are there, as they are forced; stage 4 is not. The spike comes
# with the default ε as well, and the loss comes back nearly, not wholly.
#
# **At night** stages 2 and 3 are there. Of stage 4: the gradients of successive steps have a cosine
# of 0.18 with either ε, so freezing does not make them more alike; a batch of eight times the size
# does, 0.25, as it would without freezing, since it averages noise. The spike is lower with the
# raised ε than with the default one. The loss comes back.

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
drawn = shown[["key", "seed", "method", "point", "step", *quantities]]
report.save(figure, "figP2_stages", {"stages": drawn}, table, this)

# %% [markdown]
# ## Distributions of r and of the update Δ
#
# **Drawn.** Histograms over the coordinates of a tensor, the share of a bin on a log axis: r and
# the update Δ of the embedding, of the first MLP layer of block 0 and of that of the last block
# (rows), before the burst, at its first and last step and at the end (columns), with the default
# and the raised ε.
#
# **If the theory holds,** Δ is a narrow peak at 0 before the burst with the raised ε, r has two
# modes by then, and in the burst Δ takes the shape of r.
#
# **On the laptop** the narrow peak is there, and widens in the burst; r keeps one mode, which the
# burst makes flatter.
#
# **At night** it is the same. By the last step of the burst its one token is learned: the gradients
# are gone, and r is a narrow peak as well.

# %%
moments = {
    begin - every: "before the burst",
    marks[0]: "its first step",
    marks[1]: "its last step",
    steps - 1: "end",
}
tensors = {
    "embed": "embedding",
    layer: "block 0",
    f"blocks/{layers - 1}/mlp_in": f"block {layers - 1}",
}
pair = analysis.where(observed, method=["ε = 1e-8", "ε = 1e-3"], step=list(moments))
histograms = []
for tensor, name in tensors.items():
    histograms.append(adam.histograms(pair, f"ratio/{tensor}").assign(row=f"r, {name}"))
    histograms.append(adam.histograms(pair, f"update/{tensor}").assign(row=f"Δ, {name}"))
bars = pd.concat(histograms)
figure = plots.figure_histograms(bars.assign(column=bars["step"]), moments)
filled = bars[bars["share"] > 0]  # an empty bin has no place on the log axis
report.save(figure, "figP2_histograms", {"histograms": filled}, table, this)

# %% [markdown]
# ## The remedies, on the same spike
#
# **Drawn.** A row per remedy, the first one without any: the height of the spike, the steps and the
# tokens lost, and the final loss. Points are seeds, with their mean and its 95 % interval; the
# dotted line is the mean without a remedy. The last two rows are no remedies, but another burst, of
# noise, with either ε. Steps lost are those until the loss is back, or, for
# *rewind and skip*, the steps thrown away.
#
# **If a remedy works,** its points lie left of the dotted line.
#
# **On the laptop** a lower learning rate, half the batch and going back do. The others cannot be
# told from no remedy; lower β's and a decayed ε end with a lower loss all the same. A burst of
# noise makes as high a spike, which lasts longer, and which a raised ε makes a little higher.
#
# **At night** a lower learning rate, lower β's and going back do. A lower ε, or none, makes the
# spike higher. Half the batch, a decayed ε and a smaller gradient of the embedding cannot be told
# from no remedy. A burst of noise makes a far higher spike, and a raised ε raises it a little.

# %%
rows = [*remedies, *noise]
rescued = analysis.where(analysis.remedies(table, spikes), method=rows)
quantities = {
    "height": ("height of the spike (nats)", "linear"),
    "steps_lost": ("steps lost", "linear"),
    "tokens_lost": ("tokens lost", "linear"),
    "loss": (plots.LOSS_AXIS, "linear"),
}
figure = plots.figure_dots(rescued, quantities, rows)
drawn = rescued[["key", "seed", "method", *quantities]]
report.save(figure, "figP2_remedies", {"remedies": drawn}, rescued, this)

# %% [markdown]
# ## A corpus of few batches
#
# **Drawn.** Histograms of r in the first MLP layer of block 0, after a quarter, half-way and at the
# end of a training on ever new batches, on eight batches again and again, and on one.
#
# **If full batches make gradients correlate,** r of the one batch has two modes near ±1.
#
# **On the laptop** it is the other way round for most of the training: its r is a narrow peak at 0.
#
# **At night** so it is until half-way. At the end its r is the widest of all, with one mode.

# %%
times = {steps // 4 - 1: "after a quarter", steps // 2 - 1: "half-way", steps - 1: "end"}
at_times = analysis.where(observed, method=list(repeated), step=list(times))
bars = adam.histograms(at_times, f"ratio/{layer}")
figure = plots.figure_histograms(bars.assign(row="r, block 0", column=bars["step"]), times)
few = analysis.where(table, method=list(repeated))
report.save(figure, "figP2_batches", {"histograms": bars[bars["share"] > 0]}, few, this)

# %% [markdown]
# ## Gradients in narrow formats
#
# **Drawn.** A row per format of the gradients, the first one float32: the share of gradients that
# are zero and the update RMS at the end of the training, of the first MLP layer of block 0, and the
# final loss. Points are seeds, with mean and 95 % interval; dotted, the mean of float32. A loss
# scaled up (× 64) makes fewer gradients underflow.
#
# **If underflow freezes early layers,** a narrow format has more zeros, a smaller update and a
# higher loss, and the scaled loss repairs all three.
#
# **On the laptop** the narrowest format does, and scaling repairs it; the others lose little.
#
# **At night** it is the same.

# %%
zeros = f"zero_gradients/{layer}"
quantities = {
    zeros: ("share of zero gradients", "linear"),
    checks.UPDATE: ("update RMS", "linear"),
    "loss": (plots.LOSS_AXIS, "linear"),
}
narrow = analysis.where(table, method=["ε = 1e-8, no burst", *formats])
at_end = analysis.end_means(narrow, curves, [zeros, checks.UPDATE])
at_end = at_end.merge(narrow[["key", "loss"]], on="key")
figure = plots.figure_dots(at_end, quantities, list(narrow["method"].unique()))
drawn = at_end[["key", "seed", "method", *quantities]]
report.save(figure, "figP2_formats", {"formats": drawn}, narrow, this)

# %% [markdown]
# ## What we see at laptop scale
#
# The simulation does what the theory says; in training little of it comes by itself. Below a raised
# ε updates collapse (stages 2 and 3), but neither frozen layers nor a larger batch make successive
# gradients measurably more alike, and r keeps one mode (4). The burst makes a spike (5) with the
# default ε as with the raised one. Within its nine steps the update RMS of the frozen layer rises
# nearly fourfold, though at its first step by less than the factor of two that was fixed. The loss
# comes back, but stays a little higher (6). So ε does not help against it; a lower LR, half the
# batch and going back do. Only after a burst of noise are frozen layers worse, by 0.2 nats. Lower
# β's and a decayed ε end lower all the same. One batch for a corpus does not make r bimodal. The
# narrowest format drops most early gradients, unless the loss is scaled.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/science/checks` before the runs. A claim
# [holds](../../docs/glossary.md#verdict) only if the whole interval over seeds lies on the claimed
# side. It is contradicted if the whole interval lies on the other side, and
# [undecided](../../docs/glossary.md#undecided) if it includes the threshold.

# %%
claims = checks.adam_instability(simulated, table, observed, spikes, begin, nearby)
verdicts = report.publish(claims, "10", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
