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
# # 1 · Attention logit growth
#
# **Question.** In large models the attention logits can grow until softmax saturates, and training
# collapses. Does the same happen in a small model when its learning rate is high, and does
# normalizing queries and keys (qk-layernorm) prevent it?
#
# **The paper** (Wortsman et al. 2023, section 3.1.1; Figures 1, 2 and E.1) says: without
# qk-layernorm, the learning rate at which training fails falls as the model grows; the logits grow
# without bound there, at small and at large scale alike, because the *norms* of queries and keys
# grow; with qk-layernorm none of this happens over three decades of learning rate. Below the
# critical learning rate the two arms learn equally well.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | long | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
from IPython.display import Markdown

from proxies_lib.config import grid, replace
from proxies_lib.science import analysis, checks, plots, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# Every size, with and without qk-layernorm, over the whole grid of peak learning rates, with
# several seeds. A seed fixes the order of the data and the initialization, as far as two arms have
# the same tensors: here the projections of the attention are alike, the MLPs, the embedding and the
# head are drawn anew. Everything else is the paper's default set-up at this scale.

# %% tags=["grid"]
axes = {("d_model", "n_layers"): this.sizes, "lr": this.lrs, "seed": this.seeds}
runs = {
    "without qk-layernorm": grid(replace(this.base, qk_norm="none"), axes),
    "with qk-layernorm": grid(this.base, axes),
}
attention = ("max_attention_logit/", "q_norm/", "k_norm/", "qk_cosine/", "attention_entropy/")
curves_read = ("loss", *attention)

# %%
table, curves = report.collect(runs, this, curves_read)

# %% tags=["nbval-check-output"]
base, n_sizes, n_seeds = this.base, table["n_params"].nunique(), table["seed"].nunique()
print(f"{len(table)} runs of {n_sizes} sizes, {n_seeds} seeds")
tokens = f"{base.train.batch_size} × {base.model.seq_len} tokens"
print(f"data {base.data}, {base.hparams.steps} steps of {tokens}")

# %% [markdown]
# ## Figure 1 · loss against learning rate, sensitivity against size
#
# **Drawn.** Above: the final validation loss for each peak learning rate, without and with
# qk-layernorm, one curve per model size (mean of the seeds, band from the best to the worst). A ×
# marks runs that ended in NaN or infinity; they count as ℓ₀, the loss at initialization. Below: the
# [LR sensitivity](../../docs/glossary.md#lr-sensitivity) S against size, the mean distance of these
# curves from their best point over a [window](../../docs/glossary.md#window) of learning rates.
#
# **If the claim holds,** the curves without qk-layernorm turn up at a learning rate that falls as
# the model grows, those with it stay flat, and S is lower with qk-layernorm at every size.
#
# **On the laptop** the cliff is there without qk-layernorm, earlier for larger models, and gone
# with it. S is lower with qk-layernorm. The window of the left S panel follows the optimum of this
# scale, that of the right one is the paper's own: with few steps its low end under-trains, and that
# alone raises S.
#
# **At night** S rises with N without qk-layernorm and falls with it, until the two are an order of
# magnitude apart over this scale's window, from LR 3e-3 on, and a factor of 3 over the paper's.
# With qk-layernorm the largest model trains almost as well at LR 0.3 as at its best.
#
# **At `long`**, over the paper's own window and its 100,000 steps, S is 1.7 times lower with
# qk-layernorm at N 6K, and 2.5 times at 25K. Without it S rises with N. The lowest learning rates
# still lose 0.4 nats to the best one, in both arms alike, and at the highest the cliff is a slope:
# at LR 0.3 a model without qk-layernorm loses 0.6 to 0.9 nats.

# %%
sensitivity = report.lr_figure(table, this, "fig01_lr_sensitivity")

# %% [markdown]
# The numbers behind the lower panels, in nats, with 95 % t intervals over seeds:

# %%
for window, frame in sensitivity.items():
    print(f"{window}\n{frame.round(3).to_string(index=False)}\n")

# %% [markdown]
# Both windows have learning rates below the best one, at which so short a training under-trains
# small models most. The same mean over the decade from each curve's own best learning rate up, and
# its slope per decade of N. A curve that ends within that decade is left out. This judges nothing:
# it was added when the runs of the laptop and of night had been seen, to tell why `1-rises-on`
# comes out as it does.

# %%
by = ["method", "n_params"]
above_best = analysis.lr_sensitivity_above_best(table, by)
print(analysis.over_seeds(above_best, by).round(3).to_string(index=False))
for method, rows in above_best.groupby("method", sort=False):
    slope = analysis.interval(analysis.slopes(rows, "S").dropna())
    print(f"{method}: {report.rounded(*slope)} nats per decade of N")

# %% [markdown]
# The learning rate at which training [fails](../../docs/glossary.md#fails) (it loses a tenth of
# what the best learning rate learns), per size and seed. NaN: no learning rate of the grid fails.

# %%
failing = analysis.diverging_lr(table, by)
failing.pivot(index=by, columns="seed", values="diverging_lr").round(3)

# %% [markdown]
# ## Figure 2 · loss and attention logits during training
#
# **Drawn.** Training loss above, the largest attention logit of the first block below, against the
# step, with and without qk-layernorm: a small model at a high learning rate on the left, the
# largest at a lower one on the right. A dotted line marks 10⁴, beyond which runs fail in the paper.
#
# **If the claim holds,** the logits of both models pass this line without qk-layernorm, their loss
# stops falling, and neither happens with qk-layernorm.
#
# **On the laptop and at night** it is so for both models, although the loss without qk-layernorm
# gets stuck high up rather than explode.
#
# **At `long`** the small model without qk-layernorm passes the line and stays above it, and its
# loss stays high. The larger one touches the line in two seeds and comes back, once the learning
# rate has fallen far enough: by step 80,000 the logits are again those of the other arm, and the
# loss makes up for most of what it had lost. In the third seed they never left. All that is block
# 0, which the claim is about. In block 1 (`max_attention_logit/1` of the table of curves) they
# pass 10⁵ in all three seeds, and stay above 10⁴ to the end.

# %%
points = analysis.at_points(table, this.figure2)
observed = analysis.curves_of(points, curves)
titles = plots.points_of(observed)
columns = ["key", "seed", "method", "n_params", "lr", "step"]
logit = "max_attention_logit/0"
quantities = {
    "loss": ("training loss (nats/token)", "linear"),
    logit: ("max |attention logit|, block 0", "log"),
}
figure = plots.figure_trajectories(observed, quantities, titles, {logit: (1e4, "10⁴")})
drawn = observed[[*columns, *quantities]]
report.save(figure, "fig02_logit_growth", {"trajectories": drawn}, points, this)

# %% [markdown]
# ## Figure E.1 · norms or alignment?
#
# **Drawn.** The same runs, taken apart, against the step: the mean norm of the queries, that of the
# keys, the mean absolute cosine between them, and the [entropy of the attention
# weights](../../docs/glossary.md#attention-entropy). A logit is ‖q‖ ‖k‖ cos(q, k) / √d_head.
#
# **If the claim holds,** the logits grow by length: without qk-layernorm the norms rise and the
# cosine hardly changes. If queries and keys aligned, the cosine would rise instead. Either way the
# entropy falls, as each query comes to attend to a single key.
#
# **On the laptop** the norms rise by more than an order of magnitude, the cosine by less than a
# factor of two. Without qk-layernorm the entropy is gone within 50 steps: each query sees one key.
# **At night** it is the same, but for the entropy, which has 0.3 to 0.4 nats left by then.
#
# **At `long`** the norms carry it as well: of the logits' growth they are 98 % in the small model,
# 91 % in the larger. Entropy follows them down to zero and, where they come back, up again, to 1.4
# nats. With qk-layernorm the small model attends to all tokens almost evenly for as long as its
# learning rate is high.

# %%
quantities = {
    "q_norm/0": ("mean ‖q‖, block 0", "log"),
    "k_norm/0": ("mean ‖k‖, block 0", "log"),
    "qk_cosine/0": ("mean |cos(q, k)|, block 0", "linear"),
    "attention_entropy/0": ("attention entropy\n(nats), block 0", "linear"),
}
figure = plots.figure_trajectories(observed, quantities, titles)
drawn = observed[[*columns, *quantities]]
report.save(figure, "figE01_qk_norms", {"trajectories": drawn}, points, this)

# %% [markdown]
# ## What we see
#
# **On the laptop.** Without qk-layernorm the learning rate at which training fails falls as the
# model grows, and the attention logits of the first block climb by orders of magnitude before it
# does, by the length of queries and keys, at a high learning rate in the small model and at a lower
# one in the large. With qk-layernorm the logits stay small and the cliff is gone; what remains is a
# slope: at the highest learning rates so short a training loses more than a tenth of what the best
# one learns. LR sensitivity rises with N only without qk-layernorm: with it, the low end of the
# window, which under-trains small models most, weighs as much as the high end. Over the decade
# above the best learning rate neither arm has a trend in N.
#
# **At night,** with fifteen times the tokens, the slope with qk-layernorm is gone. S without is 11
# times S with, over LRs from 3e-3 on. Over the paper's own LRs, whose low end still under-trains
# these models and raises both S alike, it is 3.2 times; the paper has about 25 there, at 19M. Of
# the sizes that fail in every seed, the learning rate that fails falls about as 1 / width; the
# smallest fails in one seed of five. One claim is contradicted: with qk-layernorm S does not rise
# with N, it falls. The low end of the window has a part in this, as it still under-trains small
# models: over the decade above the best learning rate no fall is left that could be told from
# none, and no rise shows either, 0.04 nats at the smallest and at the largest size. The paper sees
# S rise from 2.4M on; our largest model has 0.4M parameters. Larger models, or longer trainings of
# these, would tell.
#
# **At `long`** S differs 2.5 times over the paper's own window, where it says 25 at 19M. One reason
# is size: the ratio grows with N, and 25K parameters are a thousandth of that. What training loses
# without qk-layernorm it can win back: at LR 0.1 logits that passed 10³ return as the learning
# rate falls, which no shorter scale shows.
#
# Whether S rises with N with qk-layernorm stays undecided: the slope is −0.02 nats per decade of
# N [−0.11, 0.08], and 0.02 [−0.15, 0.20] over the decade above the best learning rate. It was
# predicted that S there is no more than 0.05 nats higher at d 32 than at d 16; it is 0.013 higher.

# %% [markdown]
# ## Verdicts
#
# Each claim is a check fixed before the runs: an effect per seed, its mean and interval, and a
# threshold. A claim [holds](../../docs/glossary.md#verdict) only if the whole interval lies on the
# claimed side. It is contradicted if the whole interval lies on the other side, and
# [undecided](../../docs/glossary.md#undecided) if it includes the threshold.

# %%
verdicts = report.publish(checks.attention_logit_growth(table, curves, this), "01", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
