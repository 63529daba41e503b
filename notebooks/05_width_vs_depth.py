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
# **Question.** A model can grow by width or by depth. Which makes it more fragile, and which makes it better?
#
# **The paper** (section 3.2.3 and appendix E; Figures 7, E.2 and E.3) says: LR sensitivity rises faster with depth, but
# at the largest size the deep model has the lower loss. Without qk-layernorm both fail. Growing width and depth together
# gives the lowest loss at the largest size, and the best extrapolation from smaller ones.

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
# A series of sizes by width and one by depth, with and without qk-layernorm, over the window of learning rates; and a
# series of both together, at the upper learning rates, for the best loss only.

# %% tags=["grid"]
rest = {"lr": this.window, "seed": this.seeds}
series = {"by width": this.widths, "by depth": this.depths}
runs = {name: grid(this.base, {("d_model", "n_layers"): sizes} | rest) for name, sizes in series.items()}
off = replace(this.base, qk_norm="none")
runs |= {f"{name}, no qk-layernorm": grid(off, {("d_model", "n_layers"): sizes} | rest) for name, sizes in series.items()}
runs |= {"jointly": grid(this.base, {("d_model", "n_layers"): this.joint, "lr": this.upper, "seed": this.seeds})}

# %%
table, curves = sweep.collect(runs, this)
