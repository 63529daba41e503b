import base64
import io
import json
import pathlib

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from PIL import Image

from proxies_lib.science import notebooks, pictures

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURES = sorted((ROOT / "figures" / "laptop").glob("fig0*.png"))[:6]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture
def drawn():
    """A figure with many colors, as matplotlib writes it."""
    fig, axes = plt.subplots(figsize=(4, 3))
    axes.imshow(np.arange(600).reshape(20, 30), cmap="viridis", interpolation="bilinear")
    axes.set_title("smooth")
    written = io.BytesIO()
    fig.savefig(written, dpi=100, metadata={"Description": json.dumps({"scale": "smoke"})})
    plt.close(fig)
    return written.getvalue()


@pytest.mark.parametrize("path", FIGURES, ids=lambda p: p.stem)
def test_a_figure_looks_the_same_in_half_the_bytes(path):
    whole = path.read_bytes()
    reduced = pictures.in_palette(whole)
    moved = np.abs(pixels(reduced) - pixels(whole)).max(axis=-1)
    assert moved.max() <= 16 and moved.mean() < 1
    white = (pixels(whole) == 255).all(axis=-1)
    assert (moved[white] == 0).all()
    assert len(reduced) < len(whole) / 2 or Image.open(path).mode == "P"


def test_texts_and_dpi_stay_and_a_second_time_changes_nothing(drawn):
    reduced = pictures.in_palette(drawn)
    picture = Image.open(io.BytesIO(reduced))
    assert picture.mode == "P" and pictures.in_palette(reduced) == reduced
    assert json.loads(picture.text["Description"]) == {"scale": "smoke"}
    assert "Matplotlib" in picture.text["Software"]
    assert picture.info["dpi"] == pytest.approx((100, 100), abs=0.1)


def test_what_is_transparent_is_white():
    clear, written = Image.new("RGBA", (2, 1), (0, 0, 0, 0)), io.BytesIO()
    clear.putpixel((1, 0), (255, 0, 0, 255))
    clear.save(written, "PNG")
    assert pixels(pictures.in_palette(written.getvalue())).tolist() == [
        [[255, 255, 255], [255, 0, 0]]
    ]


def test_what_is_no_picture_is_an_error():
    with pytest.raises(OSError):
        pictures.in_palette(b"\x89PNG")


def test_pictures_of_an_executed_notebook_are_reduced_and_the_rest_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path / "runs"))
    cell = "import matplotlib.pyplot as plt; _ = plt.plot([1, 2]); print('said')"
    (tmp_path / "section.py").write_text(f"# %%\n{cell}\n")
    done = nbformat.read(notebooks.execute(tmp_path / "section.py", {}, "label"), as_version=4)
    said, picture = done.cells[0].outputs
    assert said.text == "said\n" and "text/plain" in picture.data
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).mode == "P"
