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
# # 8 · AdamW's ε and vanishing gradients
#
# **Question.** Gradients shrink as models grow. What happens when they come down to the ε in Adam's
# denominator?
#
# **The paper** (section 3.4 and appendices C and E; Figures 11, 12, 13, C.1, E.12, E.13 and E.15)
# says: the RMS of gradients falls with N and with the learning rate, towards ε = 1e-8, because the
# residual stream grows with the learning rate while gradients through LayerNorm shrink with its
# input. Once gradients are below ε, updates shrink. At 4.8B and LR 0.3, ε = 1e-15 improves the loss
# and keeps gradients alive; ε = 1e-6 diverges.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | long | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
import pandas as pd
from IPython.display import Markdown

from proxies_lib.config import grid, replace
from proxies_lib.science import analysis, checks, plots, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# The default at every size and learning rate, shared with the other sections; the depth series for
# what depends on the block; and, at the largest size and LR 0.3, a range of ε. Gradients of small
# models lie far above 1e-8, so the larger ε of the range [*force*](../../docs/glossary.md#forced)
# what the paper saw happen by itself.

# %% tags=["grid"]
lrs_and_seeds = {"lr": this.window, "seed": this.seeds}
of_few_seeds = {"lr": this.window, "seed": this.few_seeds}
width, layers = this.sizes[-1]
largest = replace(this.base, d_model=width, n_layers=layers, lr=0.3)
runs = {
    "default": grid(this.base, {("d_model", "n_layers"): this.sizes} | lrs_and_seeds),
    "by depth": grid(this.base, {("d_model", "n_layers"): this.depths} | of_few_seeds),
}
for eps in (1e-15, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3):
    runs[f"ε = {eps:g}"] = grid(replace(largest, eps=eps), {"seed": this.few_seeds})
curves_read = ("loss", "grad_rms/blocks/", "update_rms/blocks/", "block_rms/")

# %%
table, curves = report.collect(runs, this, curves_read)

# %% tags=["nbval-check-output"]
report.summary(table, this)

# %% [markdown]
# ## Figure 11 · gradient RMS of the first MLP layer
#
# **Drawn.** The [gradient RMS](../../docs/glossary.md#gradient-rms) of the first MLP layer at the
# end of the training (the last twentieth of the logged points, before clipping). Above: of block 0
# against size, a line per learning rate, and against the learning rate, a line per size. Below:
# against the number of the block in the deepest model. ε = 1e-8 is marked where it lies in view.
#
# **If the claim holds,** the lines of the upper panels fall, towards ε.
#
# **On the laptop** they fall, but for the lowest learning rates, and end orders of magnitude above
# ε.
#
# **At night** they fall at every learning rate and every size: by 0.8 decades per decade of N and
# by 1.0 per decade of the learning rate. The lowest, at N 393K and LR 0.3, ends at 9e-6, 900 times
# ε.
#
# **At `long`** they fall with N at every learning rate, and with the learning rate from 0.001 on,
# about as steeply. They do not end lower for that: 1.2e-4 at N 25K and LR 0.3, 12,000 times ε, is
# twice what night has there. Steps do not bring gradients down to ε, size does.

# %%
swept, deep = analysis.where(table, method="default"), analysis.where(table, method="by depth")
deepest = analysis.where(deep, n_layers=deep["n_layers"].max())
shown = pd.concat([swept, deepest])
eps, blocks = this.base.hparams.eps, range(deepest["n_layers"].max())
by_block = [f"grad_rms/blocks/{i}/mlp_in/kernel" for i in blocks]
panels = analysis.rms_panels(swept, deepest, curves, checks.GRADIENT, by_block)
figure = plots.figure_rms(panels, "rms", "gradient RMS, first MLP layer", eps)
report.save(figure, "fig11_gradient_rms", panels, shown, this)

# %% [markdown]
# ## Figure E.12 · gradient RMS of the key projection
#
# **Drawn.** As Figure 11, for the key projection of the attention: its gradient RMS against size,
# against the learning rate and against the block.
#
# **If the claim holds,** the lines fall with size and with the learning rate here too.
#
# **On the laptop** they fall with the learning rate; with size they do not fall clearly.
#
# **At night** they fall with both, with size from 25K on: by 0.4 decades per decade of N and by 0.9
# per decade of the learning rate.
#
# **At `long`** they fall with both, but for the lowest learning rate, where they rise with size.
# The lowest ends at 2e-5, 2,000 times ε.

# %%
by_block = [f"grad_rms/blocks/{i}/attention/key/kernel" for i in blocks]
panels = analysis.rms_panels(swept, deepest, curves, checks.KEY_GRADIENT, by_block)
figure = plots.figure_rms(panels, "rms", "gradient RMS, key projection", eps)
report.save(figure, "figE12_key_gradient_rms", panels, shown, this)

# %% [markdown]
# ## Figure C.1 · RMS of a block's output
#
# **Drawn.** The RMS of the output of block 2 (the last one where there are fewer) at the end of the
# training, against size and against the learning rate; below, that of every block of the deepest
# model.
#
# **If the claim holds,** the lines are flat in size, and rise with the learning rate and from block
# to block: the residual stream grows, and gradients through LayerNorm shrink with it.
#
# **On the laptop** the stream grows with the learning rate and with depth, and at high learning
# rates also with size.
#
# **At night** it does so too, and with size at every learning rate: 64 times the parameters make it
# 3 times as large at LR 0.003 and 75 times at 0.3.
#
# **At `long`,** where λ · steps is the paper's, the stream is smaller at LR 0.003 than at night,
# but no flatter in size: four times the parameters make it 1.8 times as large there and 3.6 times
# at 0.3; at night it is 1.2 and 5.7 times, between the same two sizes.

# %%
block = min(2, swept["n_layers"].min() - 1)
by_block = [f"block_rms/{i}" for i in blocks]
panels = analysis.rms_panels(swept, deepest, curves, f"block_rms/{block}", by_block)
figure = plots.figure_rms(panels, "rms", "RMS of the block's output")
report.save(figure, "figC01_block_output_rms", panels, shown, this)

# %% [markdown]
# ## Figure E.13 · gradient and update RMS during training, over N and learning rate
#
# **Drawn.** The [gradient RMS and the update RMS](../../docs/glossary.md#gradient-rms) of the first
# MLP layer against the step, a row per size, a column per learning rate, a line per seed. ε is
# marked.
#
# **If the claim holds,** the gradient comes down towards ε from the upper left to the lower right,
# and where it gets there the update falls.
#
# **On the laptop** the gradient does come down, but nowhere near ε, and the update stays.
#
# **At night** it comes down further, at N 393K and LR 0.3 to 4e-6 a sixth of the way in, and rises
# again. The update stays, but for a dip in the warm-up of high learning rates.
#
# **At `long`** it is lowest a tenth of the way in, soon after the warm-up, and rises from there on
# as the learning rate falls. The update stays at 0.2 throughout.

# %%
observed = analysis.curves_of(analysis.where(swept, lr=this.upper), curves)
columns = ["key", "seed", "n_params", "lr", "step", checks.GRADIENT, checks.UPDATE]
figure = plots.figure_e13(observed, checks.GRADIENT, checks.UPDATE, eps)
report.save(figure, "figE13_update_rms", {"trajectories": observed[columns]}, swept, this)

# %% [markdown]
# ## Figure 12 · loss and gradient RMS for several ε
#
# **Drawn.** Training loss above, [gradient RMS](../../docs/glossary.md#gradient-rms) of block 0
# below, against the step: the largest size at LR 0.3, a color per ε. Left the paper's two ε, right
# the raised ones, which [force](../../docs/glossary.md#forced) the effect.
#
# **If the claim holds,** the smaller ε has the lower loss, and the larger one's gradient collapses.
#
# **On the laptop** the paper's two ε coincide, as gradients lie far above both. Of the raised ones
# the largest ends slightly worse, but its gradient is the larger one: nothing collapses.
#
# **At night** they coincide as well. The largest of the raised ones now does end worse than 1e-15,
# by 0.06 nats [0.01, 0.10], and its gradient is again the larger one.
#
# **At `long`** the paper's two coincide. The largest of the raised ones is ahead from the warm-up
# on and ends 0.04 nats lower [−0.05, 0.12], which decides nothing. One seed of ε = 1e-4 has a
# spike of a nat at step 9,000, and recovers.

# %%
groups = {
    "paper": (1e-15, 1e-8),
    "raised": (1e-15, 1e-5, 1e-4, 1e-3),
    "E.15": (1e-8, 1e-6),
}
ladder = analysis.where(table, method=[method for method in runs if method.startswith("ε")])
grouped = [analysis.where(ladder, eps=eps).assign(point=name) for name, eps in groups.items()]
observed = analysis.curves_of(pd.concat(grouped), curves)
columns = ["key", "seed", "method", "point", "step"]
titles = {"paper": "ε of the paper's Fig. 12", "raised": "raised ε: forced"}
quantities = {
    "loss": ("training loss (nats/token)", "linear"),
    checks.GRADIENT: ("gradient RMS, block 0", "log"),
}
figure = plots.figure_trajectories(observed, quantities, titles)
drawn = observed.loc[observed["point"].isin(titles), [*columns, *quantities]]
report.save(figure, "fig12_epsilon", {"trajectories": drawn}, ladder, this)

# %% [markdown]
# ## Figure E.15 · ε = 1e-6 against 1e-8
#
# **Drawn.** As Figure 12, for ε = 1e-6 and 1e-8: training loss and gradient RMS against the step.
#
# **If the claim holds,** the loss with ε = 1e-6 goes up where that with 1e-8 goes down.
#
# **On the laptop** the two coincide: even 1e-6 is far below the gradients.
#
# **At night** the losses coincide, although the gradient comes down to three times 1e-6, and the
# update with 1e-6 is a sixth smaller at the end.
#
# **At `long`** all coincides, as the gradient stays 40 times above 1e-6 or more.

# %%
pair = analysis.where(observed, point="E.15")
figure = plots.figure_trajectories(pair, quantities, {"E.15": "ε of the paper's Fig. E.15"})
drawn = pair[[*columns, *quantities]]
report.save(figure, "figE15_epsilon_1e-6", {"trajectories": drawn}, ladder, this)

# %% [markdown]
# ## Figure 13 · gradient and update RMS per ε, first and last block
#
# **Drawn.** Gradient RMS (upper two rows) and update RMS (lower two rows) of the first MLP layer
# against the step, in the first and in the last block: the runs of Figure 12, a color per ε.
#
# **If the claim holds,** the update is smaller for each ε that lies above the gradient.
#
# **On the laptop** the paper's two ε coincide; the raised ones order the updates as the claim says,
# in both blocks.
#
# **At night** the same, and over a wider range: ε = 1e-3 leaves 8 % of the update of block 0.
#
# **At `long`** the same; ε = 1e-3 leaves a third of the update at the end, a fifth where the
# gradient is lowest.

# %%
last = f"blocks/{ladder['n_layers'].max() - 1}/mlp_in/kernel"
quantities = {
    checks.GRADIENT: ("gradient RMS, block 0", "log"),
    f"grad_rms/{last}": ("gradient RMS, last block", "log"),
    checks.UPDATE: ("update RMS, block 0", "log"),
    f"update_rms/{last}": ("update RMS, last block", "log"),
}
figure = plots.figure_trajectories(observed, quantities, titles)
drawn = observed.loc[observed["point"].isin(titles), [*columns, *quantities]]
report.save(figure, "fig13_update_rms", {"trajectories": drawn}, ladder, this)

# %% [markdown]
# ## What we see at laptop scale
#
# Gradients fall with N and with the learning rate, as the paper says, but stay orders of magnitude
# above ε = 1e-8: what ε does can only be forced here. Raised to the size of the gradients, it
# shrinks updates as predicted, gradients do not collapse further, and whether the loss gets worse
# is within the spread of the seeds.
# The residual stream grows with the learning rate and with depth; here it also grows with N.
#
# ## What we see at night
#
# All of that, more clearly. Gradients fall with N in both layers that we look at, to 900 times ε
# at the largest size and learning rate. A forced ε costs loss, not only updates. What the paper
# does not see stays: the residual stream grows with N. Decay that acts over the training might hold
# it back; λ · steps is 0.19 here and 10 in the paper.
#
# ## What we see at `long`
#
# Gradients fall with N and with the learning rate as at night, and end no lower for 50 times the
# steps. That was predicted otherwise: that at LR 0.3 they come within a factor of 100 of ε = 1e-8,
# and that ε = 1e-6 costs loss. They end at 12,000 times ε, and ε = 1e-6 costs nothing. The batch
# may have a part in it: a step has a quarter of night's tokens, and gradients of fewer tokens are
# noisier, so larger.
#
# The residual stream grows with N here as well, as much as at night, so that missing decay was not
# the reason.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/science/checks` before the runs. A claim
# [holds](../../docs/glossary.md#verdict) only if the whole interval over seeds lies on the claimed
# side. It is contradicted if the whole interval lies on the other side, and
# [undecided](../../docs/glossary.md#undecided) if it includes the threshold.

# %%
verdicts = report.publish(checks.adamw_epsilon(table, curves, this), "08", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
