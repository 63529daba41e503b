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
from proxies_lib.runs import provenance, tables
from proxies_lib.runs.engines import cores
from proxies_lib.runs.provenance import commit
from proxies_lib.runs.sweep import plan, run
from proxies_lib.science import outputs, protocol
from proxies_lib.science.claims import FAILS, HOLDS, UNTESTABLE
from proxies_lib.science.figures import FIGURES
from proxies_lib.science.protocol import Study

PROVENANCE = ("fingerprint", "device", "python", "jax", "flax", "commit")


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
    return picture.getvalue()


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
        there = plt.imread(stem.with_name(f"{stem.name}.png"), format="png")
    except (OSError, SyntaxError, ValueError):  # missing, or damaged
        return False
    return np.array_equal(there, plt.imread(io.BytesIO(png), format="png"))


VERDICTS = (HOLDS, FAILS, UNTESTABLE)

CLAIMS = "claims.csv"

COLUMNS = [
    "claim",
    "figure",
    "section",
    "statement",
    "measure",
    "effect",
    "lo",
    "hi",
    "n",
    "verdict",
    "note",
]


def structure_only(rows: list[dict], study: Study) -> list[dict]:
    """At smoke scale nothing is learned: every verdict is "not testable", whatever the numbers say."""
    if study.scale != "smoke":
        return rows
    return [
        row | {"verdict": UNTESTABLE, "note": "smoke checks the machinery only"} for row in rows
    ]


def predict(
    predicted: pd.DataFrame, fitted: pd.DataFrame, held_out_stored: int, study: Study
) -> pd.DataFrame:
    """Fig. 9's prediction as it stands in the label's `prediction.csv`, written once for each set of `fitted` runs.

    `held_out_stored` says how many of the predicted runs were already trained when it was written. A study that
    trains predicts from its own runs; one that reads shows the published prediction, where it has no own one.
    """
    file = "prediction.csv"
    path = outputs.target("papermill_runs", study.label) / file
    mark = config.digest({"keys": " ".join(sorted(fitted["key"].unique()))})
    places = [path]
    if not study.train:
        published = paths.folder("papermill_runs")
        places += [published / study.label / file, published / study.scale / file]
    for place in places:
        known = _read_csv(place, {"fitted_on": str})
        if known is not None and "fitted_on" in known and known["fitted_on"].eq(mark).all():
            return known
    predicted = predicted.assign(fitted_on=mark, held_out_stored=held_out_stored)
    if study.publish:
        paths.write_atomically(path, predicted.to_csv(index=False).encode())
    return predicted


def publish(rows: list[dict], section: str, study: Study) -> pd.DataFrame:
    """The verdicts as a table; when the study writes, also into its label's `claims.csv` (this section's rows)."""
    mine = pd.DataFrame(structure_only(rows, study)).assign(section=section)[COLUMNS]
    if study.publish:
        path = outputs.target("papermill_runs", study.label) / CLAIMS
        merged = mine
        if path.exists() and (others := _read_claims(path)) is not None:
            merged = pd.concat([others[others["section"] != section], mine], ignore_index=True)
        elif path.exists():
            print(
                f"{CLAIMS} of {study.label} was damaged: it is begun anew, with section {section}"
            )
        text = merged.sort_values("section", kind="stable").to_csv(index=False, float_format="%.6g")
        paths.write_atomically(path, text.encode())
    return mine


def scoreboard(label: str, published: bool = False) -> pd.DataFrame:
    """Every verdict of a label: of one's own runs where there are any, unless the `published` ones are wanted.

    Raises UserError where there is none.
    """
    place = outputs.source("papermill_runs", label, CLAIMS, published)
    if place is None:
        raise UserError(f"scale={label!r}: no {CLAIMS} yet; run its sections first")
    rows = _read_claims(place / CLAIMS)
    if rows is None:
        raise UserError(f"scale={label!r}: {CLAIMS} is damaged; run its sections again")
    return rows


def _read_claims(path: pathlib.Path) -> pd.DataFrame | None:
    """The rows of a `claims.csv`, None where it is damaged. Its last line ends: a part of a file does not pass."""
    numbers = {name: [""] for name in ("effect", "lo", "hi")}
    types = {"section": str, "figure": str} | dict.fromkeys(numbers, float)
    rows = _read_csv(path, types, keep_default_na=False, na_values=numbers)
    whole = rows is not None and set(COLUMNS) <= set(rows) and rows["verdict"].isin(VERDICTS).all()
    return rows[COLUMNS] if whole else None


def _read_csv(path: pathlib.Path, types: dict, **options) -> pd.DataFrame | None:
    """A table that was written by `to_csv`; None where there is none, or only a part of one."""
    try:
        text = path.read_text("utf-8")
        whole = text.endswith("\n")
        return pd.read_csv(io.StringIO(text), dtype=types, **options) if whole else None
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        return None


def short(rows: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard as a reader sees it: one rounded effect with its interval."""
    effect = [
        "–" if pd.isna(e) else f"{e:.3g}" if pd.isna(lo) else f"{e:.3g} [{lo:.3g}, {hi:.3g}]"
        for e, lo, hi in zip(rows["effect"], rows["lo"], rows["hi"], strict=True)
    ]
    return rows.assign(effect=effect)[
        ["figure", "statement", "measure", "effect", "n", "verdict", "note"]
    ]


def verdict_table(rows: pd.DataFrame, label: str = "", up: str = "") -> str:
    """The short scoreboard as a Markdown table; with a `label`, linked to its notebooks, figures and data.

    `up` is the way from the reader's folder to the project's. One's own notebooks lie a folder deeper.
    """
    shown = short(rows)
    if label:
        published = paths.folder("figures") / label
        folder = outputs.source("figures", label, "") or published
        own = "" if folder == published else "local/"
        up = f"{up}../" if up and outputs.target("figures", label) != published else up
        names = {
            path.stem[:2]: path.stem for path in (paths.root() / "notebooks").glob("[0-9]*_*.py")
        }
        stems = [FIGURES[figure].file for figure in rows["figure"]]
        where = f"{up}figures/{own}{label}/"
        links = [
            f"[{section}]({up}papermill_runs/{own}{label}/{names[section]}.ipynb) [csv]({where}{stem}.csv)"
            for section, stem in zip(rows["section"], stems, strict=True)
        ]
        figures = [
            f"[{f}]({where}{stem}.png)" for f, stem in zip(rows["figure"], stems, strict=True)
        ]
        shown = shown.assign(figure=figures, **{"notebook, data": links})
    return markdown(shown)


def tally(rows: pd.DataFrame) -> str:
    """How many claims hold, do not, and cannot be tested, in a sentence."""
    n = rows["verdict"].value_counts()
    undecided = rows["note"].str.contains("undecided").sum()
    return (
        f"Of {len(rows)} checks on {rows['figure'].nunique()} figures, {n.get(HOLDS, 0)} hold, {n.get(FAILS, 0)} do not "
        f"({undecided} of them undecided: the interval includes the threshold), and {n.get(UNTESTABLE, 0)} cannot be "
        "tested at this scale."
    )


def against(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Claims of two scoreboards side by side: `verdict` and `effect` of each, `same` where the verdicts agree."""
    both = rows.merge(other, on="claim", suffixes=("", "_other"))
    return both.assign(same=both["verdict"] == both["verdict_other"])


def collect(
    runs: dict[str, list[Run]], study: Study, columns=None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What notebooks call: print the plan, train what is missing if `study.train`, return runs and curves.

    `runs` maps the name of a method to its runs; the table has a row per method and run (a run may serve several),
    in that order, and only the curves that begin with one of `columns`. Reading (train=False) also looks into the
    committed table of the label or else of the scale; training never does.
    """
    layer = None if study.train else _published_table(study)
    if study.publish:
        outputs.claim(study, commit())
    everything = [one for each in runs.values() for one in each]
    the_plan = plan(everything, layer=layer, prepare=study.train)
    print(the_plan.describe(cores()))
    if study.train:
        run(the_plan)
        the_plan = plan(everything)
    table, curves = tables.table(list(the_plan.found), the_plan.folder, layer, columns)
    position = {f.run: i for i, f in enumerate(the_plan.found)}
    rows = [
        table.iloc[[position[one] for one in dict.fromkeys(each)]].assign(method=m)
        for m, each in runs.items()
    ]
    return pd.concat(rows, ignore_index=True), curves


def _published_table(study: Study) -> pathlib.Path:
    """The folder of the committed table that a study reads where its store lacks a run."""
    published = paths.folder("papermill_runs")
    own = published / study.label
    return own if (own / "curves.parquet").exists() else published / study.scale


def protocol_table() -> pd.DataFrame:
    """The protocol of every scale side by side, as `config.scales` fixes it."""
    columns = {}
    for s in protocol.scales().values():
        b, m = s.base, s.base.model
        columns[s.scale] = {
            "data": f"{b.data}, vocabulary {m.vocab_size}",
            "width × layers": _sizes(s.sizes),
            "by width (Fig. 7)": _sizes(s.widths),
            "by depth (Fig. 7)": _sizes(s.depths),
            "jointly (Fig. E.3)": _sizes(s.joint),
            "fitted → predicted (Fig. 9)": f"{_sizes(s.fitted)} → {_sizes(s.held_out)}",
            "warm-ups (Fig. 5)": ", ".join(f"{100 * share:g} %" for share in s.warmups),
            "longest training (Fig. 4)": f"{s.horizon * b.hparams.steps} steps",
            "batch × length": f"{b.train.batch_size} × {m.seq_len}",
            "steps (warm-up)": f"{b.hparams.steps} ({b.hparams.warmup_steps})",
            "seeds": str(len(s.seeds)),
            "learning rates": ", ".join(f"{lr:g}" for lr in s.lrs),
            "window of S": f"{s.window[0]:g} – {s.window[-1]:g}",
            "compute": m.compute_dtype,
        }
    return pd.DataFrame(columns)


def _sizes(sizes) -> str:
    return ", ".join(f"{d}×{n}" for d, n in sizes)


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table, without its index."""
    body = [
        [str(value).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)
    ]
    return "\n".join(
        "| " + " | ".join(row) + " |"
        for row in [list(table.columns), ["---"] * len(table.columns), *body]
    )
