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
# # 0 · Small models as proxies for large ones: the method in ten minutes
#
# Large training runs are wrecked by instabilities that nobody sees in small ones. Wortsman et al.
# (2023, arXiv 2309.14322) found a way to see them: **raise the learning rate**. A small model at a
# high learning rate fails in the way a large model fails at an ordinary one, so the cause can be
# studied, and the remedy tested, cheaply. These notebooks train the paper again, one section each,
# and score its claims.
#
# **How one experiment works.**
#
# 1. Take one model size and one *intervention* (say, qk-layernorm on or off).
# 2. Train it at learning rates over three decades. Draw the final validation loss against the peak
#    learning rate.
# 3. A robust model gives a shallow bowl: the loss hardly depends on the learning rate. A fragile
#    one gives a cliff.
# 4. Measure the bowl with one number, **LR sensitivity**: S = mean over the learning rates η of
#    min(ℓ(η), ℓ₀) − ℓ\*, where ℓ\* is the best loss of the curve and ℓ₀ the loss at initialization.
#    A run that diverges counts as ℓ₀. S = 0 would mean: any learning rate will do.
# 5. Repeat for growing sizes N. If S rises with N, larger models will be harder to train, and the
#    curve says how much.
#
# N counts the weights of the blocks, 12 · layers · width², without embedding and head. All such
# words are in the [glossary](../../docs/glossary.md).

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | long | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
from IPython.display import Markdown

from proxies_lib.config import grid
from proxies_lib.science import analysis, plots, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# The largest size of this scale, trained exactly as the paper's default says (with qk-layernorm),
# is enough to see S.

# %% tags=["grid"]
axes = {("d_model", "n_layers"): this.sizes[-1:], "lr": this.lrs, "seed": this.seeds}
runs = {"default": grid(this.base, axes)}
curves_read = ()  # the final losses are enough

# %%
table, _ = report.collect(runs, this, curves_read)

# %% tags=["nbval-check-output"]
n_lrs, n_seeds = table["lr"].nunique(), table["seed"].nunique()
print(f"{len(table)} runs at {n_lrs} learning rates, {n_seeds} seeds")

# %% [markdown]
# ## One curve
#
# **Drawn.** The final validation loss of one model against its peak learning rate, mean over seeds.
# The dashed line is the best loss ℓ\*, the dotted one ℓ₀. The gray area between the curve and ℓ\*
# is what S averages over the window; a line marks ℓ\* + S.
#
# **What to look at.** The flatter the bowl, the smaller the gray area, and S with it.
#
# **On the laptop.** Low learning rates under-train, and the highest one fails: each end of the
# window holds a good part of the gray area.
#
# **At night** the window starts where this model trains, and the bowl is flat: S is 0.07 nats, most
# of it at learning rates of 0.1 and 0.3.
#
# **At `long`** the window is the paper's own. S is 0.11 nats, and half of that is its lowest
# learning rate, which under-trains even in 100,000 steps.

# %%
by = ["method", "n_params"]
loss = analysis.lr_curves(table, by)
sensitivity = analysis.lr_sensitivity(table, by, this.window)
figure = plots.figure0(loss, sensitivity, this.window)
report.save(figure, "fig00_method", {"loss": loss, "sensitivity": sensitivity}, table, this)

# %% [markdown]
# **How to read the figures** that follow: a method always has the same color and marker; sizes go
# from light to dark; a band spans the seeds; a × is a run that ended in NaN, drawn on the ℓ₀ line.
# S says nothing about how *good* the best loss is, and it depends on the
# [window](../../docs/glossary.md#window) of learning rates: it is always shown together with the
# curves it comes from.
#
# ## The protocol of each scale
#
# One table fixes sizes, learning rates, seeds and windows before any run. The laptop's window for S
# starts half a decade above the paper's: short trainings need higher learning rates, and appendix B
# of the paper advises to move the window with the optimum. Its vocabulary is small enough that, in
# so few steps, the largest model learns as much as a [bigram
# model](../../docs/glossary.md#bigram-model) does: below that, nothing of what makes a transformer
# is being trained.

# %%
Markdown(report.markdown(report.protocol_table().reset_index(names="")))

# %% [markdown]
# ## Scoreboard
#
# Every claim of the paper's 29 figures, of the section on Adam's instability, and our predictions
# on later ideas, checked at this scale. A claim [holds](../../docs/glossary.md#verdict) if the
# whole 95 % interval over seeds (Student's t) lies on the claimed side of a threshold fixed in the
# code before the runs. It is contradicted if the whole interval lies on the other side, and
# [undecided](../../docs/glossary.md#undecided) if it includes the threshold.

# %%
board = report.scoreboard(this.label)
print(report.tally(board))
Markdown(report.verdict_table(board, this.label, up="../../"))
