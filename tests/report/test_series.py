"""Metrics by name: order, best values, thinning and what is drawn together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlm_jax.report.series import LINES_A_PANEL, Series, collect, evaluation_panels, thin, training_panels


def series(name, values, steps=None):
    return Series(name, np.arange(len(values)) if steps is None else np.asarray(steps), np.asarray(values, np.float64))


def panels(make, metrics):
    return {panel.title: [name for name, _ in panel.lines] for panel in make(collect(metrics))}


def test_collect_sorts_by_step_and_the_later_line_holds():
    found = collect([{"step": 20, "a": 2.0}, {"step": 10, "a": 1.0, "b": 5.0}, {"step": 20, "a": 3.0}])
    assert found["a"].steps.tolist() == [10, 20] and found["a"].values.tolist() == [1.0, 3.0]
    assert found["b"].last() == (10, 5.0)


@pytest.mark.parametrize(
    "name, best",
    [("eval/zero_shot/top1", (1, 0.9)), ("eval/held_out/loss", (0, 0.1)), ("eval/x/median_rank", (0, 0.1))],
)
def test_best_passes_over_nan_and_takes_the_earliest(name, best):
    assert series(name, [0.1, 0.9, math.nan, math.inf, 0.9, 0.1]).best() == best


def test_best_of_nothing_finite_is_none():
    assert series("eval/x/top1", [math.nan]).best() is None


def test_constant():
    assert series("a", [1, 1]).constant and series("a", [1]).constant
    assert not series("a", [1, 2]).constant and not series("a", [math.nan]).constant


def test_thinning_keeps_spikes_gaps_and_order():
    values = np.sin(np.arange(50_000) / 500)
    values[12_345], values[30_000:31_000] = 100, math.nan
    thinned = thin(series("loss", values), 1000)
    assert len(thinned.steps) <= 1000
    assert (np.diff(thinned.steps) > 0).all()
    assert (
        12_345 in thinned.steps and np.nanmax(thinned.values) == 100 and np.nanmin(thinned.values) == np.nanmin(values)
    )
    lost = thinned.steps[~thinned.finite]
    assert len(lost) and (lost >= 30_000).all() and (lost < 31_000).all()


def test_short_series_are_not_thinned():
    short = series("loss", np.arange(1000))
    assert thin(short, 1000) is short


def test_known_training_metrics_share_panels_and_clocks_are_left_out():
    names = (
        "grad_norm param_norm update_norm loss learning_rate logit_scale eta_s examples_seen custom step_ms mfu_percent"
    )
    found = panels(training_panels, [{"step": 1, **{f"train/{name}": 1.0 for name in names.split()}}])
    assert found == {
        "Loss": ["loss"],
        "Learning rate": ["learning_rate"],
        "Norms": ["grad_norm", "param_norm", "update_norm"],
        "Logit scale": ["logit_scale"],
        "Model FLOP utilisation": ["mfu_percent"],
        "Milliseconds per step": ["step_ms"],
        "custom": ["custom"],
    }


def test_a_group_is_cut_into_panels():
    many = {f"train/router/{i}": float(i) for i in range(LINES_A_PANEL + 1)}
    found = panels(training_panels, [{"step": 1, **many}])
    assert [len(names) for names in found.values()] == [LINES_A_PANEL, 1]
    assert list(found) == ["router (1)", "router (2)"]


def test_logarithmic_axes_where_values_span_decades():
    steep, flat = series("train/loss", [10, 1, 0.1]), series("train/loss", [10, 9, 8])
    zero = series("train/loss", [10, 1, 0])
    assert [training_panels({"train/loss": s})[0].log for s in (steep, flat, zero)] == [True, False, False]
    assert not training_panels({"train/examples_per_s": series("train/examples_per_s", [0.1, 100])})[0].log


def test_fractions_of_an_evaluator_are_drawn_together():
    lines = [
        {"step": s, **{f"eval/retrieval/r{k}": s / (9 + k) for k in (1, 5, 10)}, "eval/retrieval/rank": 40.0 - s}
        | {"eval/retrieval/examples": 500.0, "eval/other/steady": 1.0}
        for s in (1, 2)
    ]
    assert panels(evaluation_panels, lines) == {"retrieval": ["r1", "r5", "r10"], "retrieval: rank": ["rank"]}
