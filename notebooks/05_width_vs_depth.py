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

from proxies_lib.config import grid, replace
from proxies_lib.science import analysis, checks, plots, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# A series of sizes by width and one by depth, with and without qk-layernorm, over the window of learning rates; and a
# series of both together, at the upper learning rates, for the best loss only.

# %% tags=["grid"]
rest = {"lr": this.window, "seed": this.seeds}
series = {"by width": this.widths, "by depth": this.depths}
runs = {
    name: grid(this.base, {("d_model", "n_layers"): sizes} | rest) for name, sizes in series.items()
}
off = replace(this.base, qk_norm="none")
runs |= {
    f"{name}, no qk-layernorm": grid(off, {("d_model", "n_layers"): sizes} | rest)
    for name, sizes in series.items()
}
runs |= {
    "jointly": grid(
        this.base, {("d_model", "n_layers"): this.joint, "lr": this.upper, "seed": this.seeds}
    )
}

# %%
table, curves = report.collect(runs, this)

# %% tags=["nbval-check-output"]
print(
    f"{len(table)} rows, {table['key'].nunique()} runs, {table['n_params'].nunique()} sizes, {table['seed'].nunique()} seeds"
)
print(
    f"data {this.base.data}, {this.base.hparams.steps} steps of {this.base.train.batch_size} × {this.base.model.seq_len} tokens"
)

# %% [markdown]
# ## Figure 7 · width against depth

# %%
by, window = ["method", "n_params"], analysis.where(table, lr=this.window)
two = analysis.where(window, method=list(series))
loss, sensitivity = analysis.lr_curves(two, by), analysis.sensitivities(two, by, this)
figure = plots.figure_sweep(loss, sensitivity)
report.save(figure, "fig07_width_vs_depth", {"loss": loss, **sensitivity}, two, this)

# %% [markdown]
# ## Figure E.2 · the same without qk-layernorm

# %%
without = analysis.where(window, method=[f"{name}, no qk-layernorm" for name in series])
loss, sensitivity = analysis.lr_curves(without, by), analysis.sensitivities(without, by, this)
figure = plots.figure_sweep(loss, sensitivity)
report.save(figure, "figE02_width_vs_depth_no_qk", {"loss": loss, **sensitivity}, without, this)

# %% [markdown]
# ## Figure E.3 · the best loss of each series
#
# Points are means over seeds, bars their range. A dashed line is fitted to all but the largest size of its series: its
# distance from the last point is the error of extrapolating.

# %%
best = analysis.optimum(analysis.where(table, method=[*series, "jointly"]), by)
fits = analysis.extrapolated(best)
figure = plots.figure_best_loss(best, fits)
report.save(figure, "figE03_best_loss", {"best": best, "fits": fits}, table, this)

# %%
fits.groupby("method", sort=False)[["n_params", "slope", "error"]].mean().round(3)

# %% [markdown]
# ## What we see at laptop scale
#
# In a training this short depth does not pay: deeper models of one width have a *higher* best loss, width a lower one,
# and S falls with depth where the paper has it rise. Without qk-layernorm both series are clearly more sensitive.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/checks.py` before the runs. *Holds*: the whole interval over seeds
# lies on the claimed side.

# %%
verdicts = report.publish(checks.width_vs_depth(table, curves, this), "05", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
