"""Bisection of the diverging LR: on made-up curves of known cliffs, and once on real trainings."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from proxies_lib.config import UserError, grid, replace
from proxies_lib.runs import tables
from proxies_lib.science import analysis, bisection, outputs, protocol, report

HALF_DECADES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)

INIT = 5.0


def loss_with_cliff(lr: float, cliff: float) -> float:
    """A parabola in log LR with its best at a tenth of the cliff; from the cliff on it fails."""
    return 4.9 if lr >= cliff else 2.0 + 0.1 * np.log10(10 * lr / cliff) ** 2


def made_up(runs_of_method: dict, loss_of) -> pd.DataFrame:
    """The table that `report.collect` would return, with losses from a function of runs."""
    rows = []
    for method, runs in runs_of_method.items():
        for run in runs:
            loss = loss_of(method, run)
            rows.append(
                {
                    "method": method,
                    "d_model": run.model.d_model,
                    "n_layers": run.model.n_layers,
                    "n_params": run.model.n_params,
                    "seed": run.order.seed,
                    "lr": run.hparams.lr,
                    "final_loss": loss,
                    "init_loss": INIT,
                    "diverged": bool(np.isnan(loss)),
                }
            )
    return analysis.with_loss(pd.DataFrame(rows))


@pytest.fixture
def collected(monkeypatch):
    """Replace `report.collect` by made-up losses; the arms of every call are kept."""
    calls = []

    def pretend(loss_of):
        def collect(runs, study, columns=None, brief=False):
            calls.append({method: list(of_method) for method, of_method in runs.items()})
            return made_up(runs, loss_of), pd.DataFrame()

        monkeypatch.setattr(report, "collect", collect)
        return calls

    return pretend


def arms(smoke, *methods: str, seeds=(0, 1, 2), sizes=((8, 1), (16, 1)), lrs=HALF_DECADES):
    axes = {("d_model", "n_layers"): sizes, "lr": lrs, "seed": seeds}
    # Two methods must differ in something; what it is does not matter here.
    return {name: grid(replace(smoke, z_loss=0.1 * i), axes) for i, name in enumerate(methods)}


STUDY = dataclasses.replace(protocol.study("smoke"), bisection_rounds=4)  # as the other scales


def test_brackets_stand_between_the_last_lr_that_trains_and_the_first_that_fails(smoke):
    table = made_up(
        arms(smoke, "a", seeds=(0,)), lambda _, run: loss_with_cliff(run.hparams.lr, 0.1)
    )
    found = bisection.brackets(table)
    assert found["lo"].tolist() == [3e-2] * 2 and found["hi"].tolist() == [1e-1] * 2
    assert found["diverging_lr"].tolist() == pytest.approx([0.003**0.5] * 2)
    interpolated = analysis.diverging_lr(table, bisection.CURVE)["diverging_lr"]
    assert interpolated.between(found["lo"], found["hi"]).all()


def test_an_lr_below_the_best_one_does_not_fail(smoke):
    losses = dict(zip(HALF_DECADES, (4.9, 4.9, 4.0, 2.0, 2.1, 4.0, np.nan)))
    table = made_up(arms(smoke, "a"), lambda _, run: losses[run.hparams.lr])
    found = bisection.brackets(table)
    assert set(found["lo"]) == {1e-1} and set(found["hi"]) == {3e-1}


@pytest.mark.parametrize("cliff", [3.1e-3, 0.0299, 0.05, 0.0667, 0.1, 0.11, 0.97])
def test_four_rounds_find_a_known_cliff_to_a_factor_of_1_33(collected, smoke, cliff):
    calls = collected(lambda _, run: loss_with_cliff(run.hparams.lr, cliff))
    found = bisection.rounds(arms(smoke, "a"), STUDY).brackets
    assert len(calls) <= 1 + STUDY.bisection_rounds
    assert (found["lo"] < cliff).all() and (cliff <= found["hi"]).all()
    assert (found["hi"] / found["lo"] <= bisection.FACTOR).all()
    assert found["censored"].eq("").all()


def test_seeds_methods_and_sizes_that_disagree_are_bisected_each_for_itself(collected, smoke):
    def cliff(method, d_model, seed):
        return {"a": 0.02, "b": 0.2}[method] * (8 / d_model) * (1 + seed / 4)

    calls = collected(
        lambda method, run: loss_with_cliff(
            run.hparams.lr, cliff(method, run.model.d_model, run.order.seed)
        )
    )
    result = bisection.rounds(arms(smoke, "a", "b"), STUDY)
    for row in result.brackets.itertuples():
        assert row.lo < cliff(row.method, row.d_model, row.seed) <= row.hi
        assert row.hi / row.lo <= 1.33
    # A curve that is narrow enough asks for nothing more.
    sizes = [sum(map(len, call.values())) for call in calls[1:]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] <= 12
    assert len(result.table) == sum(map(len, result.runs.values())) == 2 * 42 + sum(sizes)
    lrs = result.table["lr"]
    assert lrs.tolist() == [float(f"{lr:.3g}") for lr in lrs], "three digits"


def test_censored_curves_are_marked_and_ask_for_nothing(collected, smoke):
    def loss(method, run):
        return {"never": 2.0, "always": np.nan}[method]

    calls = collected(loss)
    result = bisection.rounds(arms(smoke, "never", "always", seeds=(0,), sizes=((8, 1),)), STUDY)
    assert len(calls) == 1
    never, always = result.brackets.to_dict("records")
    assert (never["lo"], never["hi"], never["censored"]) == (1.0, np.inf, bisection.ABOVE)
    assert (always["lo"], always["hi"], always["censored"]) == (0.0, 1e-3, bisection.BELOW)
    assert result.brackets["diverging_lr"].isna().all()
    assert analysis.diverging_lr(result.table, ["method"])["diverging_lr"].isna().all()


def test_a_new_best_lr_moves_the_level_and_the_bracket_with_it(collected, smoke):
    # Between the LRs of the grid lies a much better one: what seemed to train then fails.
    def loss(_, run):
        lr = run.hparams.lr
        return 4.9 if lr > 0.02 else 2.0 if lr > 0.013 else 2.9 if lr > 0.008 else 3.5

    collected(loss)
    result = bisection.rounds(arms(smoke, "a", seeds=(0,), sizes=((8, 1),)), STUDY)
    (bracket,) = result.brackets.to_dict("records")
    assert bracket["lo"] <= 0.02 < bracket["hi"] and bracket["hi"] / bracket["lo"] <= 1.33


def test_the_rounds_are_a_function_of_the_runs_alone(collected, smoke):
    calls = collected(lambda _, run: loss_with_cliff(run.hparams.lr, 0.04 + 0.01 * run.order.seed))
    once = bisection.rounds(arms(smoke, "a"), STUDY)
    first, calls[:] = list(calls), []
    again = bisection.rounds(arms(smoke, "a"), STUDY)
    assert calls == first and again.runs == once.runs
    pd.testing.assert_frame_equal(again.brackets, once.brackets)
    by = ["d_model", "seed"]
    shuffled = once.table.sample(frac=1, random_state=0)
    in_order, mixed = (bisection.brackets(t).sort_values(by) for t in (once.table, shuffled))
    pd.testing.assert_frame_equal(in_order.reset_index(drop=True), mixed.reset_index(drop=True))


def test_rounds_are_limited_and_what_is_left_wide_stays_visible(collected, smoke):
    calls = collected(lambda _, run: loss_with_cliff(run.hparams.lr, 0.05))
    found = bisection.rounds(arms(smoke, "a", seeds=(0,)), STUDY, most=1).brackets
    assert len(calls) == 2 and (found["hi"] / found["lo"] > bisection.FACTOR).all()


def test_an_arm_of_several_curves_is_refused(collected, smoke):
    collected(lambda _, run: 2.0)
    two = {"a": grid(smoke, {"z_loss": (0.0, 0.1), "lr": HALF_DECADES})}
    with pytest.raises(UserError, match="'a' at d 8, 1 layers, seed 0 differ in more than"):
        bisection.rounds(two, STUDY)


@pytest.fixture
def world(tmp_path, monkeypatch):
    for kind in ("store", "figures", "papermill_runs"):
        monkeypatch.setenv(f"PROXIES_{kind.upper()}", str(tmp_path / kind))
    for variable in (outputs.CONTINUE, outputs.PUBLISH):
        monkeypatch.setenv(variable, "")
    return tmp_path


def test_a_study_that_reads_finds_the_rounds_that_one_trained(world, smoke, monkeypatch):
    """From the store, then from the exported table; and it says which round is missing."""
    monkeypatch.setenv("PROXIES_WORKERS", "1")
    monkeypatch.setenv("PROXIES_ENGINE", "lanes")
    base = replace(smoke, steps=20, warmup_steps=1, qk_norm="none")
    lrs = (0.1, 1.0, 1000.0)
    one = arms(base, "a", seeds=(0,), sizes=((8, 1),), lrs=lrs)
    reading = protocol.study("smoke")
    trained = bisection.rounds(one, dataclasses.replace(reading, train=True), most=2)
    assert len(trained.runs["a"]) == 5, "two rounds of a run each"
    assert trained.brackets["censored"].eq("").all()

    read = bisection.rounds(one, reading, most=2)
    assert read.runs == trained.runs
    pd.testing.assert_frame_equal(read.brackets, trained.brackets)

    label = world / "papermill_runs/smoke"
    tables.export(*report.collect(trained.runs, reading), label)
    shutil.rmtree(world / "store")
    committed = bisection.rounds(one, reading, most=2)
    assert committed.runs == trained.runs
    pd.testing.assert_frame_equal(committed.brackets, trained.brackets)
    with pytest.raises(UserError, match="^bisection, round 3: table: 1 of 1 runs are not stored"):
        bisection.rounds(one, reading, most=3)
    assert bisection.rounds(one, reading, most=3, partial=True).runs == trained.runs
