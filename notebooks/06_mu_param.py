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
# # 6 · µParam and other parameterizations
#
# **Question.** µParam keeps the best learning rate fixed while the width grows. Does it also make
# training more stable?
#
# **The paper** (section 3.2.4 and appendix E; Figures 8, E.4, E.5, E.6 and E.14) says: with µParam
# the best learning rate stops moving, but neither the loss nor LR sensitivity gets better; it does
# not replace qk-layernorm. Its full form with qk-layernorm survives a learning rate of 1. Scaling
# logits by 1/d_head instead of 1/√d_head is slightly better for the smallest model, worse for the
# largest, and does not replace qk-layernorm either. Scaling a tensor's learning rate by its RMS
# also fixes the best learning rate.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
import numpy as np
from IPython.display import Markdown

from proxies_lib.config import grid, replace
from proxies_lib.science import analysis, checks, plots, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# *Simple* µParam divides the learning rate of linear layers by the width relative to the smallest
# model's. LR × RMS multiplies a tensor's learning rate by max(RMS, 1e-3), so its grid is ten times
# higher.

# %% tags=["grid"]
base, without = this.base, replace(this.base, qk_norm="none")
base_width = this.sizes[0][0]
scaled_sizes = [(width, layers, base_width / width) for width, layers in this.few_sizes]
lrs_and_seeds = {"lr": this.window, "seed": this.seeds}
standard = {("d_model", "n_layers"): this.few_sizes} | lrs_and_seeds
simple = {("d_model", "n_layers", "linear_lr"): scaled_sizes} | lrs_and_seeds
higher = standard | {"lr": tuple(10 * lr for lr in this.window)}
runs = {
    "standard": grid(base, standard),
    "µParam (simple)": grid(base, simple),
    "standard, no qk-layernorm": grid(without, standard),
    "µParam (simple), no qk-layernorm": grid(without, simple),
    "LR × RMS": grid(replace(base, lr_scaling="rms"), higher),
}

# %% [markdown]
# At the largest size, *intermediate* µParam also shrinks the head's initialization, and *full*
# µParam also scales logits by 1/d_head and starts queries at zero. Scaled logits alone are tried at
# the smallest and the largest size.

# %% tags=["grid"]
width, layers = this.few_sizes[-1]
of_few_seeds = {"lr": this.window, "seed": this.few_seeds}
intermediate = {
    "d_model": width,
    "n_layers": layers,
    "linear_lr": base_width / width,
    "head_init": (base_width / width) ** 0.5,
}
full = intermediate | {"attention_power": 1.0, "query_init": 0.0}
smallest_and_largest = (this.few_sizes[0], this.few_sizes[-1])
ends = {("d_model", "n_layers"): smallest_and_largest, "lr": this.upper, "seed": this.few_seeds}
runs |= {
    "µParam (intermediate)": grid(replace(base, **intermediate), of_few_seeds),
    "µParam (full)": grid(replace(base, **full), of_few_seeds),
    "µParam (full), no qk-layernorm": grid(replace(without, **full), of_few_seeds),
    "logits / d_head": grid(replace(base, attention_power=1.0), ends),
    "logits / d_head, no qk-layernorm": grid(replace(without, attention_power=1.0), ends),
}
curves_read = ()  # the final losses are enough

# %%
table, curves = report.collect(runs, this, curves_read)

# %% tags=["nbval-check-output"]
report.summary(table, this)

# %% [markdown]
# ## Figure 8 · standard parameterization against simple µParam
#
# **Drawn.** Above: the final loss against the peak learning rate, the standard parameterization on
# the left and simple µParam on the right, a curve per size. Below: [LR
# sensitivity](../../docs/glossary.md#lr-sensitivity) S against size for both.
#
# **If the claim holds,** the lowest points on the right lie above one another while those on the
# left move to lower learning rates as the model grows; the best loss and S are no better with
# µParam.
#
# **On the laptop** the lowest points do so, and S is no lower with µParam. Whether the best loss is
# a little lower, the seeds cannot tell.
#
# **At night** the lowest points stay at 0.04 with µParam, while the standard ones move from 0.042
# to 0.014. The best loss is 0.02 nats lower with µParam, less than the 0.05 that would count. S is
# higher with it from 25K on: µParam divides the learning rate of linear layers, so the low end of
# the window, 3e-3, trains less; the high end is as flat as the standard one.

# %%
pair = analysis.where(table, method=["standard", "µParam (simple)"])
sensitivity = report.lr_figure(pair, this, "fig08_mu_param")

# %% [markdown]
# ## Figure E.4 · the same without qk-layernorm
#
# **Drawn.** As Figure 8, without qk-layernorm: loss against the peak learning rate for the standard
# parameterization and simple µParam above, [LR sensitivity](../../docs/glossary.md#lr-sensitivity)
# S against size below.
#
# **If the claim holds,** both panels have the cliff at high learning rates, and the S of µParam is
# far above that of the standard parameterization with qk-layernorm in Figure 8.
#
# **On the laptop** it is so: the two S are much the same, and both high.
#
# **At night** both cliffs are there, but that of µParam stands at a higher learning rate: 0.3
# where the standard one begins at 0.1. So the largest model has an S of 0.37 with µParam and of
# 0.64 without, against 0.07 with qk-layernorm and no µParam.

# %%
pair = analysis.where(
    table, method=["standard, no qk-layernorm", "µParam (simple), no qk-layernorm"]
)
sensitivity = report.lr_figure(pair, this, "figE04_mu_param_no_qk")

# %% [markdown]
# ## Figure E.5 · simple, intermediate and full µParam at the largest size
#
# **Drawn.** The final loss of the largest model against the peak learning rate: the standard
# parameterization, simple, intermediate and full µParam, and full µParam without qk-layernorm.
#
# **If the claim holds,** full µParam with qk-layernorm stays low up to LR 1, and at its best
# learning rate it is no better than the standard parameterization.
#
# **On the laptop** full µParam loses least of all at LR 1, though still more than a tenth of what
# it learned, and its best loss is a little lower. Without qk-layernorm it turns up early.
#
# **At night** the window ends at 0.3, where full µParam loses 5 % of what it learned, and the
# standard parameterization no more: this does not tell the two apart. Its best loss is lower by
# 0.04 nats [−0.01, 0.10], of three seeds. Without qk-layernorm it turns up at 0.3.

# %%
variants = [
    "standard",
    "µParam (simple)",
    "µParam (intermediate)",
    "µParam (full)",
    "µParam (full), no qk-layernorm",
]
largest = analysis.where(table, method=variants, n_params=table["n_params"].max())
report.size_figure(largest, this, "figE05_mu_param_variants")

# %% [markdown]
# ## Figure E.6 · logits scaled by 1/√d_head or 1/d_head
#
# **Drawn.** The final loss against the upper learning rates, the smallest model on the left and the
# largest on the right: both scalings of the logits, with and without qk-layernorm.
#
# **If the claim holds,** 1/d_head is slightly lower at the smallest size and higher at the largest,
# and without qk-layernorm both scalings turn up.
#
# **On the laptop** the two curves with qk-layernorm lie close together, and so do the two without,
# which turn up: qk-layernorm decides, the scaling does not.
#
# **At night** too. With qk-layernorm the best losses of the two scalings differ by 0.01 to 0.02
# nats, less than three seeds can tell. Without it the largest model turns up at 0.1 with both, and
# less steeply with 1/d_head.

# %%
scalings = [
    "standard",
    "standard, no qk-layernorm",
    "logits / d_head",
    "logits / d_head, no qk-layernorm",
]
n_ends = [table["n_params"].min(), table["n_params"].max()]
scaled = analysis.where(table, method=scalings, lr=this.upper, n_params=n_ends)
report.size_figure(scaled, this, "figE06_logit_scale")

# %% [markdown]
# ## Figure E.14 · learning rates scaled by the RMS of each tensor
#
# **Drawn.** The final loss against the peak learning rate, the standard parameterization on the
# left and LR × RMS on the right, a curve per size. The learning rate means something else on the
# right, so S is not reported, as the paper asks.
#
# **If the claim holds,** the lowest points on the right lie above one another.
#
# **On the laptop** they do.
#
# **At night** too, at 0.07 to 0.08. Three of the five learning rates lie above: from 0.3 on some
# seeds fail, and at 3 nothing is learned.

# %%
pair = analysis.where(table, method=["standard", "LR × RMS"])
by = ["method", "n_params"]
loss = analysis.lr_curves(pair, by)
report.save(plots.figure_sweep(loss), "figE14_rms_scaled_lr", {"loss": loss}, pair, this)

# %% [markdown]
# The best learning rate per size (geometric mean over seeds):

# %%
best = analysis.optimum(table, by)
best["best_lr"] = np.log10(best["best_lr"])
log_lr = best.pivot_table(index="method", columns="n_params", values="best_lr", sort=False)
(10**log_lr).round(4)

# %% [markdown]
# ## What we see at laptop scale
#
# With µParam the best learning rate stays where it is while the standard one moves left as the
# width grows; LR × RMS does the same. The best loss and LR sensitivity change little, and neither
# µParam nor smaller logits replace qk-layernorm.
#
# ## What we see at night
#
# The same, with smaller intervals. µParam's best loss is 0.02 nats lower and its S twice the
# standard one, because low learning rates train less. Without qk-layernorm µParam moves the cliff
# to a higher learning rate, by a factor of about three, and does not remove it. Which scaling of
# the logits is better at which size stays open: the effects are below 0.03 nats.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/science/checks` before the runs. A claim
# [holds](../../docs/glossary.md#verdict) only if the whole interval over seeds lies on the claimed
# side. It is contradicted if the whole interval lies on the other side, and
# [undecided](../../docs/glossary.md#undecided) if it includes the threshold.

# %%
verdicts = report.publish(checks.mu_param(table, curves, this), "06", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
