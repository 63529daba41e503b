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
# # 5 · Width or depth
#
# **Question.** A model can grow by width or by depth. Which makes it more fragile, and which makes
# it better?
#
# **The paper** (section 3.2.3 and appendix E; Figures 7, E.2 and E.3) says: LR sensitivity rises
# faster with depth, but at the largest size the deep model has the lower loss. Without qk-layernorm
# both fail. Growing width and depth together gives the lowest loss at the largest size, and the
# best extrapolation from smaller ones.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | gpu | paper
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
# A series of sizes by width and one by depth, with and without qk-layernorm, over the window of
# learning rates; and a series of both together, at the upper learning rates, for the best loss
# only.

# %% tags=["grid"]
base, without = this.base, replace(this.base, qk_norm="none")
lrs_and_seeds = {"lr": this.window, "seed": this.few_seeds}
widths = {("d_model", "n_layers"): this.widths} | lrs_and_seeds
depths = {("d_model", "n_layers"): this.depths} | lrs_and_seeds
joint = {("d_model", "n_layers"): this.joint, "lr": this.upper, "seed": this.few_seeds}
runs = {
    "by width": grid(base, widths),
    "by depth": grid(base, depths),
    "by width, no qk-layernorm": grid(without, widths),
    "by depth, no qk-layernorm": grid(without, depths),
    "jointly": grid(base, joint),
}
curves_read = ()  # the final losses are enough

# %%
table, curves = report.collect(runs, this, curves_read)

# %% tags=["nbval-check-output"]
report.summary(table, this)

# %% [markdown]
# ## Figure 7 · width against depth
#
# **Drawn.** Above: the final loss against the peak learning rate, the series by width on the left
# and by depth on the right, a curve per size. Below: [LR
# sensitivity](../../docs/glossary.md#lr-sensitivity) S against size for both.
#
# **If the claim holds,** S rises more steeply by depth than by width, and the largest deep model
# has a lower best loss than the largest wide one.
#
# **On the laptop** the best loss of the deep series gets higher with each size, that of the wide
# series lower. S does not rise by depth on average, but how it compares with width is undecided.
#
# **At night** the curves are flat both ways, with S of 0.07 to 0.12 nats. From the size that both
# series share S rises to 0.08 by depth and falls to 0.07 by width; three seeds cannot decide it.
# The best losses of the largest deep and wide models are the same to 0.02 nats.

# %%
pair = analysis.where(table, method=["by width", "by depth"])
sensitivity = report.lr_figure(pair, this, "fig07_width_vs_depth")

# %% [markdown]
# ## Figure E.2 · the same without qk-layernorm
#
# **Drawn.** As Figure 7, without qk-layernorm: loss against the peak learning rate by width and by
# depth above, [LR sensitivity](../../docs/glossary.md#lr-sensitivity) S against size below.
#
# **If the claim holds,** the curves of both series turn up well below the highest learning rate,
# and S lies above that of Figure 7, whichever is scaled.
#
# **On the laptop** it is so: from LR 0.1 on both series lose much of what they learned.
#
# **At night** too, and by depth more: at N 393K S is 0.91 by depth and 0.74 by width.

# %%
pair = analysis.where(table, method=["by width, no qk-layernorm", "by depth, no qk-layernorm"])
sensitivity = report.lr_figure(pair, this, "figE02_width_vs_depth_no_qk")

# %% [markdown]
# ## Figure E.3 · the best loss of each series
#
# **Drawn.** The best loss over the learning rates against size, for the series by width, by depth
# and jointly. Points are means over seeds, bars their range. A dashed line is fitted to all but the
# largest size of its series: its distance from the last point is the error of extrapolating.
#
# **If the claim holds,** the joint series has the lowest point at the largest size, and the line
# that comes closest to its last point.
#
# **On the laptop** the series by width has the lowest loss, depth makes it worse, and the joint
# series lies in between. Its line misses by about as much as the better of the others.
#
# **At night** all series get better with N, and the joint one has the lowest loss, by 0.02 nats
# [0.001, 0.05]. Lines miss by 0.05 nats by depth, 0.08 jointly and 0.28 by width; whether the joint
# one misses least is undecided.

# %%
best = analysis.optimum(
    analysis.where(table, method=["by width", "by depth", "jointly"]), ["method", "n_params"]
)
fits = analysis.extrapolated(best)
figure = plots.figure_best_loss(best, fits)
report.save(figure, "figE03_best_loss", {"best": best, "fits": fits}, table, this)

# %%
fits.groupby("method", sort=False)[["n_params", "slope", "error"]].mean().round(3)

# %% [markdown]
# ## What we see at laptop scale
#
# In a training this short depth does not pay: deeper models of one width have a *higher* best loss,
# width a lower one. Whether S rises more steeply by depth or by width is undecided. Without
# qk-layernorm both series are clearly more sensitive.
#
# ## What we see at night
#
# Depth pays now. Five times the steps and four times the tokens a step make the deep model as good
# as the wide one, and growing both the best, by a little. With qk-layernorm S hardly depends on
# either, so that three seeds cannot tell which raises it faster; without, S is 0.7 nats higher by
# width and 0.8 by depth. More layers, or more seeds, would tell: the gpu scale has 24.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/science/checks` before the runs. A claim
# [holds](../../docs/glossary.md#verdict) only if the whole interval over seeds lies on the claimed
# side. It is contradicted if the whole interval lies on the other side, and
# [undecided](../../docs/glossary.md#undecided) if it includes the threshold.

# %%
verdicts = report.publish(checks.width_vs_depth(table, curves, this), "05", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
