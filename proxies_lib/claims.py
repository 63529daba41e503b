"""Claims of the papers as checks on stored runs: effect, interval over seeds, n, verdict.

A claim holds when its whole interval lies on the claimed side of a threshold fixed here, before the runs.
"""

import numpy as np
import pandas as pd

from proxies_lib import analysis, config, store
from proxies_lib.config import Study, UserError

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable at this scale"
COLUMNS = ["claim", "figure", "section", "statement", "measure", "effect", "lo", "hi", "n", "verdict", "note"]
PAPER_TOP_LR = 0.3
CATASTROPHE = 1e3  # max |attention logit| that training without qk-layernorm passes where it fails


def check(claim, figure, statement, measure, values, side: str, threshold: float, note: str = "") -> dict:
    """One verdict from an effect per seed: `side` "above" or "below" the threshold, interval included.

    A value that is nan makes the claim untestable; a single seed is judged by its value, and the note says so.
    """
    values = np.asarray(values, float)
    effect, lo, hi = analysis.bootstrap(values)
    if not len(values) or np.isnan(values).any():
        verdict = UNTESTABLE
        effect = lo = hi = np.nan
    else:
        edge = {"above": lo, "below": hi}[side] if len(values) > 1 else effect
        verdict = HOLDS if (edge > threshold if side == "above" else edge < threshold) else FAILS
        if len(values) == 1:
            note = f"{note}; one seed, no interval".lstrip("; ")
        elif verdict == FAILS and (effect > threshold) == (side == "above"):
            note = f"{note}; the interval includes {threshold:g}".lstrip("; ")
    measure = f"{measure} ({side} {threshold:g})"
    return {"claim": claim, "figure": figure, "statement": statement, "measure": measure, "effect": effect,
            "lo": lo, "hi": hi, "n": len(values), "verdict": verdict, "note": note}  # fmt: skip


def structure_only(rows: list[dict], study: Study) -> list[dict]:
    """At smoke scale nothing is learned: every verdict is "not testable", whatever the numbers say."""
    if study.scale != "smoke":
        return rows
    return [row | {"verdict": UNTESTABLE, "note": "smoke checks the machinery only"} for row in rows]


def attention_logit_growth(runs: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """The claims of Figures 1, 2 and E.1 (P1, section 3.1.1 and appendix E)."""
    by = ["qk_norm", "n_params"]
    largest = runs["n_params"].max()
    excess = analysis.excess_loss(runs, by)
    on, off = excess[excess["qk_norm"] == "per_head"], excess[excess["qk_norm"] == "none"]
    high = {lr: on[(on["n_params"] == largest) & np.isclose(on["lr"], lr)]["excess"]
            for lr in dict.fromkeys((min(PAPER_TOP_LR, max(study.lrs)), max(study.window)))}  # fmt: skip
    failing = analysis.diverging_lr(runs, by)
    failing_off = failing[failing["qk_norm"] == "none"].assign(log_lr=lambda f: np.log10(f["diverging_lr"]))
    s = analysis.lr_sensitivity_per_seed(runs, by, study.window)
    s_off, s_on = s[s["qk_norm"] == "none"], s[s["qk_norm"] == "per_head"]
    at_largest = [x[x["n_params"] == largest].set_index("seed")["S"] for x in (s_off, s_on)]
    rows = [
        *(check(f"1-stable-{lr:g}", "1", "With qk-layernorm the largest model still trains at a very high LR, 0.3.",
                f"share of the learning lost at LR {lr:g}, N {largest:,}", values, "below", analysis.FAILURE,
                note="" if lr == PAPER_TOP_LR else "the top of this scale's shifted window, not the paper's 0.3")
          for lr, values in high.items()),
        check("1-diverging-lr", "1", "Without qk-layernorm the LR that diverges falls as N grows.",
              "slope of log10 diverging LR per decade of N", analysis.slopes(failing_off, "log_lr"), "below", 0.0),
        check("1-rises-off", "1", "LR sensitivity rises with N without qk-layernorm.",
              "slope of S per decade of N, nats", analysis.slopes(s_off, "S"), "above", 0.0),
        check("1-rises-on", "1", "LR sensitivity rises with N with qk-layernorm too.",
              "slope of S per decade of N, nats", analysis.slopes(s_on, "S"), "above", 0.0),
        check("1-ratio", "1", "qk-layernorm lowers LR sensitivity, about 25 times at 19M in the paper.",
              f"S without / S with, N {largest:,}", at_largest[0] / at_largest[1], "above", 1.0),
        check("1-coincide", "1", "Below a critical LR the curves with and without qk-layernorm coincide.",
              "mean |difference| / learning, LRs below a third of the diverging LR", _coincidence(off, on, failing),
              "below", 0.05),
    ]  # fmt: skip
    return structure_only(rows + _logit_claims(runs, curves, study, excess), study)


def _coincidence(off, on, failing) -> np.ndarray:
    both = off.merge(on, on=["n_params", "lr", "seed"], suffixes=("_off", "_on"))
    critical = failing[failing["qk_norm"] == "none"].set_index(["n_params", "seed"])["diverging_lr"]
    limit = critical.reindex(pd.MultiIndex.from_frame(both[["n_params", "seed"]])).to_numpy() / 3
    both = both[both["lr"].to_numpy() < np.where(np.isnan(limit), np.inf, limit)]
    learned = both["init_loss_off"] - both.groupby(["n_params", "seed"])["loss_off"].transform("min")
    gap = (both["loss_off"] - both["loss_on"]).abs() / learned
    return gap.groupby(both["seed"]).mean().to_numpy()


def _logit_claims(runs, curves, study, excess) -> list[dict]:
    rows = []
    points = analysis.at(runs, study.figure2)
    observed = analysis.curves_of(points.drop_duplicates("key"), curves)
    for i, (d_model, n_layers, lr) in enumerate(study.figure2):
        here = f"d {d_model}, {n_layers} layers, LR {lr:g}"
        keys = set(points.loc[points["point"] == i, "key"])
        mine = observed[observed["key"].isin(keys)]
        lost = excess[excess["key"].isin(keys)].set_index("qk_norm")
        top = mine.groupby(["qk_norm", "seed"])["max_attention_logit/0"].max()
        name = "abcdefgh"[i]
        rows += [
            check(f"2{name}-logit-off", "2", "Without qk-layernorm the attention logits of layer 0 grow out of bounds.",
                  f"log10 max |attention logit|, {here}", np.log10(top["none"]), "above", np.log10(CATASTROPHE)),
            check(f"2{name}-logit-on", "2", "With qk-layernorm they do not.",
                  f"log10 max |attention logit|, {here}", np.log10(top["per_head"]), "below", np.log10(CATASTROPHE)),
            check(f"2{name}-fails-off", "2", "Without qk-layernorm training diverges there.",
                  f"share of the learning lost, {here}", lost.loc[["none"], "excess"], "above", analysis.FAILURE),
            check(f"2{name}-fails-on", "2", "With qk-layernorm it does not.",
                  f"share of the learning lost, {here}", lost.loc[["per_head"], "excess"], "below", analysis.FAILURE),
            check(f"E1{name}-norm", "E.1", "The logits grow by the norms of q and k, not by their alignment.",
                  f"share of the growth due to norms, {here}", _norm_share(mine[mine["qk_norm"] == "none"]),
                  "above", 0.5),
        ]  # fmt: skip
    return rows


def _norm_share(observed: pd.DataFrame) -> np.ndarray:
    """Per seed, Δlog(‖q‖‖k‖) over Δlog(‖q‖‖k‖) + |Δlog cosine|, from the first to the last logged point."""
    shares = []
    for _, curve in observed.groupby("seed"):
        ends = curve.sort_values("step").iloc[[0, -1]]
        norms = np.diff(np.log(ends["q_norm/0"] * ends["k_norm/0"]))[0]
        cosine = abs(np.diff(np.log(ends["qk_cosine/0"]))[0])
        shares.append(norms / (abs(norms) + cosine))
    return np.array(shares)


def publish(rows: list[dict], section: str, study: Study) -> pd.DataFrame:
    """The verdicts as a table; when publishing also written into the scale's `claims.csv` (this section's rows)."""
    mine = pd.DataFrame(rows).assign(section=section)[COLUMNS]
    if study.publish:
        path = config.folder("papermill_runs") / study.label / "claims.csv"
        others = [scoreboard(study.label)] if path.exists() else []
        merged = pd.concat([*(o[o["section"] != section] for o in others), mine], ignore_index=True)
        text = merged.sort_values("section", kind="stable").to_csv(index=False, float_format="%.6g")
        store.write_atomically(path, text.encode())
    return mine


def scoreboard(label: str) -> pd.DataFrame:
    """Every published verdict of a scale. Raises UserError where there is none."""
    path = config.folder("papermill_runs") / label / "claims.csv"
    if not path.exists():
        raise UserError(f"scale={label!r}: no claims.csv yet; run its sections first")
    return pd.read_csv(path, dtype={"section": str, "figure": str}, keep_default_na=False, na_values={
        name: [""] for name in ("effect", "lo", "hi")})[COLUMNS]  # fmt: skip


def short(rows: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard as a reader sees it: one rounded effect with its interval."""
    effect = [
        "–" if pd.isna(e) else f"{e:.3g}" if pd.isna(lo) else f"{e:.3g} [{lo:.3g}, {hi:.3g}]"
        for e, lo, hi in zip(rows["effect"], rows["lo"], rows["hi"], strict=True)
    ]
    return rows.assign(effect=effect)[["figure", "statement", "measure", "effect", "n", "verdict", "note"]]


def markdown(rows: pd.DataFrame) -> str:
    """The short scoreboard as a Markdown table."""
    return analysis.markdown(short(rows))
