"""Between a notebook and its results: collect runs, save figures, publish verdicts."""

import importlib.metadata
import io
import json
import os
import pathlib

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from proxies_lib import config, paths
from proxies_lib.config import Run, UserError
from proxies_lib.runs import engines, provenance, sweep, tables
from proxies_lib.science import analysis, outputs, pictures, plots, protocol
from proxies_lib.science.claims import UNTESTABLE, VERDICTS
from proxies_lib.science.figures import BEYOND, FIGURES
from proxies_lib.science.protocol import Study

PROVENANCE = ("fingerprint", "device", "python", "jax", "flax", "commit")


def collect(
    runs: dict[str, list[Run]], study: Study, columns=None, brief: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What notebooks call first: print overrides and the plan (its first line alone, if `brief`),
    train what is missing if `study.train`, and return a table of runs and a table of curves.

    `runs` maps the name of a method to its runs. The first table has a row per method and run, in
    that order (a run may serve several methods), with `loss` = min(ℓ, ℓ0) in nats per token. The
    second has a row per run and logged point, with the curves whose names begin with one of
    `columns`; None takes them all.

    Reading (train=False) also looks into the committed table of the label, or else of the scale.
    Training never does, but for `--continue`: then runs that the label's committed table has under
    their own key count as trained.
    """
    layer = outputs.continued() if study.train else published_table(study)
    if study.publish:
        outputs.claim(study, provenance.commit())
    all_runs = [run for runs_of_method in runs.values() for run in runs_of_method]
    # Runs that several methods share are planned, trained and read once, then get a row in each.
    plan = sweep.plan(all_runs, layer=layer, prepare=study.train, exact=study.train)
    if study.overrides and not brief:
        print(_own_protocol(study))
    described = plan.describe(engines.cores())
    print(described.partition("\n")[0] if brief else described)
    if study.train:
        sweep.run(plan)
        plan = sweep.plan(all_runs, layer=layer, exact=True)  # now every run is found
    table, curves = tables.table(list(plan.found), plan.folder, layer, columns)
    row_of = {found.run: row for row, found in enumerate(plan.found)}
    parts = []
    for method, runs_of_method in runs.items():
        without_repeats = dict.fromkeys(runs_of_method)
        rows = [row_of[run] for run in without_repeats]
        parts.append(table.iloc[rows].assign(method=method))
    return analysis.with_loss(pd.concat(parts, ignore_index=True)), curves


def _own_protocol(study: Study) -> str:
    """What a reader of an overridden notebook must know: its text was written for the scale."""
    changed = ", ".join(f"{name} = {value}" for name, value in study.overrides)
    return (
        f"{study.label}: {study.scale} with {changed}. "
        f"The text tells what is seen in runs of {study.scale} itself."
    )


def count_stored(runs: list[Run]) -> int:
    """How many of `runs` are known: in the store or, with `--continue`, in the committed table."""
    plan = sweep.plan(runs, layer=outputs.continued(), prepare=False, exact=True)
    return len(plan.found) - len(plan.missing)


def published_table(study: Study) -> pathlib.Path:
    """The folder of the committed table that a study reads where its store lacks a run."""
    published = paths.folder("papermill_runs")
    own = published / study.label
    return own if (own / "curves.parquet").exists() else published / study.scale


def summary(table: pd.DataFrame, study: Study):
    """Print what `collect` found: rows, runs, sizes and seeds, the data and the length."""
    base = study.base
    counts = {
        "rows": len(table),
        "runs": table["key"].nunique(),
        "sizes": table["n_params"].nunique(),
        "seeds": table["seed"].nunique(),
    }
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    tokens = f"{base.train.batch_size} × {base.model.seq_len} tokens"
    print(f"data {base.data}, {base.hparams.steps} steps of {tokens}")


def save(
    fig: plt.Figure, name: str, frames: dict[str, pd.DataFrame], runs: pd.DataFrame, study: Study
):
    """Write <name>.{png,csv} to the figures of the study's label; while only reading, nothing.

    The csv holds exactly the plotted numbers, a `panel` column first; the png carries scale,
    overrides, corpus, devices, versions and commits of the runs, and the commit of the drawing.
    Where pixels and numbers are those of the files that are there, both are left alone: a new
    commit alone is no new picture. With PROXIES_SVG set, an svg is written beside them.
    """
    if not study.publish:
        return
    target = outputs.target("figures", study.label)
    about = _about(runs, study)
    png, csv = _drawn(fig, "png", about), _csv(frames)
    if not _same_figure(target / name, png, csv):
        paths.write_atomically(target / f"{name}.png", png)
        paths.write_atomically(target / f"{name}.csv", csv)
    if os.environ.get("PROXIES_SVG"):
        paths.write_atomically(target / f"{name}.svg", _drawn(fig, "svg", about | {"Date": None}))


def _about(runs: pd.DataFrame, study: Study) -> dict[str, str]:
    """The metadata of a picture: where its runs come from, as JSON."""
    about = {
        "scale": study.scale,
        "overrides": dict(study.overrides),
        "runs": len(runs),
        **{column: sorted(map(str, runs[column].unique())) for column in PROVENANCE},
        "drawn_at_commit": provenance.commit(),
        "matplotlib": importlib.metadata.version("matplotlib"),
    }
    return {"Description": json.dumps(about, sort_keys=True)}


def _drawn(fig: plt.Figure, kind: str, metadata: dict) -> bytes:
    picture = io.BytesIO()
    fig.savefig(picture, format=kind, metadata=metadata)
    drawn = picture.getvalue()
    return pictures.in_palette(drawn) if kind == "png" else drawn


def _csv(frames: dict[str, pd.DataFrame]) -> bytes:
    """All frames of a figure in one table, the name of each as `panel`."""
    labeled = [frame.assign(panel=panel) for panel, frame in frames.items()]
    numbers = pd.concat(labeled, ignore_index=True)
    columns = ["panel", *(column for column in numbers.columns if column != "panel")]
    return numbers[columns].to_csv(index=False, float_format="%.7g").encode()


def _same_figure(stem: pathlib.Path, png: bytes, csv: bytes) -> bool:
    """Whether <stem>.png has the pixels of `png` and <stem>.csv is `csv`; metadata may differ."""
    try:
        if stem.with_name(f"{stem.name}.csv").read_bytes() != csv:
            return False
        # Older pictures have no palette yet.
        there = pictures.in_palette(stem.with_name(f"{stem.name}.png").read_bytes())
        pixels = plt.imread(io.BytesIO(there), format="png")
    except (OSError, SyntaxError, ValueError):  # missing, or damaged
        return False
    return np.array_equal(pixels, plt.imread(io.BytesIO(png), format="png"))


CURVE = ["method", "n_params"]  # what has one curve of loss against LR in a figure


def lr_figure(runs: pd.DataFrame, study: Study, name: str) -> dict[str, pd.DataFrame]:
    """Draw and save the paper's main figure: loss against LR above, LR sensitivity S against N
    below. Returns S by the title of its window (P1, section 2.2)."""
    loss = analysis.lr_curves(runs, CURVE)
    sensitivity = analysis.sensitivities(runs, CURVE, study)
    figure = plots.figure_sweep(loss, sensitivity)
    save(figure, name, {"loss": loss, **sensitivity}, runs, study)
    return sensitivity


def size_figure(runs: pd.DataFrame, study: Study, name: str):
    """Draw and save loss against LR with a panel per size and a curve per method."""
    loss = analysis.lr_curves(runs, CURVE)
    save(plots.figure_by_size(loss), name, {"loss": loss}, runs, study)


CLAIMS = "claims.csv"

COLUMNS = [
    *("claim", "figure", "section", "statement", "measure"),
    *("effect", "lo", "hi", "n", "verdict", "note"),
]


def structure_only(rows: list[dict], study: Study) -> list[dict]:
    """At smoke scale nothing is learned: each verdict is "not testable", whatever the numbers."""
    if study.scale != "smoke":
        return rows
    untestable = {"verdict": UNTESTABLE, "note": "smoke checks the machinery only"}
    return [row | untestable for row in rows]


def predict(
    predicted: pd.DataFrame, fitted: pd.DataFrame, held_out_stored: int, study: Study
) -> pd.DataFrame:
    """Fig. 9's prediction as it stands in the label's `prediction.csv`, written once for each set
    of `fitted` runs.

    `held_out_stored` says how many of the predicted runs were already trained when it was written.
    A study that trains predicts from its own runs. One that reads shows the published prediction
    where it has none of its own.
    """
    # A prediction counts for the runs it was fitted on. Other runs, another prediction.
    mark = config.digest({"keys": " ".join(sorted(fitted["key"].unique()))})
    predicted = predicted.assign(fitted_on=mark, held_out_stored=held_out_stored)
    return written_once(predicted, "prediction.csv", "fitted_on", study)


def written_once(frame: pd.DataFrame, file: str, mark: str, study: Study) -> pd.DataFrame:
    """What stands in the label's `file` for the runs that the column `mark` of `frame` names; where
    nothing does, `frame`, which a study that writes puts there.

    A study that reads also looks into the published file of the label, and of the scale.
    """
    path = outputs.target("papermill_runs", study.label) / file
    places = [path]
    if not study.train:
        # A study that trains must not see a prediction that others made from their runs.
        published = paths.folder("papermill_runs")
        places += [published / study.label / file, published / study.scale / file]
    for place in places:
        known = _read_csv(place, {mark: str})
        if known is None or mark not in known:
            continue
        if known[mark].eq(frame[mark].iloc[0]).all():
            return known
    if study.publish:
        paths.write_atomically(path, frame.to_csv(index=False).encode())
    return frame


def publish(rows: list[dict], section: str, study: Study) -> pd.DataFrame:
    """The verdicts as a table; when the study writes, also into its label's `claims.csv`, where
    they replace the rows of this section."""
    mine = pd.DataFrame(structure_only(rows, study)).assign(section=section)[COLUMNS]
    if not study.publish:
        return mine
    path = outputs.target("papermill_runs", study.label) / CLAIMS
    known = _read_claims(path) if path.exists() else None
    if path.exists() and known is None:
        print(f"{CLAIMS} of {study.label} was damaged: it is begun anew, with section {section}")
    # Sections are executed one by one, and again: each replaces its own rows only.
    merged = mine
    if known is not None:
        merged = pd.concat([known[known["section"] != section], mine], ignore_index=True)
    ordered = merged.sort_values("section", kind="stable")
    paths.write_atomically(path, ordered.to_csv(index=False, float_format="%.6g").encode())
    return mine


def scoreboard(label: str, published: bool = False) -> pd.DataFrame:
    """Every verdict of a label: of one's own runs where there are any, unless the `published` ones
    are wanted. Raises UserError where there is none."""
    place = outputs.source("papermill_runs", label, CLAIMS, published)
    if place is None:
        outputs.no_such(label, CLAIMS)
    rows = _read_claims(place / CLAIMS)
    if rows is None:
        raise UserError(f"scale={label!r}: {CLAIMS} is damaged; run its sections again")
    return rows


def _read_claims(path: pathlib.Path) -> pd.DataFrame | None:
    """The rows of a `claims.csv`, None where it is damaged."""
    numbers = {name: [""] for name in ("effect", "lo", "hi")}
    types = {"section": str, "figure": str} | dict.fromkeys(numbers, float)
    rows = _read_csv(path, types, keep_default_na=False, na_values=numbers)
    if rows is None or not set(COLUMNS) <= set(rows):
        return None
    return rows[COLUMNS] if rows["verdict"].isin(VERDICTS).all() else None


def _read_csv(path: pathlib.Path, types: dict, **options) -> pd.DataFrame | None:
    """A table that was written by `to_csv`; None where there is none, or only a part of one."""
    try:
        text = path.read_text("utf-8")
        if not text.endswith("\n"):  # the last line of a whole file ends
            return None
        return pd.read_csv(io.StringIO(text), dtype=types, **options)
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        return None


def short(rows: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard as a reader sees it: one rounded effect with its interval, and `decides`."""
    effects = zip(rows["effect"], rows["lo"], rows["hi"], strict=True)
    shown = rows.assign(
        effect=[rounded(*effect) for effect in effects],
        decides=["–" if pd.isna(half) else f"{half:.2g}" for half in decides(rows)],
    )
    named = ["claim", "figure", "statement", "measure"]
    return shown[[*named, "effect", "n", "decides", "verdict", "note"]]


def decides(rows: pd.DataFrame) -> pd.Series:
    """Half the width of each interval, in units of the measure.

    An effect is decided when it lies further from its threshold than that: it is the smallest
    distance that these seeds could have decided. nan where nothing is judged by an interval: one
    seed, or a claim that is not testable.
    """
    half = (rows["hi"] - rows["lo"]) / 2
    return half.mask(rows["verdict"] == UNTESTABLE)


def rounded(effect: float, lo: float, hi: float) -> str:
    """0.0992 [0.041, 0.157]; without the interval where there is none, "–" without an effect."""
    if pd.isna(effect):
        return "–"
    return f"{effect:.3g}" if pd.isna(lo) else f"{effect:.3g} [{lo:.3g}, {hi:.3g}]"


def verdict_table(rows: pd.DataFrame, label: str = "", up: str = "") -> str:
    """The short scoreboard as a Markdown table; with a `label`, with the id of each claim, and
    linked to its notebooks, figures and data.

    `up` is the way from the reader's folder to the project's. One's own notebooks lie a folder
    deeper.
    """
    shown = short(rows)
    return markdown(_with_links(shown, rows, label, up) if label else shown.drop(columns="claim"))


def _with_links(shown: pd.DataFrame, rows: pd.DataFrame, label: str, up: str) -> pd.DataFrame:
    """`shown` with a link to the picture at each figure and, in a column of its own, links to the
    notebook and to the drawn numbers."""
    published = paths.folder("figures") / label
    folder = outputs.source("figures", label, "") or published
    # One's own outputs lie in figures/local/ and papermill_runs/local/, and so does a reader
    # who has executed the notebook: one folder deeper than the published ones.
    own = "" if folder == published else "local/"
    if up and outputs.target("figures", label) != published:
        up = f"{up}../"
    figures = f"{up}figures/{own}{label}"
    runs = f"{up}papermill_runs/{own}{label}"
    notebooks = (paths.root() / "notebooks").glob("[0-9]*_*.py")
    notebook_of = {path.stem[:2]: path.stem for path in notebooks}

    pictures, data = [], []
    for figure, section in zip(rows["figure"], rows["section"], strict=True):
        file = FIGURES[figure].file
        pictures.append(f"[{figure}]({figures}/{file}.png)")
        notebook = f"[{section}]({runs}/{notebook_of[section]}.ipynb)"
        data.append(f"{notebook} [csv]({figures}/{file}.csv)")
    return shown.assign(figure=pictures, **{"notebook, data": data})


def tally(rows: pd.DataFrame) -> str:
    """How many claims of the papers have each verdict, in a sentence; and, where there are any, how
    many of our predictions on later ideas."""
    ours = rows["section"] == BEYOND
    papers, predictions = rows[~ours], rows[ours]
    sentences = [_counted(papers, f"checks on {papers['figure'].nunique()} figures")]
    if len(predictions):
        sentences.append(_counted(predictions, "predictions on later ideas (section 11)"))
    return " ".join(sentences)


def _counted(rows: pd.DataFrame, of_what: str) -> str:
    counts = rows["verdict"].value_counts()
    holding, contradicted, undecided, untestable = (counts.get(name, 0) for name in VERDICTS)
    return (
        f"Of {len(rows)} {of_what}, {holding} {'holds' if holding == 1 else 'hold'}, "
        f"{_are(contradicted)} contradicted, "
        f"{_are(undecided)} undecided (the interval includes the threshold), "
        f"and {untestable} cannot be tested at this scale."
    )


def _are(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'}"


def against(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Claims of two scoreboards side by side: `verdict` and `effect` of each, `same` where the
    verdicts agree."""
    both = rows.merge(other, on="claim", suffixes=("", "_other"))
    return both.assign(same=both["verdict"] == both["verdict_other"])


def protocol_table() -> pd.DataFrame:
    """The protocol of every scale side by side, as `protocol.scales` fixes it."""
    return pd.DataFrame({study.scale: _protocol(study) for study in protocol.scales().values()})


def _protocol(study: Study) -> dict[str, str]:
    base, model = study.base, study.base.model
    return {
        "data": f"{base.data}, vocabulary {model.vocab_size}",
        "width × layers": _sizes(study.sizes),
        "by width (Fig. 7)": _sizes(study.widths),
        "by depth (Fig. 7)": _sizes(study.depths),
        "jointly (Fig. E.3)": _sizes(study.joint),
        "fitted → predicted (Fig. 9)": f"{_sizes(study.fitted)} → {_sizes(study.held_out)}",
        "warm-ups (Fig. 5)": ", ".join(f"{100 * share:g} %" for share in study.warmups),
        "longest training (Fig. 4)": f"{study.horizon * base.hparams.steps} steps",
        "batch × length": f"{base.train.batch_size} × {model.seq_len}",
        "steps (warm-up)": f"{base.hparams.steps} ({base.hparams.warmup_steps})",
        "sizes where no trend is the claim": _sizes(study.few_sizes),
        "seeds": str(len(study.seeds)),
        "seeds of dear arms, of sections 10 and 11": ", ".join(
            str(len(seeds)) for seeds in (study.few_seeds, study.adam_seeds, study.ideas_seeds)
        ),
        "learning rates": ", ".join(f"{lr:g}" for lr in study.lrs),
        "window of S": f"{study.window[0]:g} – {study.window[-1]:g}",
        "compute": model.compute_dtype,
    }


def _sizes(sizes) -> str:
    return ", ".join(f"{d}×{n}" for d, n in sizes)


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table, without its index."""
    lines = [list(table.columns), ["---"] * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append([str(value).replace("|", "\\|") for value in row])  # a bar would end a cell
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
