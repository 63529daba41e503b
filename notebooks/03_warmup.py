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
# **The paper** (section 3.2.1; Figure 5) varies the warm-up from 0.05 % to 25 % of the training and says: a longer
# warm-up lowers LR sensitivity and loss, most of all for large models.

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
# Every size over the window of learning rates for each warm-up, as shares of the steps; 5 % is the default.

# %% tags=["grid"]
b = this.base
axes = {("d_model", "n_layers"): this.sizes, "lr": this.window, "seed": this.seeds}
warmups = {f"warm-up {100 * share:g} %": round(share * b.hparams.steps) for share in this.warmups}
runs = {name: grid(replace(b, warmup_steps=steps), axes) for name, steps in warmups.items()}

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
# ## Figure 5 · loss against learning rate, sensitivity against size

# %%
by = ["method", "n_params"]
loss, sensitivity = analysis.lr_curves(table, by), analysis.sensitivities(table, by, this)
figure = plots.figure_sweep(loss, sensitivity)
report.save(figure, "fig05_warmup", {"loss": loss, **sensitivity}, table, this)

# %% [markdown]
# S, in nats, for each warm-up and size; and the best loss over the learning rates.

# %%
first = next(iter(sensitivity.values()))
first.pivot(index="method", columns="n_params", values="S").loc[list(warmups)].round(3)

# %%
best = analysis.optimum(table, by)
best.pivot_table(index="method", columns="n_params", values="best_loss").loc[list(warmups)].round(3)

# %% [markdown]
# ## What we see at laptop scale
#
# A longer warm-up lowers LR sensitivity, and the best loss too, at every size. Whether the largest gains most cannot
# be told apart with three sizes and seeds.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/checks.py` before the runs. *Holds*: the whole interval over seeds
# lies on the claimed side.

# %%
verdicts = report.publish(checks.warmup(table, curves, this), "03", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
