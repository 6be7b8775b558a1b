"""What runs over rounds tell beside the last model's score: means of rounds, barriers, models fine-tuned at clients.

Each is made into cells as `summarise` takes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .._doors import require_at_least
from ._measure import ACCURACY, LOSS, Measure

Cells = Sequence[Mapping[str, Any]]
IN_A_ROUND = {"accuracy": "accuracy", "loss": "test_loss", "rmse": "rmse"}  # a score's name in a round's line
ALONE = ("accuracy", "RMSE")  # what a sweep's only column is called, the second in regression
BARRIER = Measure(
    "barrier", "Client-Server Barrier (nats, lower is better), mean of rounds", "barriers", 1.0, ".3f", min
)


def mean_of_last(cells: Cells, count: int) -> Cells:
    """Put the mean of every rule's last `count` rounds in the place of its last model's scores.

    Args:
        cells: runs over at least so many rounds.
        count: how many.

    Raises:
        ValueError: fewer than 1.
    """
    require_at_least("count", count, 1)

    def averaged(rule: Mapping[str, Any]) -> dict[str, Any]:
        lines = rule["rounds"][-count:]
        means = {key: _mean(line.get(name) for line in lines) for key, name in IN_A_ROUND.items() if key in rule}
        return {**rule, **means}

    return [{**cell, "rules": {name: averaged(rule) for name, rule in cell["rules"].items()}} for cell in cells]


def further(cells: Cells, measure: Measure) -> list[tuple[Measure, Cells]]:
    """List what cells tell beside their `measure`: barriers of the rules' own rounds, means over fine-tuned clients."""
    base = ACCURACY if measure is ACCURACY else LOSS
    key, said = base.key, "accuracy at clients (%)" if base is ACCURACY else "loss at clients (nats)"
    shots = {cell.get("settings", {}).get("shots") for cell in cells}
    fine_tuned = {
        "before": ("not fine-tuned", "personalised", f"{key}_before"),
        "personalised": ("fine-tuned", "personalised", key),
        "personalised_few": (
            f"fine-tuned by {shots.pop() if len(shots) == 1 else 'few'} examples each",
            "personalised_few",
            key,
        ),
    }
    found: list[tuple[Measure, Cells]] = []
    for name, (how, where, part) in fine_tuned.items():
        one = base._replace(key=name, said=f"{said}, {how}")
        found.append((one, _cells(cells, one, key, lambda _, rule, w=where, p=part: _mean(rule.get(w, {}).get(p, [])))))
    found.append((BARRIER, _cells(cells, BARRIER, "barrier", _barrier)))
    return [(one, values) for one, values in found if any(_values(one, values))]


def _cells(cells: Cells, measure: Measure, word: str, take: Any) -> Cells:
    """Cells of a measure; a column that a score names, where nothing varies, is named by this one."""
    return [
        {
            **cell,
            "varied": word if cell["varied"] in ALONE else cell["varied"],
            "rules": {name: {measure.key: take(cell, rule)} for name, rule in cell["rules"].items()},
            "references": {},
        }
        for cell in cells
    ]


def _values(measure: Measure, cells: Cells) -> list[bool]:
    return [rule[measure.key] is not None for cell in cells for rule in cell["rules"].values()]


def _barrier(cell: Mapping[str, Any], rule: Mapping[str, Any]) -> float | None:
    own = rule.get("rounds", [])[cell.get("settings", {}).get("warm_up_rounds", 0) :]
    return _mean(line.get("barrier_loss") for line in own)


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    return None if not found or None in found else float(np.mean(found))  # pyright: ignore[reportArgumentType, reportCallIssue]
