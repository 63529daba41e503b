"""The figures of both papers and of section 11: who draws each, into which file, from which runs.

The one place that says so: costs, tests and links read it. `tests/test_figures.py` holds it against
the run keys in the csv of every committed figure.
"""

import dataclasses
import re
from collections.abc import Callable

from proxies_lib.config import Run
from proxies_lib.science.protocol import Study


def every(run: Run, study: Study) -> bool:
    """This and the next: which runs of its methods a figure shows."""
    return True


def size_of(run: Run) -> tuple[int, int]:
    return run.model.d_model, run.model.n_layers


def vocabulary_and_precision_of_base(run: Run, study: Study) -> bool:
    model, base = run.model, study.base.model
    names = ("vocab_size", "compute_dtype", "logits_dtype")
    return all(getattr(model, name) == getattr(base, name) for name in names)


def like_base(run: Run, study: Study) -> bool:
    """Sizes, learning rates and the arm's own change aside, the protocol of the scale."""
    same_training = run.train == study.base.train
    same_steps = run.hparams.steps == study.base.hparams.steps
    return vocabulary_and_precision_of_base(run, study) and same_training and same_steps


def at_points_of_figure_2(run: Run, study: Study) -> bool:
    return (*size_of(run), run.hparams.lr) in study.figure2


def smallest_at_lr_01(run: Run, study: Study) -> bool:
    """Of any length, in the vocabulary and precision of the scale."""
    smallest_there = size_of(run) == study.few_sizes[0] and run.hparams.lr == 0.1
    return smallest_there and vocabulary_and_precision_of_base(run, study)


def largest_of_few(run: Run, study: Study) -> bool:
    return size_of(run) == study.few_sizes[-1]


def smallest_and_largest_at_upper_lrs(run: Run, study: Study) -> bool:
    ends = (study.few_sizes[0], study.few_sizes[-1])
    return size_of(run) in ends and run.hparams.lr in study.upper


def at_upper_lrs(run: Run, study: Study) -> bool:
    return run.hparams.lr in study.upper


def all_sizes_and_deepest(run: Run, study: Study) -> bool:
    deepest = max(study.depths, key=lambda size: size[1])
    return size_of(run) in (*study.sizes, deepest)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a paper, as its section's notebook draws it."""

    name: str  # in the paper
    section: str
    file: str  # without its folder and ending
    methods: str | None = ".*"  # pattern of the grid's method names; None: it shows no runs
    shows: Callable[[Run, Study], bool] = every  # which runs of these methods

    def runs(self, methods: dict[str, list[Run]], study: Study) -> list[Run]:
        """The runs it shows, of a section's grid by method."""
        shown = []
        for method, runs in methods.items():
            if self.methods is not None and re.fullmatch(self.methods, method):
                shown += [run for run in runs if self.shows(run, study)]
        return shown


_FIGURES = (
    Figure("00", "00", "fig00_method"),
    Figure("1", "01", "fig01_lr_sensitivity"),
    Figure("2", "01", "fig02_logit_growth", shows=at_points_of_figure_2),
    Figure("E.1", "01", "figE01_qk_norms", shows=at_points_of_figure_2),
    Figure("3", "02", "fig03_z_loss", ".*z-loss", like_base),
    Figure("4", "02", "fig04_output_logits", "no decay, (no )?z-loss", smallest_at_lr_01),
    Figure("5", "03", "fig05_warmup"),
    Figure("6", "04", "fig06_weight_decay", "independent.*|coupled.*"),
    Figure("E.10", "04", "figE10_decay_strength", "no decay|decay 1e-4|.*matched decay"),
    Figure("7", "05", "fig07_width_vs_depth", "by (width|depth)"),
    Figure("E.2", "05", "figE02_width_vs_depth_no_qk", "by (width|depth), no qk-layernorm"),
    Figure("E.3", "05", "figE03_best_loss", "by (width|depth)|jointly"),
    Figure("8", "06", "fig08_mu_param", r"standard|µParam \(simple\)"),
    Figure("E.4", "06", "figE04_mu_param_no_qk", r"(standard|µParam \(simple\)), no qk-layernorm"),
    Figure(
        "E.5",
        "06",
        "figE05_mu_param_variants",
        r"standard|µParam \(\w+\)|µParam \(full\), no qk-layernorm",
        largest_of_few,
    ),
    Figure(
        "E.6",
        "06",
        "figE06_logit_scale",
        "(standard|logits / d_head)(, no qk-layernorm)?",
        smallest_and_largest_at_upper_lrs,
    ),
    Figure("E.14", "06", "figE14_rms_scaled_lr", "standard|LR × RMS"),
    Figure("9", "07", "fig09_predicted_logits", "without qk-layernorm"),
    Figure("10", "07", "fig10_kappa", "κ|bigram"),
    Figure("11", "08", "fig11_gradient_rms", "default|by depth", all_sizes_and_deepest),
    Figure("E.12", "08", "figE12_key_gradient_rms", "default|by depth", all_sizes_and_deepest),
    Figure("C.1", "08", "figC01_block_output_rms", "default|by depth", all_sizes_and_deepest),
    Figure("E.13", "08", "figE13_update_rms", "default", at_upper_lrs),
    Figure("12", "08", "fig12_epsilon", "(?!ε = 1e-06)ε = .*"),
    Figure("E.15", "08", "figE15_epsilon_1e-6", "ε = 1e-0[68]"),
    Figure("13", "08", "fig13_update_rms", "(?!ε = 1e-06)ε = .*"),
    Figure("E.7", "09", "figE07_steps", ".* × steps"),
    Figure("E.9", "09", "figE09_batch", "batch × .*"),
    Figure("E.8", "09", "figE08_whole_qk_layernorm", "qk-layernorm .*"),
    Figure("E.11", "09", "figE11_pointwise_attention", ".* attention"),
    Figure("P2.ratio", "10", "figP2_ratio", None),
    Figure(
        "P2.stages",
        "10",
        "figP2_stages",
        "ε = 1e-[38](, no burst)?|ε = 1e-3, batch × 8",
    ),
    Figure("P2.histograms", "10", "figP2_histograms", "ε = 1e-[38]"),
    Figure(
        "P2.remedies",
        "10",
        "figP2_remedies",
        "ε = (1e-[38](, noise)?|0)|ε from .*|LR / 3|batch / 2|β = .*"
        "|embedding gradient / 10|rewind and skip",
    ),
    Figure("P2.batches", "10", "figP2_batches", "every batch new|.*, again and again"),
    Figure("P2.formats", "10", "figP2_formats", "ε = 1e-8, no burst|float.*, loss × .*"),
    Figure("ideas", "11", "fig_ideas", "(?!burst).*"),
    Figure("ideas.score", "11", "fig_ideas_score", None),
    Figure("ideas.burst", "11", "fig_ideas_burst", "burst.*"),
)

BEYOND = "11"  # the section that judges our predictions on later ideas, not claims of the papers

FIGURES = {figure.name: figure for figure in _FIGURES}


def of_section(section: str) -> list[Figure]:
    return [figure for figure in _FIGURES if figure.section == section]
