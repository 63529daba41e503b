import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from proxies_lib import paths
from proxies_lib.science import outputs, plots, protocol, report, styles

SHOWN_WIDTH, SMALLEST_TEXT = 830, 9  # px: GitHub's column, and what one can still read there

METHODS = ["decay, z-loss", "no decay, z-loss", "decay, no z-loss", "ε = 1e-08", "a new method"]


@pytest.fixture(autouse=True)
def _own_styles_and_figures(monkeypatch):
    monkeypatch.setattr(styles, "METHODS", dict(styles.METHODS))  # drawing a new method adds to it
    yield
    plt.close("all")


def points(methods, **columns) -> pd.DataFrame:
    """A row per method and combination of the `columns`' values, with seeds 0 and 1."""
    columns = {"method": methods, **columns, "seed": [0, 1]}
    frame = pd.MultiIndex.from_product(columns.values(), names=columns).to_frame(index=False)
    return frame.assign(key=frame.astype(str).agg(" ".join, axis=1), diverged=False)


def lr_curves(methods, sizes=(6144, 24576, 98304)) -> pd.DataFrame:
    frame = points(methods, n_params=sizes, lr=[1e-3, 1e-2, 1e-1, 1.0])
    frame = frame[frame["seed"] == 0]
    loss = 4 + np.log10(frame["lr"] * 20) ** 2 / 2
    return frame.assign(loss=loss, low=loss - 0.1, high=loss + 0.1, init_loss=6, n=2, n_diverged=0)


def sensitivity(methods) -> pd.DataFrame:
    frame = points(methods, n_params=(6144, 24576, 98304))
    return frame[frame["seed"] == 0].assign(S=0.4, lo=0.3, hi=0.5, n=2)


def observed(methods, at_points) -> pd.DataFrame:
    frame = points(methods, point=at_points, n_params=[6144, 98304], lr=[0.1, 0.3])
    frame["key"] = frame["key"] + frame["point"].astype(str)
    runs = frame.loc[frame.index.repeat(5)].assign(step=np.tile(np.arange(5), len(frame)))
    return runs.assign(a=10.0 ** -runs["step"], b=1.0, n=2)


def rms_panels() -> dict:
    by_size = points(["m"], n_params=[6144, 98304], lr=[0.01, 0.1]).assign(rms=1e-4)
    block = points(["m"], block=[0, 1], lr=[0.01, 0.1]).assign(rms=1e-5)
    return {
        "n_params": by_size.assign(line=by_size["lr"], line_of="lr"),
        "lr": by_size.assign(line=by_size["n_params"], line_of="n_params"),
        "block": block.assign(line=block["lr"], line_of="lr"),
    }


def histograms() -> pd.DataFrame:
    frame = points(METHODS[:2], row=["r, block 0", "Δ, block 0"], column=[1, 2, 3, 4], left=[0, 1])
    return frame.assign(right=frame["left"] + 1, share=0.5)


def sweep(methods):
    windows = {"window 0.001 – 1": sensitivity(methods), "the paper's": sensitivity(methods)}
    return plots.figure_sweep(lr_curves(methods), windows)


def stages():
    quantities = {"a": ("cosine of successive gradients", "log"), "b": ("dip", "linear")}
    titles = {"x": "default ε", "y": "raised ε", "z": "batch × 8"}
    return plots.figure_trajectories(observed(METHODS[:2], list(titles)), quantities, titles)


def dots():
    values = points(METHODS).assign(height=1.0, tokens=12000.0, loss=4.0, steps=3.0)
    quantities = {
        name: (styles.LOSS_AXIS, "linear") for name in ("height", "tokens", "loss", "steps")
    }
    return plots.figure_dots(values, quantities, METHODS)


FIGURES = {
    "two methods": lambda: sweep(METHODS[:2]),
    "five methods": lambda: sweep(METHODS),
    "by size": lambda: plots.figure_by_size(lr_curves(METHODS)),
    "trajectories": stages,
    "rms": lambda: plots.figure_rms(rms_panels(), "rms", "gradient RMS, first MLP layer", 1e-8),
    "over N and LR": lambda: plots.figure_e13(observed(["m"], [0]), "a", "b", 1e-8),
    "histograms": lambda: plots.figure_histograms(histograms(), {}),
    "dots": dots,
}


def texts(fig) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_visible()]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_text_can_be_read_at_the_width_that_github_shows(draw):
    fig = draw()
    fig.draw_without_rendering()
    px_per_point = SHOWN_WIDTH / fig.get_figwidth() / 72
    written = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text()]
    # An exponent, as in 10⁻³, has 0.7 of the size of its text.
    shrink = {text: 0.7 if "^{" in text.get_text() else 1 for text in written}
    sizes = {t.get_text(): t.get_fontsize() * shrink[t] * px_per_point for t in written}
    assert {text: px for text, px in sizes.items() if px < SMALLEST_TEXT} == {}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_legends_lie_on_no_curve_and_inside_the_picture(draw):
    fig = draw()
    fig.draw_without_rendering()
    legends = [*fig.legends, *(legend for part in fig.subfigs for legend in part.legends)]
    for legend in legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in fig.axes)
        assert fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1
        assert fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_says_how_many_seeds_it_shows(draw):
    assert any("2 seeds" in text for text in texts(draw()))


def test_a_figure_whose_panels_differ_in_seeds_says_so():
    panels = rms_panels()
    panels["block"] = panels["block"][panels["block"]["seed"] == 0]
    (said,) = [text for text in texts(plots.figure_rms(panels, "rms", "RMS")) if "seed" in text]
    assert said == "Mean of 1 or 2 seeds; band: least to largest seed."


def test_a_method_without_a_style_gets_one_of_its_own_and_keeps_it(monkeypatch):
    # Other tests of this process have taken some of the spare ones.
    ours = {name: style for name, style in styles.METHODS.items() if style not in styles.SPARE}
    monkeypatch.setattr(styles, "METHODS", ours)
    named = list(styles.METHODS.values())
    new = {f"new {i}": styles.style_of(f"new {i}") for i in range(len(styles.SPARE))}
    assert len(set(new.values())) == len(new) and not set(new.values()) & set(named)
    assert new == {method: styles.style_of(method) for method in new}
    assert styles.style_of("one more") in styles.SPARE


def test_an_epsilon_is_written_one_way():
    assert [styles.epsilon(x) for x in (1e-8, 1e-15, 1e-3, 3e-4, 0.0)] == [
        "1e-8",
        "1e-15",
        "1e-3",
        "3e-4",
        "0",
    ]
    assert styles.shown("ε = 1e-08") == styles.shown("ε = 1e-8") == "ε = 1e-8"
    assert styles.shown("ε = 0.001, no burst") == "ε = 1e-3, no burst"
    assert styles.shown("ε from 1e-3 to 1e-8") == "ε from 1e-3 to 1e-8"


def test_an_epsilon_far_below_the_curves_does_not_stretch_the_axis():
    near, far = (plots.figure_rms(rms_panels(), "rms", "RMS", eps).axes[0] for eps in (1e-6, 1e-12))
    assert near.get_ylim()[0] < 1e-6 and far.get_ylim()[0] > 1e-7
    assert any("ε = 1e-12" in text and "lower" in text for text in texts(far))


def test_the_panel_of_s_says_over_which_learning_rates():
    curves = lr_curves(METHODS[:1])
    assert styles.title_of_sensitivity("window 0.001 – 1", curves) == "S over window 0.001 – 1"
    all_but_one = pd.DataFrame({"lr": protocol.PAPER_WINDOW[1:]})
    title = styles.title_of_sensitivity("the paper's LRs 0.001 – 0.3", all_but_one)
    assert title.startswith("S over the paper's LRs 0.001 – 0.3") and "without 0.0003" in title


def markers(ax) -> list[str]:
    return [line.get_marker() for line in ax.lines if len(line.get_xdata())]


def test_a_bound_is_an_arrow_and_has_no_mean():
    values = points(METHODS[:3]).assign(lr=0.1, other=1.0)
    values["lr bound"] = ["", "", "≥", "≥", "", "≤"]
    fig = plots.figure_dots(values, {n: (n, "linear") for n in ("lr", "other")}, METHODS[:3])
    bounded, plain = map(markers, fig.axes)
    assert (bounded.count(">"), bounded.count("<"), bounded.count("|")) == (1, 1, 1)
    assert ">" not in plain and "<" not in plain and plain.count("|") == 3
    assert any("open arrows: it lies beyond" in text for text in texts(fig))


def test_an_idea_has_no_line_at_a_learning_rate_that_only_bounds_where_it_diverges():
    arms = ["none", "qk-layernorm", "soft-cap 10", "QK-Clip"]
    curves = lr_curves(arms, sizes=[98304])
    lrs = pd.DataFrame({"method": arms, "diverging_lr": [0.06, 0.3, 0.12, 0.3]})
    lrs["diverging_lr bound"] = ["", "≥", "", "≥"]
    fig = plots.figure_ideas(curves, lrs, ("none", "qk-layernorm"))
    upright = [
        {x for line in ax.lines if len(set(line.get_xdata())) == 1 for x in line.get_xdata()}
        for ax in fig.axes
    ]
    assert [{x for x in xs if x in (0.06, 0.12, 0.3)} for xs in upright] == [{0.06, 0.12}, {0.06}]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """`published(y)` saves a figure of `y` and gives its png and csv."""
    monkeypatch.setenv("PROXIES_FIGURES", str(tmp_path))
    runs = pd.DataFrame({column: ["x"] for column in report.PROVENANCE})
    study = protocol.study("smoke", {}, train=False, publish=True)

    def save(y, commit="one", color="red"):
        monkeypatch.setattr(report.provenance, "commit", lambda: commit)
        fig, ax = plt.subplots()
        ax.plot(y, color=color)
        report.save(fig, "fig", {"line": pd.DataFrame({"y": y})}, runs, study)
        folder = outputs.target("figures", "smoke")
        return folder / "fig.png", folder / "fig.csv"

    return save


def test_a_picture_is_rewritten_only_when_its_pixels_or_numbers_change(published):
    png, csv = published([1, 2])
    before = png.read_bytes(), csv.read_bytes()
    published([1, 2], commit="two")
    assert (png.read_bytes(), csv.read_bytes()) == before
    published([1, 3], commit="two")
    assert png.read_bytes() != before[0] and csv.read_bytes() != before[1]
    before = png.read_bytes()
    published([1, 3], commit="two", color="blue")
    assert png.read_bytes() != before
    for damaged in (png, csv):
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        published([1, 3], commit="two", color="blue")
        assert damaged.read_bytes() == content


def test_a_picture_carries_where_its_runs_come_from(published):
    from PIL import Image

    png, _ = published([1, 2], commit="abc")
    about = json.loads(Image.open(io.BytesIO(png.read_bytes())).text["Description"])
    assert about["drawn_at_commit"] == "abc" and set(report.PROVENANCE) <= set(about)


def test_an_svg_is_written_only_when_asked_for(published, monkeypatch):
    png, _ = published([1, 2])
    assert sorted(path.suffix for path in png.parent.iterdir()) == [".csv", ".png"]
    monkeypatch.setenv("PROXIES_SVG", "1")
    published([1, 2])
    assert png.with_suffix(".svg").exists() and paths.folder("figures") == png.parents[1]
