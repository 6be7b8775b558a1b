"""What a sweep over rounds gains over FedAvg, as summary.json beside its tables; differences are paired by seed.

    python -m experiments.lib.gains --out experiments/results/fipa/images --last 30
    python -m experiments.lib.gains --out experiments/results/fedfish/images

Every rule is compared with that rule of `fedavg` whose mean is the highest; accuracies are means of the last rounds,
barriers of all.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import ArrayLike
from scipy import stats

from fedfisher_jax._files import plain, read_json_lines, write_json


@dataclasses.dataclass(frozen=True)
class Settings:
    """Flags.

    Attributes:
        out: Folder of the sweep.
        last: Rounds whose mean counts.
        parts: Gains are told of so many equal parts of the rounds, too.
    """

    out: Path = Path("experiments/results/fipa/images")
    last: int = 5
    parts: int = 0


def paired(mine: ArrayLike, theirs: ArrayLike) -> dict[str, Any]:
    """Differences, their mean, its 95 % interval by Student's t, and on how many seeds they are above zero."""
    differences = np.subtract(mine, theirs)
    count, mean = len(differences), differences.mean()
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    interval = [mean - half, mean + half]
    return {
        "gain": mean,
        "differences": differences,
        "interval": interval,
        "seeds_better": int((differences > 0).sum()),
    }


def column_gains(cells: Sequence[Mapping[str, Any]], last: int, parts: int = 0) -> dict[str, Any]:
    """Every rule of one column against its best FedAvg, accuracies in %; and barriers where they were measured."""

    def means(rule: str, score: str, first: int | None, after: int | None = None) -> list[float]:
        found = [[line.get(score) for line in cell["rules"][rule]["rounds"][first:after]] for cell in cells]
        chosen = [[value for value in values if value is not None] for values in found]
        return [float(np.mean(values)) for values in chosen] if all(chosen) else []

    def percent(rule: str, first: int, after: int | None = None) -> list[float]:
        return [100 * value for value in means(rule, "accuracy", first, after)]

    accuracies = {rule: percent(rule, -last) for rule in cells[0]["rules"]}
    rival = max((rule for rule in accuracies if rule.startswith("fedavg")), key=lambda rule: np.mean(accuracies[rule]))
    count = min(len(rule["rounds"]) for cell in cells for rule in cell["rules"].values())
    if not 0 <= parts <= count:
        raise ValueError(f"parts: got {parts}, expected 0 to {count}, the rounds of every rule")
    edges = [count * part // parts for part in range(parts + 1)] if parts else []
    methods: dict[str, Any] = {}
    for rule, values in accuracies.items():
        methods[rule] = {"mean": float(np.mean(values)), **paired(values, accuracies[rival])}
        for first, after in itertools.pairwise(edges):
            gain = paired(percent(rule, first, after), percent(rival, first, after))
            methods[rule].setdefault("by_rounds", {})[f"{first + 1}-{after}"] = gain
        barriers = [means(name, "barrier_loss", None) for name in (rule, rival)]  # of all rounds
        if all(barriers):
            methods[rule]["barrier"] = paired(*barriers)["gain"]
    return {"rival": rival, "seeds": len(cells), "methods": methods}


def summary(cells: Sequence[Mapping[str, Any]], last: int, parts: int = 0) -> dict[str, Any]:
    """The gains by the names that tables and pages use.

    FIPA on the last layer is the rule with @last and memory at the sweep's own rate, on the whole model the one without
    a variant.
    """
    columns: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        columns.setdefault(cell["varied"], []).append(cell)
    found = {varied: column_gains(own, last, parts) for varied, own in columns.items()}
    epochs = {varied: str(own[0]["settings"]["epochs"]) for varied, own in columns.items()}
    named: dict[str, Any] = {"seeds": next(iter(found.values()))["seeds"], "columns": found}
    for varied, one in found.items():
        for rule, told in one["methods"].items():
            if rule.startswith("fedfish"):
                named.setdefault("gain_by_epochs", {})[epochs[varied]] = told["gain"]
                named.setdefault("seeds_better_by_epochs", {})[epochs[varied]] = told["seeds_better"]
                if "barrier" in told:
                    named.setdefault("barrier_by_epochs", {})[epochs[varied]] = told["barrier"]
            if rule.startswith("fipa") and "server" not in rule:
                part = {"last,memory": "last_layer", "": "whole_model"}.get(rule.partition("@")[2])
                if part:
                    named |= {f"gain_{part}": told["gain"], f"seeds_better_{part}": told["seeds_better"]}
    return named


def main() -> None:
    """Writes the file and prints the gains."""
    settings = tyro.cli(Settings, description=__doc__)
    told = plain(summary(read_json_lines(settings.out / "results.jsonl", "varied"), settings.last, settings.parts))
    write_json(settings.out / "summary.json", told)
    print({name: value for name, value in told.items() if name != "columns"})


if __name__ == "__main__":
    main()
