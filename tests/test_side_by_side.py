"""Quantities of the paper, of a public re-run, and of published tables."""

import numpy as np
import pandas as pd
import pytest

from proxies_lib import config
from proxies_lib.runs import tables
from proxies_lib.science import notebooks, protocol, side_by_side
from proxies_lib.science.side_by_side import ROWS

STUDY = protocol.study("laptop")
WIDTHS = [d_model for d_model, _ in STUDY.sizes]
FAILING = dict(zip(WIDTHS, (0.3, 0.1, 0.03), strict=True))  # without qk-layernorm, from this LR on


def loss(run) -> float:
    """3 where all is well, 6 where nothing is learned; a little in between."""
    lr = run.hparams.lr
    if run.model.qk_norm == "none":
        return 6.0 if lr >= 0.999 * FAILING[run.model.d_model] else 3.0
    if not run.hparams.z_loss:
        return 3.35 if lr >= 0.299 else 3.0
    return 3.07 if lr >= 0.299 else 3.0


def published(
    folder, monkeypatch, scale="laptop", keep=lambda run: True, name="mean_log_z_squared"
):
    """Made-up tables of a scale's sections 01 and 02, of the runs to `keep`."""
    runs = {
        run
        for section in ("01", "02")
        for arm in notebooks.grid_of(
            notebooks.sections()[section], notebooks.reading(scale)
        ).values()
        for run in arm
        if keep(run)
    }
    rows, curves = [], []
    for run in runs:
        key = f"{len(rows):05d}"
        rows.append(
            {"key": key, "recipe": config.recipe(run), "final_loss": loss(run), "init_loss": 6.0}
            | {"diverged": False, "diverged_step": -1, "train_seconds": 1.0}
        )
        late = 9.0 if run.hparams.z_loss else 400.0 + run.hparams.steps
        if (run.model.vocab_size, run.model.compute_dtype) != (256, "float32"):
            late *= 10  # other numbers drift otherwise
        for step, value in ((7, 1.0), (run.hparams.steps - 1, late)):
            curves.append({"key": key, "step": step, name: np.float32(value)})
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(folder))
    tables.export(pd.DataFrame(rows), pd.DataFrame(curves), folder / scale, folder / "store")


def test_the_cells_of_a_scale_are_those_of_closed_forms(tmp_path, monkeypatch):
    published(tmp_path, monkeypatch)
    cells = side_by_side.of_scale("laptop")
    assert set(cells) == set(ROWS)
    # Of the seven LRs of the window, 1e-3 to 1, the largest fails at four, and loses 3 nats each.
    assert (cells["S off"], cells["S on"], cells["ratio"]) == ("1.71, 3", "0.02, 3", "85.7, 3")
    # The paper's, 3e-4 to 0.3, have one fewer of them.
    paper = [cells[f"paper {name}"] for name in ("S off", "S on", "ratio")]
    assert paper == ["1.29, 3", "0.01, 3", "129, 3"]
    assert (cells["S neither"], cells["S z"]) == ("0.1, 3", "0.02, 3")
    # A tenth of the way from the last LR that works to the first that does not, in log LR.
    assert cells["diverging small"] == f"{0.1 * 3**0.1:.2g}, 3"
    assert cells["diverging large"] == f"{0.01 * 3**0.1:.2g}, 3"
    at = [np.log10(lr) for lr in (0.1 * 3**0.1, 0.03 * (10 / 3) ** 0.1, 0.01 * 3**0.1)]
    slope = np.polyfit(np.log10(WIDTHS), at, 1)[0]
    assert cells["slope"] == f"{slope:.3g}, 3"
    # The longest training of Figure 4 is what its checks look at.
    longest = STUDY.horizon * STUDY.base.hparams.steps
    assert cells["drift steps"] == f"{longest:,}"
    assert float(cells["log² Z neither"].split(",")[0]) == pytest.approx(400 + longest, rel=1e-3)
    assert cells["log² Z z"] == "9, 3"
    assert (cells["smallest"], cells["largest"]) == ("6,144", "98,304")
    assert (cells["length"], cells["window"]) == ("384 × 512", "0.001 – 1")


def test_one_run_that_a_table_lacks_takes_its_quantities_and_no_other(tmp_path, monkeypatch):
    (lacking,) = config.grid(
        STUDY.base, {("d_model", "n_layers"): STUDY.sizes[-1:], "lr": (1.0,), "seed": (2,)}
    )
    published(tmp_path, monkeypatch, keep=lambda run: run != lacking)
    cells = side_by_side.of_scale("laptop")
    missing = {name for name, cell in cells.items() if cell == side_by_side.LACKING}
    assert missing == {"S on", "ratio", "best"}
    assert cells["paper ratio"] == "129, 3"  # LR 1 is not in the paper's window


def test_runs_that_are_older_than_log_z_have_none(tmp_path, monkeypatch):
    published(tmp_path, monkeypatch, name="mean_output_logit")
    cells = side_by_side.of_scale("laptop")
    missing = {name for name, cell in cells.items() if cell == side_by_side.LACKING}
    assert missing == {"log² Z neither", "log² Z z"}


def test_a_size_that_never_fails_diverges_above_the_grid(tmp_path, monkeypatch):
    monkeypatch.setitem(FAILING, WIDTHS[0], np.inf)
    published(tmp_path / "one", monkeypatch)
    cells = side_by_side.of_scale("laptop")
    assert cells["diverging small"] == "above 1"
    slope = np.log10(0.01 * 3**0.1 / (0.03 * (10 / 3) ** 0.1)) / np.log10(2)
    assert cells["slope"] == f"{slope:.3g}, 3"  # of the two sizes that fail
    monkeypatch.setitem(FAILING, WIDTHS[1], np.inf)
    published(tmp_path / "two", monkeypatch)
    assert side_by_side.of_scale("laptop")["slope"] == side_by_side.LACKING  # one size has none
    monkeypatch.setitem(FAILING, WIDTHS[2], np.inf)
    published(tmp_path / "three", monkeypatch)
    cells = side_by_side.of_scale("laptop")
    assert (cells["diverging large"], cells["slope"]) == ("above 1", side_by_side.LACKING)


def test_runs_of_other_precision_and_vocabulary_are_no_part_of_a_curve(tmp_path, monkeypatch):
    """At scale long they are of the same size as those that S of z-loss is taken from."""
    published(tmp_path, monkeypatch, scale="long")
    cells = side_by_side.of_scale("long")
    assert (cells["S neither"], cells["S z"]) == ("0.05, 3", "0.01, 3")
    assert (cells["log² Z z"], cells["drift steps"]) == ("9, 3", "100,000")
    assert (cells["largest"], cells["largest z"]) == ("24,576", "6,144")


def test_the_table_has_a_column_per_source_and_its_protocol_where_nothing_is_published(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path))
    table = side_by_side.table()
    sources = ["", "paper", "public re-run", "laptop", "night", "long"]
    assert table.columns.tolist() == sources and table[""].tolist() == list(ROWS.values())
    known = table["night"] != side_by_side.LACKING
    assert table.index[known].tolist() == [
        *("length", "window", "smallest", "largest", "largest z", "drift steps")
    ]
    assert table["long"]["length"] == "100,000 × 512"
    assert table["paper"]["paper ratio"] == "about 25, at 19M"


def test_the_re_runs_own_s_is_ours_times_seven_sixths():
    """Its text has S = 0.306 without and 0.054 with z-loss at this size."""
    cells = side_by_side.of_rerun()
    ours = [float(cells[name].split(",")[0]) for name in ("S neither", "S z")]
    assert [round(s * 7 / 6, 3) for s in ours] == [0.306, 0.054]
    assert (cells["log² Z neither"], cells["log² Z z"]) == ("3.89e+05, 1", "14.8, 1")
    assert 3e-3 < float(cells["best"].split(",")[0]) < 3e-2
    assert set(cells) <= set(ROWS) and set(side_by_side.PAPER) <= set(ROWS)
