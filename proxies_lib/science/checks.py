"""What the papers claim, a function per section: measures and thresholds, fixed before the runs were made.

Every function takes the section's runs, their curves and the study, and returns rows of `claims.check`.
"""

import numpy as np
import pandas as pd

from proxies_lib import config
from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.claims import HOLDS, check
from proxies_lib.science.protocol import Study

PAPER_TOP_LR = 0.3

PAPER_LOGIT = 1e4  # beyond this max |attention logit| every run of P1 failed (Fig. 9)

CATASTROPHE = 1e3  # max |attention logit| that training without qk-layernorm passes where it fails

PROBE = 0.02  # share of the training at which Fig. 9 looks: step 2e3 of 1e5

SMALL = 0.05  # nats per token: below this a difference of losses, or of S, is no improvement

SAME_SHAPE = 0.05  # share of the learning: curves that differ by less have the same shape

DECAY_ACTS = 1.0  # below this λ · steps (10 in P1) weight decay has shrunk nothing by the end

FAR_FROM_EPS = 10.0  # a gradient RMS this many times ε does not feel ε

BY = ["method", "n_params"]

LOGIT, GRADIENT, UPDATE = (
    "max_attention_logit/0",
    "grad_rms/blocks/0/mlp_in/kernel",
    "update_rms/blocks/0/mlp_in/kernel",
)

KEY_GRADIENT = "grad_rms/blocks/0/attention/key/kernel"


def _series(frame: pd.DataFrame, value: str, **values) -> pd.Series:
    """`value` of the rows selected by `values`, by seed and N: subtraction then pairs equal seeds and sizes."""
    return where(frame, **values).set_index(["seed", "n_params"])[value]


def _per_seed(series: pd.Series, how: str = "mean") -> np.ndarray:
    return series.groupby("seed").agg(how).to_numpy()


def _loss_at(table: pd.DataFrame, **values) -> pd.Series:
    """min(ℓ, ℓ0) of the selected runs, by seed and LR."""
    return where(analysis.with_loss(table), **values).set_index(["seed", "lr"])["loss"]


def attention_logit_growth(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 1, 2 and E.1 (P1, section 3.1.1 and appendix E)."""
    on, off = "with qk-layernorm", "without qk-layernorm"
    largest = table["n_params"].max()
    excess = analysis.excess_loss(table, BY)
    failing = analysis.diverging_lr(where(table, method=off), BY)
    slope = analysis.slopes(failing.assign(log_lr=np.log10(failing["diverging_lr"])), "log_lr")
    s = analysis.lr_sensitivity_per_seed(table, BY, study.window)
    ratio = _series(s, "S", method=off, n_params=largest) / _series(
        s, "S", method=on, n_params=largest
    )
    rows = [
        *(
            check(
                f"1-stable-{lr:g}",
                "1",
                "With qk-layernorm the largest model still trains at a very high LR, 0.3.",
                f"share of the learning lost at LR {lr:g}, N {largest:,}",
                where(excess, method=on, n_params=largest, lr=lr)["excess"],
                "below",
                analysis.FAILURE,
                note=""
                if lr == PAPER_TOP_LR
                else "the top of this scale's shifted window, not the paper's 0.3",
            )
            for lr in dict.fromkeys((min(PAPER_TOP_LR, max(study.lrs)), max(study.window)))
        ),
        check(
            "1-diverging-lr",
            "1",
            "Without qk-layernorm the LR that diverges falls as N grows.",
            "slope of log10 diverging LR per decade of N",
            slope,
            "below",
            0.0,
        ),
        check(
            "1-rises-off",
            "1",
            "LR sensitivity rises with N without qk-layernorm.",
            "slope of S per decade of N, nats",
            analysis.slopes(where(s, method=off), "S"),
            "above",
            0.0,
        ),
        check(
            "1-rises-on",
            "1",
            "LR sensitivity rises with N with qk-layernorm too.",
            "slope of S per decade of N, nats",
            analysis.slopes(where(s, method=on), "S"),
            "above",
            0.0,
        ),
        check(
            "1-ratio",
            "1",
            "qk-layernorm lowers LR sensitivity, about 25 times at 19M in the paper.",
            f"S without / S with, N {largest:,}",
            _per_seed(ratio),
            "above",
            1.0,
        ),
        check(
            "1-coincide",
            "1",
            "Below a critical LR the curves with and without qk-layernorm coincide.",
            "mean |difference| / learning, LRs below a third of the diverging LR",
            _coincidence(where(excess, method=off), where(excess, method=on), failing),
            "below",
            SAME_SHAPE,
        ),
    ]
    points = analysis.at(table, study.figure2)
    observed = analysis.curves_of(points, curves)
    for i, (d_model, n_layers, lr) in enumerate(study.figure2):
        here, name = f"d {d_model}, {n_layers} layers, LR {lr:g}", "abcdefgh"[i]
        mine = where(observed, point=i)
        lost = where(excess, d_model=d_model, n_layers=n_layers, lr=lr)
        top = np.log10(mine.groupby(["method", "seed"])[LOGIT].max())
        rows += [
            check(
                f"2{name}-logit-off",
                "2",
                "Without qk-layernorm the attention logits of layer 0 grow out of bounds.",
                f"log10 max |attention logit|, {here}",
                top[off],
                "above",
                np.log10(CATASTROPHE),
            ),
            check(
                f"2{name}-logit-on",
                "2",
                "With qk-layernorm they do not.",
                f"log10 max |attention logit|, {here}",
                top[on],
                "below",
                np.log10(CATASTROPHE),
            ),
            check(
                f"2{name}-fails-off",
                "2",
                "Without qk-layernorm training diverges there.",
                f"share of the learning lost, {here}",
                where(lost, method=off)["excess"],
                "above",
                analysis.FAILURE,
            ),
            check(
                f"2{name}-fails-on",
                "2",
                "With qk-layernorm it does not.",
                f"share of the learning lost, {here}",
                where(lost, method=on)["excess"],
                "below",
                analysis.FAILURE,
            ),
            check(
                f"E1{name}-norm",
                "E.1",
                "The logits grow by the norms of q and k, not by their alignment.",
                f"share of the growth due to norms, {here}",
                _norm_share(where(mine, method=off)),
                "above",
                0.5,
            ),
        ]
    return rows


def _coincidence(off, on, failing) -> np.ndarray:
    both = off.merge(on, on=["n_params", "lr", "seed"], suffixes=("_off", "_on"))
    critical = failing.set_index(["n_params", "seed"])["diverging_lr"]
    limit = critical.reindex(pd.MultiIndex.from_frame(both[["n_params", "seed"]])).to_numpy() / 3
    both = both[both["lr"].to_numpy() < np.where(np.isnan(limit), np.inf, limit)]
    learned = both["init_loss_off"] - both.groupby(["n_params", "seed"])["loss_off"].transform(
        "min"
    )
    gap = (both["loss_off"] - both["loss_on"]).abs() / learned
    return gap.groupby(both["seed"]).mean().to_numpy()


def _norm_share(observed: pd.DataFrame) -> np.ndarray:
    """Per seed, Δlog(‖q‖‖k‖) over |Δlog(‖q‖‖k‖)| + |Δlog cosine|, from the first to the last logged point."""
    shares = []
    for _, curve in observed.groupby("seed"):
        ends = curve.sort_values("step").iloc[[0, -1]]
        norms = np.diff(np.log(ends["q_norm/0"] * ends["k_norm/0"]))[0]
        cosine = abs(np.diff(np.log(ends["qk_cosine/0"]))[0])
        shares.append(norms / (abs(norms) + cosine))
    return np.array(shares)


def z_loss(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 3 and 4 (P1, section 3.1.2)."""
    neither, z_only, both = "no decay, no z-loss", "no decay, z-loss", "decay, z-loss"
    base, largest = study.base.hparams, table["n_params"].max()
    swept = same_as_base(table, study)
    s = analysis.lr_sensitivity_per_seed(swept, BY, study.window)
    gap = _series(s, "S", method=neither) - _series(s, "S", method=z_only)
    harm = check(
        "3-neither",
        "3",
        "Without decay and without z-loss training fails at high LR at every N; with z-loss not.",
        "S without either − S with z-loss, least over N, nats",
        _per_seed(gap, "min"),
        "above",
        SMALL,
    )
    nothing = (
        ""
        if harm["verdict"] == HOLDS
        else "there is nothing to repair: without either, training is as stable"
    )
    repaired = _series(s, "S", method=z_only) - _series(s, "S", method=both)
    rows = [
        harm,
        check(
            "3-z-loss",
            "3",
            "z-loss alone repairs it at every N.",
            "S with z-loss only − S with both, largest over N, nats",
            _per_seed(repaired, "max"),
            "below",
            SMALL,
            unless=nothing,
        ),
    ]
    for name, arm, decay in (
        ("decay", "decay, no z-loss", base.weight_decay),
        ("matched", "matched decay, no z-loss", study.matched_decay),
    ):
        gain = _series(s, "S", method=neither, n_params=largest) - _series(
            s, "S", method=arm, n_params=largest
        )
        rows.append(
            check(
                f"3-{name}",
                "3",
                "Weight decay alone repairs it for larger N.",
                f"S without either − S with λ = {decay:g}, N {largest:,}, nats",
                _per_seed(gain),
                "above",
                SMALL,
                unless=nothing or _decays_nothing(decay, study),
            )
        )
    return rows + _drift(
        where(table, steps=table["steps"].max(), method=[neither, z_only]), curves, neither, z_only
    )


def _decays_nothing(decay: float, study: Study) -> str:
    """Why an independent `decay` cannot be tested in trainings of this length, or nothing."""
    acts = decay * study.base.hparams.steps
    return (
        ""
        if acts >= DECAY_ACTS
        else f"λ · steps is {acts:.2g} here, 10 in the paper: λ = {decay:g} does nothing"
    )


def same_as_base(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs of the base's steps, vocabulary, precision and batch."""
    flat = config.flat(study.base)
    return where(
        table,
        **{name: flat[name] for name in ("steps", "vocab_size", "compute_dtype", "batch_size")},
    )


def _drift(longest: pd.DataFrame, curves: pd.DataFrame, neither: str, z_only: str) -> list[dict]:
    here = f"LR {longest['lr'].iloc[0]:g}, {longest['steps'].iloc[0]} steps"
    observed = analysis.curves_of(
        where(longest, lr=0.1, n_params=longest["n_params"].min()), curves
    )
    groups = observed.groupby(["method", "seed"])["mean_output_logit"]
    last, half = groups.last(), groups.apply(lambda x: x.iloc[len(x) // 2])
    lost = analysis.with_loss(where(longest, lr=0.1, n_params=longest["n_params"].min())).set_index(
        ["method", "seed"]
    )["loss"]
    return [
        check(
            "4-drift",
            "4",
            "Without z-loss the output logits drift to very negative values.",
            f"mean output logit at the end, {here}",
            last[neither],
            "below",
            -10.0,
        ),
        check(
            "4-late",
            "4",
            "The drift is late in training.",
            f"share of the drift in the second half, {here}",
            1 - half[neither] / last[neither],
            "above",
            0.5,
        ),
        check(
            "4-z-loss",
            "4",
            "z-loss keeps them near zero.",
            f"mean output logit at the end, with / without z-loss, {here}",
            last[z_only] / last[neither],
            "below",
            0.5,
        ),
        check(
            "4-harm",
            "4",
            "The drift harms: without z-loss the loss is higher.",
            f"final loss without − with z-loss, nats, {here}",
            lost[neither] - lost[z_only],
            "above",
            SMALL,
        ),
    ]


def warmup(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figure 5 (P1, section 3.2.1)."""
    runs = table.assign(share=table["warmup_steps"].clip(lower=0.5) / table["steps"])
    by = ["method", "share", "n_params"]
    s = analysis.lr_sensitivity_per_seed(runs, by, study.window)
    best = analysis.optimum(runs, by)
    ends = [
        analysis.slopes(where(s, n_params=n), "S", "share")
        for n in (runs["n_params"].max(), runs["n_params"].min())
    ]
    per_decade = "per decade of warm-up, nats"
    return [
        check(
            "5-sensitivity",
            "5",
            "A longer warm-up lowers LR sensitivity.",
            f"slope of S {per_decade}, mean over N",
            analysis.slopes(s, "S", "share"),
            "below",
            0.0,
        ),
        check(
            "5-loss",
            "5",
            "A longer warm-up lowers the loss.",
            f"slope of the best loss {per_decade}, mean over N",
            analysis.slopes(best, "best_loss", "share"),
            "below",
            0.0,
        ),
        check(
            "5-large",
            "5",
            "It does so most of all for large N.",
            f"slope of S {per_decade}: largest − smallest N",
            ends[0] - ends[1],
            "below",
            0.0,
        ),
    ]


def weight_decay(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 6 and E.10 (P1, section 3.2.2 and appendix E). The coupled arm gets the better of two windows."""
    independent, coupled = (
        where(table, method=m) for m in ("independent decay 1e-4", "coupled decay 0.1")
    )
    lower = study.lrs[: len(study.window)]
    s_coupled = np.minimum(
        *(
            _series(analysis.lr_sensitivity_per_seed(coupled, BY, w), "S")
            for w in (study.window, lower)
        )
    )
    s_independent = _series(analysis.lr_sensitivity_per_seed(independent, BY, study.window), "S")
    swept = where(table, method=["decay 1e-4", "a tenth of matched decay", "matched decay"])
    best = analysis.optimum(swept, ["method", "weight_decay", "n_params"])
    return [
        check(
            "6-independent",
            "6",
            "Independent decay has a lower LR sensitivity than coupled decay.",
            "S coupled − S independent, mean over N, nats",
            _per_seed(s_coupled - s_independent),
            "above",
            0.0,
            unless=_decays_nothing(study.base.hparams.weight_decay, study),
        ),
        check(
            "E10-shift",
            "E.10",
            "More decay moves the best LR slightly to the right.",
            "slope of log10 best LR per decade of λ, mean over N",
            analysis.slopes(
                best.assign(log_lr=np.log10(best["best_lr"])), "log_lr", "weight_decay"
            ),
            "above",
            0.0,
        ),
    ]


def width_vs_depth(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 7, E.2 and E.3 (P1, section 3.2.3 and appendix E)."""
    width, depth, joint = "by width", "by depth", "jointly"
    s = analysis.lr_sensitivity_per_seed(
        where(table, method=[m for m in table["method"].unique() if m != joint]), BY, study.window
    )
    steeper = analysis.slopes(where(s, method=depth), "S") - analysis.slopes(
        where(s, method=width), "S"
    )
    best = analysis.optimum(where(table, method=[width, depth, joint]), BY)
    top = {
        m: where(best, method=m, n_params=where(best, method=m)["n_params"].max()).set_index(
            "seed"
        )["best_loss"]
        for m in (width, depth)
    }
    common = min(where(best, method=m)["n_params"].max() for m in (width, depth, joint))
    there = {m: _interpolated(where(best, method=m), common) for m in (width, depth, joint)}
    error = analysis.extrapolated(best).set_index(["seed", "method"])["error"].abs().unstack()
    rows = [
        check(
            "7-steeper",
            "7",
            "LR sensitivity rises faster with depth than with width.",
            "slope of S per decade of N: depth − width, nats",
            steeper,
            "above",
            0.0,
        ),
        check(
            "7-loss",
            "7",
            "At the largest size the deep model has the lower loss.",
            "best loss, depth − width, nats",
            top[depth] - top[width],
            "below",
            0.0,
        ),
    ]
    for name, m in (("width", width), ("depth", depth)):
        n = where(table, method=m)["n_params"].max()
        gap = _series(s, "S", method=f"{m}, no qk-layernorm", n_params=n) - _series(
            s, "S", method=m, n_params=n
        )
        rows.append(
            check(
                f"E2-{name}",
                "E.2",
                "Without qk-layernorm training is unstable whichever is scaled.",
                f"S without − S with qk-layernorm, largest {m}, nats",
                _per_seed(gap),
                "above",
                SMALL,
            )
        )
    return [
        *rows,
        check(
            "E3-best",
            "E.3",
            "Growing both together gives the lowest loss at the largest size.",
            f"best loss, jointly − the better of width and depth, at N {common:,}, nats",
            there[joint] - np.minimum(there[width], there[depth]),
            "below",
            0.0,
            note="where a series has no model of this N, its loss is interpolated in log N",
        ),
        check(
            "E3-extrapolates",
            "E.3",
            "It also extrapolates best from smaller sizes.",
            "|error| of a line through all but the largest size: jointly − the better of the others, nats",
            error[joint] - error[[width, depth]].min(axis=1),
            "below",
            0.0,
        ),
    ]


def _interpolated(best: pd.DataFrame, n: float) -> np.ndarray:
    """Per seed, the best loss at `n`, piecewise linear in log N."""
    ordered = best.sort_values("n_params").groupby("seed")
    return np.array(
        [np.interp(np.log(n), np.log(rest["n_params"]), rest["best_loss"]) for _, rest in ordered]
    )


def mu_param(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 8, E.4, E.5, E.6 and E.14 (P1, section 3.2.4 and appendix E)."""
    standard, simple, full, power = (
        "standard",
        "µParam (simple)",
        "µParam (full)",
        "logits / d_head",
    )
    off = ", no qk-layernorm"
    smallest, largest = table["n_params"].min(), table["n_params"].max()
    best = analysis.optimum(table, BY)
    drift = {
        m: np.abs(
            analysis.slopes(
                where(best, method=m).assign(log_lr=lambda f: np.log10(f["best_lr"])), "log_lr"
            )
        )
        for m in (standard, simple, "LR × RMS")
    }
    s = analysis.lr_sensitivity_per_seed(
        where(table, method=[standard, simple, standard + off, simple + off]), BY, study.window
    )
    in_upper = analysis.optimum(where(table, lr=study.upper), BY)

    def gain(frame, value, a, b, n=largest):
        return _per_seed(
            _series(frame, value, method=a, n_params=n)
            - _series(frame, value, method=b, n_params=n)
        )

    top = max(study.window)
    lost = analysis.excess_loss(where(table, method=full), BY)
    upper_mean = (
        where(analysis.with_loss(table), lr=study.upper)
        .groupby([*BY, "seed"], as_index=False)["loss"]
        .mean()
    )
    here, moves = f"at N {largest:,}, nats", "|slope| of log10 best LR per decade of N"
    return [
        check(
            "8-optimum",
            "8",
            "With µParam the best LR stops moving.",
            f"{moves}: standard − µParam",
            drift[standard] - drift[simple],
            "above",
            0.0,
        ),
        check(
            "8-loss",
            "8",
            "The loss does not improve.",
            f"best loss, standard − µParam, {here}",
            gain(best, "best_loss", standard, simple),
            "below",
            SMALL,
        ),
        check(
            "8-sensitivity",
            "8",
            "LR sensitivity does not improve.",
            f"S standard − S µParam, {here}",
            gain(s, "S", standard, simple),
            "below",
            SMALL,
        ),
        check(
            "E4-replace",
            "E.4",
            "µParam does not replace qk-layernorm.",
            f"S of µParam without − S of standard with qk-layernorm, {here}",
            gain(s, "S", simple + off, standard),
            "above",
            SMALL,
        ),
        check(
            "E5-survives",
            "E.5",
            "Full µParam with qk-layernorm survives LR 1.",
            f"share of the learning lost at LR {top:g}, N {largest:,}",
            where(lost, lr=top)["excess"],
            "below",
            analysis.FAILURE,
            note="" if top == 1.0 else "the top of this scale's window, not 1",
        ),
        check(
            "E5-gain",
            "E.5",
            "It gains nothing at the best LR.",
            f"best loss, standard − full µParam, {here}",
            gain(best, "best_loss", standard, full),
            "below",
            SMALL,
        ),
        check(
            "E6-smallest",
            "E.6",
            "Scaling logits by 1/d_head is slightly better at the smallest N.",
            f"best loss, 1/√d_head − 1/d_head, at N {smallest:,}, nats",
            gain(in_upper, "best_loss", standard, power, smallest),
            "above",
            0.0,
        ),
        check(
            "E6-largest",
            "E.6",
            "It is worse at the largest N.",
            f"best loss, 1/d_head − 1/√d_head, {here}",
            gain(in_upper, "best_loss", power, standard),
            "above",
            0.0,
        ),
        check(
            "E6-replace",
            "E.6",
            "It does not replace qk-layernorm.",
            f"mean loss over the upper LRs, 1/d_head without − 1/√d_head with qk-layernorm, {here}",
            gain(upper_mean, "loss", power + off, standard),
            "above",
            SMALL,
        ),
        check(
            "E14-optimum",
            "E.14",
            "With LR × max(RMS, 1e-3) the best LR stabilizes.",
            f"{moves}: standard − LR × RMS",
            drift[standard] - drift["LR × RMS"],
            "above",
            0.0,
        ),
    ]


def predicting_logit_growth(
    points: dict, scores: dict, kappa: pd.DataFrame, bigram: pd.DataFrame
) -> list[dict]:
    """Figures 9 and 10 (P1, section 3.3). `points` and `scores` are by probe, of `analysis.probe` and `analysis.score`."""
    rows = []
    for name, (title, probed) in zip(("", "-half"), points.items(), strict=True):
        beyond = probed[probed[LOGIT] > PAPER_LOGIT]
        score = scores[title].groupby("seed")
        rows += [
            check(
                f"9-beyond{name}",
                "9",
                "Every run whose max attention logit passed 1e4 fails.",
                f"share of them that fails, {title}",
                beyond.groupby("seed")["failed"].mean(),
                "above",
                0.99,
                unless=""
                if beyond["seed"].nunique() == probed["seed"].nunique()
                else f"the largest logit then is {probed[LOGIT].max():.3g}",
            ),
            check(
                f"9-logit{name}",
                "9",
                "The fit on smaller models predicts the logit of a larger one.",
                f"share of the held-out runs inside the 95 % prediction interval, {title}",
                score["inside"].mean(),
                "above",
                0.8,
            ),
            check(
                f"9-failure{name}",
                "9",
                "It predicts at which LRs the larger one fails.",
                f"share of the LRs where (predicted logit > 1e4) = (held-out run fails), {title}",
                score["foretold"].mean(),
                "above",
                0.8,
            ),
        ]
    loss = analysis.with_loss(kappa).set_index(["seed", "kappa"])["loss"].unstack()
    reference = analysis.with_loss(bigram).set_index("seed")["loss"]
    weak = (
        ""
        if (loss[1.0] < reference).all()
        else "the model is no better than the bigram model at κ = 1 either"
    )
    return [
        *rows,
        check(
            "10-worse",
            "10",
            "Forced logits make a model worse from κ ≈ 1e3.",
            "final loss at κ 1e3 − at κ 1, nats",
            loss[1e3] - loss[1.0],
            "above",
            SMALL,
        ),
        check(
            "10-bigram",
            "10",
            "At κ = 1e4 it is worse than a bigram model.",
            "final loss at κ 1e4 − bigram, nats",
            loss[1e4] - reference,
            "above",
            0.0,
            unless=weak,
        ),
    ]


def adamw_epsilon(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 11, 12, 13, C.1, E.12, E.13 and E.15 (P1, section 3.4, appendices C and E)."""
    swept, eps = where(table, method="default"), study.base.hparams.eps
    largest = swept["n_params"].max()
    rows = []
    for figure, name, what in (
        ("11", GRADIENT, "first MLP layer of block 0"),
        ("E.12", KEY_GRADIENT, "key projection of block 0"),
    ):
        seen = analysis.late(swept, curves, [name])
        seen = seen.assign(y=np.log10(seen[name]))
        rows += [
            check(
                f"{figure}-n",
                figure,
                "Gradient RMS falls as N grows.",
                f"slope of log10 RMS per decade of N, {what}, mean over LRs",
                analysis.slopes(seen, "y"),
                "below",
                0.0,
            ),
            check(
                f"{figure}-lr",
                figure,
                "Gradient RMS falls as the LR grows.",
                f"slope of log10 RMS per decade of LR, {what}, N {largest:,}",
                analysis.slopes(where(seen, n_params=largest), "y", "lr"),
                "below",
                0.0,
            ),
        ]
    return rows + _block_output(table, swept, curves, largest) + _epsilon_ladder(table, curves, eps)


def _block_output(table, swept, curves, largest) -> list[dict]:
    block = min(2, swept["n_layers"].min() - 1)
    seen = analysis.late(swept, curves, [f"block_rms/{block}"]).assign(
        y=lambda f: np.log10(f[f"block_rms/{block}"])
    )
    deep = where(
        table, method="by depth", n_layers=where(table, method="by depth")["n_layers"].max()
    )
    blocks = analysis.late(
        deep, curves, [f"block_rms/{i}" for i in range(deep["n_layers"].iloc[0])]
    )
    blocks = blocks.melt(["seed", "lr"], [c for c in blocks if c.startswith("block_rms/")], "block")
    blocks = blocks.assign(
        block=blocks["block"].str.removeprefix("block_rms/").astype(int) + 1,
        y=np.log10(blocks["value"]),
    )
    return [
        check(
            "C1-n",
            "C.1",
            "The RMS of a block's output does not change with N.",
            f"|slope| of log10 RMS per decade of N, block {block}, mean over LRs",
            np.abs(analysis.slopes(seen, "y")),
            "below",
            0.1,
        ),
        check(
            "C1-lr",
            "C.1",
            "It grows with the LR.",
            f"slope of log10 RMS per decade of LR, block {block}, N {largest:,}",
            analysis.slopes(where(seen, n_params=largest), "y", "lr"),
            "above",
            0.0,
        ),
        check(
            "C1-depth",
            "C.1",
            "It grows with depth.",
            "slope of log10 RMS per decade of the block's number, deepest model",
            analysis.slopes(blocks, "y", "block"),
            "above",
            0.0,
        ),
    ]


def _epsilon_ladder(table, curves, eps) -> list[dict]:
    ladder = where(table, method=[m for m in table["method"].unique() if m.startswith("ε")])
    seen = analysis.with_loss(ladder).merge(
        analysis.late(ladder, curves, [GRADIENT, UPDATE])[["key", GRADIENT, UPDATE]], on="key"
    )
    at = {e: rest.set_index("seed") for e, rest in seen.groupby("eps")}
    tiny, raised = min(at), max(at)
    share = float((at[eps][GRADIENT] / eps).median())
    far = (
        ""
        if share < FAR_FROM_EPS
        else f"gradient RMS is {share:.2g} × ε here: nothing comes near ε = {eps:g}"
    )
    share = float((at[1e-6][GRADIENT] / 1e-6).median())
    far_raised = (
        ""
        if share < FAR_FROM_EPS
        else f"gradient RMS is {share:.2g} × 1e-6 here: nothing comes near it"
    )
    forced = f"forced: ε {raised:g} against {tiny:g}"
    return [
        check(
            "12-loss",
            "12",
            "A smaller ε improves the loss where gradients have come down to it.",
            f"final loss at ε {eps:g} − at ε {tiny:g}, nats",
            at[eps]["loss"] - at[tiny]["loss"],
            "above",
            0.0,
            unless=far,
        ),
        check(
            "12-gradient",
            "12",
            "A smaller ε prevents the collapse of the gradient RMS.",
            f"gradient RMS at ε {tiny:g} / at ε {eps:g}",
            at[tiny][GRADIENT] / at[eps][GRADIENT],
            "above",
            1.1,
            unless=far,
        ),
        check(
            "12-forced",
            "12",
            "A smaller ε improves the loss where gradients have come down to it.",
            f"final loss, {forced}, nats",
            at[raised]["loss"] - at[tiny]["loss"],
            "above",
            0.0,
            note="forced by raising ε",
        ),
        check(
            "13-update",
            "13",
            "Updates shrink once the gradient RMS is below ε.",
            f"update RMS, first MLP layer of block 0, ratio, {forced}",
            at[raised][UPDATE] / at[tiny][UPDATE],
            "below",
            0.5,
            note="forced by raising ε",
        ),
        check(
            "E13-update",
            "E.13",
            "The update falls where the gradient RMS nears ε.",
            "slope of log10 update RMS per decade of gradient RMS / ε, all ε",
            _update_slope(seen),
            "above",
            0.0,
            note="forced by raising ε",
        ),
        check(
            "E15-diverges",
            "E.15",
            "ε = 1e-6 diverges where 1e-8 trains.",
            f"final loss at ε 1e-6 − at ε {eps:g}, nats",
            at[1e-6]["loss"] - at[eps]["loss"],
            "above",
            SMALL,
            unless=far_raised,
        ),
    ]


def _update_slope(seen: pd.DataFrame) -> np.ndarray:
    near = seen.assign(ratio=seen[GRADIENT] / seen["eps"], y=np.log10(seen[UPDATE]))
    return analysis.slopes(near[near["ratio"] < 1e3], "y", "ratio")


def additional_interventions(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures E.7, E.8, E.9 and E.11 (P1, appendix E)."""
    excess = analysis.excess_loss(table, BY)
    rows = []
    for figure, what, default, others in (
        ("E.7", "steps", "1 × steps", ("0.5 × steps", "2 × steps")),
        ("E.9", "batch", "batch × 1", ("batch × 2", "batch × 4")),
    ):
        for other in others:
            a, b = (
                where(excess, method=m).set_index(["seed", "n_params", "lr"])["excess"]
                for m in (other, default)
            )
            rows.append(
                check(
                    f"{figure}-{other.replace(' ', '')}",
                    figure,
                    f"The shape of loss against LR does not depend on the {what}"
                    + (" at constant tokens." if what == "batch" else "."),
                    f"mean |difference of the share of the learning lost|, {other}",
                    _per_seed((a - b).abs()),
                    "below",
                    SAME_SHAPE,
                )
            )
    best = analysis.optimum(
        where(table, method=["qk-layernorm per head", "qk-layernorm whole"]), BY
    )
    largest = best["n_params"].max()
    gap = _series(best, "best_loss", method="qk-layernorm whole", n_params=largest) - _series(
        best, "best_loss", method="qk-layernorm per head", n_params=largest
    )
    lr = PAPER_TOP_LR if PAPER_TOP_LR in study.upper else max(study.upper)
    pointwise = where(table, method="squared_relu attention", lr=lr)
    pointwise = where(pointwise, n_params=pointwise["n_params"].max())
    logits = analysis.curves_of(pointwise, curves).groupby("seed")[LOGIT]
    return [
        *rows,
        check(
            "E8-per-head",
            "E.8",
            "qk-layernorm per head is slightly better than over the whole width.",
            f"best loss, whole − per head, N {largest:,}, nats",
            _per_seed(gap),
            "above",
            0.0,
        ),
        check(
            "E11-growth",
            "E.11",
            "Attention logits grow without softmax too.",
            f"log10 of largest / first max |attention logit|, pointwise attention, LR {lr:g}",
            np.log10(logits.max() / logits.first()),
            "above",
            1.0,
        ),
    ]


EXPLODES = 0.5  # nats above the loss before: a spike

TENSOR = "blocks/0/mlp_in"  # of the histograms: the early layer that P2 is about


def adam_instability(
    simulated, table, observed, spikes: pd.DataFrame, begin: int, window: int
) -> list[dict]:
    """P2, and three questions of this project. `simulated` is adam.by_seed; `observed` the curves, with `dip`, that of r of
    TENSOR; `spikes` are analysis.spikes of a burst that begins at `begin`, `window` the steps it took. A layer has two
    modes where its dip is above that of the simulation at ρ = adam.CORRELATED."""
    default, raised, large = "ε = 1e-8", "ε = 1e-3", "ε = 1e-3, batch × 8"
    quiet, raised_quiet = f"{default}, no burst", f"{raised}, no burst"
    steady = {
        name: analysis.before(observed, begin, window, name)
        for name in (GRADIENT, UPDATE, f"gradient_cosine/{TENSOR}")
    }
    cosine = steady[f"gradient_cosine/{TENSOR}"]
    at_burst = where(observed, step=begin).set_index(["method", "seed"])[UPDATE]
    two_modes = observed["dip"] > simulated["dip"].mean()
    modes = two_modes.groupby([observed["method"], observed["seed"]]).mean()
    height = spikes.set_index(["method", "seed"])["height"]
    final = analysis.with_loss(table).set_index(["method", "seed"])["loss"]
    forced = "forced by raising ε"
    rows = [
        check(
            "P2-std",
            "P2.ratio",
            "Gradients independent in time: std of r is √((1−β1)/(1+β1)).",
            "|simulated / closed form − 1|, β = (0.9, 0.999)",
            (simulated["std"] / simulated["closed_form"] - 1).abs(),
            "below",
            0.02,
        ),
        check(
            "P2-bimodal",
            "P2.ratio",
            "Correlated in time they make r bimodal, from ρ ≈ 0.3 on.",
            "first share ρ that the dip test rejects, β = (0.9, 0.95)",
            simulated["rho"],
            "below",
            0.35,
            note="with 5,000 coordinates; the test sees it at 0.3 with 50,000",
        ),
        check(
            "P2-1-stable",
            "P2.histograms",
            "Stage 1: in stable training updates have one mode.",
            f"share of points whose r has two modes, {TENSOR}",
            modes[quiet],
            "below",
            0.1,
        ),
        check(
            "P2-2-below",
            "P2.stages",
            "Stage 2: gradients of early layers fall below ε.",
            f"gradient RMS / ε before the burst, {TENSOR}",
            steady[GRADIENT][raised] / 1e-3,
            "below",
            1.0,
            note=forced,
        ),
        check(
            "P2-3-frozen",
            "P2.stages",
            "Stage 3: their updates collapse.",
            "update RMS before the burst, raised ε / default",
            steady[UPDATE][raised] / steady[UPDATE][default],
            "below",
            0.5,
            note=forced,
        ),
        check(
            "P2-4-correlated",
            "P2.stages",
            "Stage 4: frozen layers' gradients correlate in time.",
            "cosine of successive gradients before the burst, raised ε − default",
            cosine[raised] - cosine[default],
            "above",
            0.0,
            note=forced,
        ),
        check(
            "P2-4-batch",
            "P2.stages",
            "Stage 4: so do those of a large batch.",
            "cosine of successive gradients, batch × 8 − batch",
            cosine[large] - cosine[raised],
            "above",
            0.0,
            note=forced,
        ),
        check(
            "P2-5-snap",
            "P2.stages",
            "Stage 5: a rare batch lifts the updates of the frozen layers.",
            "update RMS at the burst / before",
            at_burst[raised] / steady[UPDATE][raised],
            "above",
            2.0,
            note=forced,
        ),
        check(
            "P2-5-spike",
            "P2.stages",
            "Stage 5: the loss explodes.",
            "height of the spike, burst − no burst, nats",
            height[raised] - height[raised_quiet],
            "above",
            EXPLODES,
            note=forced,
        ),
        check(
            "P2-5-epsilon",
            "P2.stages",
            "Frozen layers make the spike higher.",
            "height of the spike, raised ε − default, nats",
            height[raised] - height[default],
            "above",
            0.0,
            note=forced,
        ),
        check(
            "P2-6-returns",
            "P2.stages",
            "Stage 6: the loss comes back.",
            "final loss, burst − no burst, nats",
            final[raised] - final[raised_quiet],
            "below",
            SMALL,
            note=forced,
        ),
    ]
    remedies = {
        "lr": ("LR / 3", "A lower LR"),
        "epsilon": (default, "A lower ε"),
        "zero": ("ε = 0", "ε = 0, with u := 0 where v = 0,"),
        "decayed": ("ε from 1e-3 to 1e-8", "ε decayed during training"),
        "batch": ("batch / 2", "A smaller batch"),
        "beta": ("β = 0.8, 0.9", "A lower β1 and β2"),
        "embedding": ("embedding gradient / 10", "A tenth of the embedding's gradient"),
        "skip": ("rewind and skip", "Going back and skipping the batches"),
    }
    rows += [
        check(
            f"P2-remedy-{name}",
            "P2.remedies",
            f"{words} makes the spike smaller.",
            "height of the spike − without remedy, nats",
            height[method] - height[raised],
            "below",
            0.0,
        )
        for name, (method, words) in remedies.items()
    ]
    one, new = "one batch, again and again", "every batch new"
    update = analysis.late(table, observed[["key", "step", UPDATE]], [UPDATE]).set_index(
        ["method", "seed"]
    )[UPDATE]
    coarse, kept = "float8_e4m3fn, loss × 1", "float8_e4m3fn, loss × 64"
    return rows + [
        check(
            "P2-full-batch",
            "P2.batches",
            "The whole corpus in every batch makes r bimodal.",
            "share of points whose r has two modes, one batch − new batches",
            modes[one] - modes[new],
            "above",
            0.5,
            note="a question of this project, not a claim of the paper",
        ),
        check(
            "P2-decay-loss",
            "P2.remedies",
            "Decaying ε during training improves the loss.",
            "final loss, decayed − raised, nats",
            final["ε from 1e-3 to 1e-8"] - final[raised],
            "below",
            0.0,
            note="a question of this project, not a claim of the paper",
        ),
        check(
            "P2-underflow",
            "P2.formats",
            "Gradients that underflow freeze early layers.",
            f"update RMS at the end, {coarse} / float32",
            update[coarse] / update[quiet],
            "below",
            0.5,
            note="a question of this project, not a claim of the paper",
        ),
        check(
            "P2-underflow-loss",
            "P2.formats",
            "Underflow costs loss.",
            f"final loss, {coarse} − float32, nats",
            final[coarse] - final[quiet],
            "above",
            SMALL,
            note="a question of this project, not a claim of the paper",
        ),
        check(
            "P2-loss-scale",
            "P2.formats",
            "Scaling the loss repairs it.",
            f"final loss, {kept} − float32, nats",
            final[kept] - final[quiet],
            "below",
            SMALL,
            note="a question of this project, not a claim of the paper",
        ),
    ]
