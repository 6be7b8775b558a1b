"""Gains of sweeps over rounds, by hand."""

import pytest
from scipy import stats

from experiments.lib import gains


def cell(seed, epochs, **accuracies):
    rules = {
        name.replace("__", "@"): {"rounds": [{"accuracy": a, "barrier_loss": 10 * a} for a in values]}
        for name, values in accuracies.items()
    }
    return {"varied": f"epochs {epochs}", "seed": seed, "settings": {"epochs": epochs}, "rules": rules}


def test_gains_are_paired_and_over_the_best_fedavg():
    cells = [
        cell(0, 1, fedavg=(0.1, 0.2), fedavg__tuned=(0.3, 0.5), fedfish=(0.2, 0.6), fipa=(0.0, 0.4)),
        cell(1, 1, fedavg=(0.1, 0.9), fedavg__tuned=(0.5, 0.7), fedfish=(0.2, 0.9), fipa=(0.0, 0.8)),
    ]
    found = gains.summary(cells, 1)
    one = found["columns"]["epochs 1"]
    assert one["rival"] == "fedavg@tuned" and found["seeds"] == 2
    assert found["gain_by_epochs"] == {"1": pytest.approx(15)} and found["seeds_better_by_epochs"] == {"1": 2}
    assert found["barrier_by_epochs"] == {"1": pytest.approx((4 - 4 + 5.5 - 6) / 2)}  # of all rounds
    assert found["gain_whole_model"] == pytest.approx(0) and found["seeds_better_whole_model"] == 1
    half = stats.t.ppf(0.975, 1) * 10  # differences of -10 and +10: their mean's standard error is 10
    assert one["methods"]["fipa"]["interval"] == pytest.approx([-half, half])


def test_gains_of_parts_of_the_rounds():
    cells = [cell(0, 4, fedavg=(0.1, 0.2, 0.3, 0.4, 0.5), fedfish=(0.3, 0.4, 0.3, 0.5, 0.7))]
    (one,) = gains.summary(cells, 1, parts=2)["columns"].values()
    found = one["methods"]["fedfish"]["by_rounds"]
    assert {name: part["gain"] for name, part in found.items()} == {"1-2": pytest.approx(20), "3-5": pytest.approx(10)}
    assert "by_rounds" not in gains.column_gains(cells, 1)["methods"]["fedfish"]
