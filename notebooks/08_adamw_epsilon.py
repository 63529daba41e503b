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
# **Question.** Gradients shrink as models grow. What happens when they come down to the ε in Adam's denominator?
#
# **The paper** (section 3.4 and appendices C and E; Figures 11, 12, 13, C.1, E.12, E.13 and E.15) says: the RMS of
# gradients falls with N and with the learning rate, towards ε = 1e-8, because the residual stream grows with the learning
# rate while gradients through LayerNorm shrink with its input. Once gradients are below ε, updates shrink. At 4.8B and LR
# 0.3, ε = 1e-15 improves the loss and keeps gradients alive; ε = 1e-6 diverges.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
from IPython.display import Markdown

from proxies_lib import analysis, claims, plots, sweep
from proxies_lib.config import grid, replace, study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# The default at every size and learning rate, shared with the other sections; the depth series for what depends on
# the block; and, at the largest size and LR 0.3, a range of ε. Gradients of small models lie far above 1e-8, so
# the larger ε of the range *force* what the paper saw happen by itself.

# %% tags=["grid"]
axes = {("d_model", "n_layers"): this.sizes, "lr": this.window, "seed": this.seeds}
runs = {"default": grid(this.base, axes), "by depth": grid(this.base, axes | {("d_model", "n_layers"): this.depths})}
d, n = this.sizes[-1]
largest = replace(this.base, d_model=d, n_layers=n, lr=0.3)
runs |= {f"ε = {eps:g}": grid(replace(largest, eps=eps), {"seed": this.seeds}) for eps in (1e-15, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3)}

# %%
table, curves = sweep.collect(runs, this)
