import pathlib
import re

import pandas as pd
import pytest

from proxies_lib import config
from proxies_lib.science import figures, notebooks, protocol

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLAIN = {"E.3", "P2.ratio"}  # their csv has no run keys: best losses over LRs; a simulation


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_a_committed_figure_shows_the_runs_that_the_registry_says(scale):
    """Run keys in the csv of a figure are those of the runs its row picks from the grid."""
    runs = pd.read_parquet(ROOT / "papermill_runs" / scale / "runs.parquet")
    stored = dict(zip(runs["recipe"], runs["key"], strict=True))
    study = protocol.study(scale)
    for section, path in notebooks.sections().items():
        methods = notebooks.grid_of(path, notebooks.reading(scale))
        for figure in figures.of_section(section):
            if figure.name in PLAIN:
                continue
            drawn = pd.read_csv(ROOT / "figures" / scale / f"{figure.file}.csv", dtype=str)
            keys = [k for name in ("key", "keys") if name in drawn for k in drawn[name].dropna()]
            keys = {key for joined in keys for key in joined.split()}
            assert keys == {stored[config.recipe(run)] for run in figure.runs(methods, study)}, (
                figure.name
            )


def test_every_figure_that_a_notebook_saves_is_in_the_registry_and_no_other():
    for section, path in notebooks.sections().items():
        saved = re.findall(r'"(fig[A-Z]?\d*_[\w-]+)"', path.read_text("utf-8"))
        assert sorted(saved) == sorted(figure.file for figure in figures.of_section(section))
