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
# # 3 · Warm-up
#
# **Question.** How much of the sensitivity to the learning rate does a longer warm-up remove?
#
# **The paper** (section 3.2.1; Figure 5) varies the warm-up from 0.05 % to 25 % of the training and
# says: a longer warm-up lowers LR sensitivity and loss, most of all for large models.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
from IPython.display import Markdown

from proxies_lib.config import grid, replace
from proxies_lib.science import analysis, checks, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# Every size over the window of learning rates for each warm-up, as shares of the steps; 5 % is the
# default.

# %% tags=["grid"]
axes = {("d_model", "n_layers"): this.few_sizes, "lr": this.window, "seed": this.seeds}
runs = {}
for share in this.warmups:
    warmup_steps = round(share * this.base.hparams.steps)
    runs[f"warm-up {100 * share:g} %"] = grid(replace(this.base, warmup_steps=warmup_steps), axes)
curves_read = ()  # the final losses are enough

# %%
table, curves = report.collect(runs, this, curves_read)

# %% tags=["nbval-check-output"]
report.summary(table, this)

# %% [markdown]
# ## Figure 5 · loss against learning rate, sensitivity against size
#
# **Drawn.** Above: the final loss against the peak learning rate, a panel per warm-up from short to
# long, a curve per size. Below: [LR sensitivity](../../docs/glossary.md#lr-sensitivity) S against
# size, a curve per warm-up.
#
# **If the claim holds,** the curves get lower and flatter from panel to panel, at their right end
# above all, and the S of longer warm-ups lies lower, most of all for the largest model.
#
# **On the laptop** the right end of the curves comes down, and S over this scale's window with it.
# How much of it depends on the size is within the spread of the seeds.
#
# **At night** the curves are flat to begin with, at every warm-up, so less is left to gain. The
# largest model still halves its S from the shortest warm-up to the longest.

# %%
sensitivity = report.lr_figure(table, this, "fig05_warmup")

# %% [markdown]
# S, in nats, for each warm-up and size; and the best loss over the learning rates.

# %%
in_window = next(iter(sensitivity.values()))
in_window.pivot(index="method", columns="n_params", values="S").loc[list(runs)].round(3)

# %%
best = analysis.optimum(table, ["method", "n_params"])
by_size = best.pivot_table(index="method", columns="n_params", values="best_loss")
by_size.loc[list(runs)].round(3)

# %% [markdown]
# ## What we see
#
# **On the laptop** a longer warm-up lowers LR sensitivity, and the best loss too, at every size.
# Whether the largest gains most cannot be told apart with three sizes and seeds.
#
# **At night** both hold again, with effects of a quarter of the size. The best loss of the smallest
# model no longer depends on the warm-up; that of the two larger ones does. In S the sizes still
# cannot be told apart: the largest loses the greatest share of its S, and the smallest as many
# nats, because its S is larger. The paper's smallest model has 25 times the parameters of our
# largest; models in between would tell.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/science/checks` before the runs. A claim
# [holds](../../docs/glossary.md#verdict) only if the whole interval over seeds lies on the claimed
# side. It is contradicted if the whole interval lies on the other side, and
# [undecided](../../docs/glossary.md#undecided) if it includes the threshold.

# %%
verdicts = report.publish(checks.warmup(table, curves, this), "03", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
