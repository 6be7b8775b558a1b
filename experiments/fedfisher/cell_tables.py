"""Tables and figures of cells: accuracies with what their spread is, paired differences, costs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.lib import common
from experiments.lib.cells import Outcome, Settings
from fedfisher_jax.report._figures import name_rows

REFERENCES = {
    "best_local": "best local (oracle)",
    "ensemble": "ensemble",
    "ensemble_by_size": "ensemble by size",
    "ensemble_by_class": "ensemble by class",
    "pooled": "pooled training",
}


def spread_note(settings: Settings) -> str:
    """What the ± of a table is."""
    return {
        "both": f"mean ± std over {settings.seeds} seeds; each draws a split and a training, so ± is over both",
        "split": f"mean ± std over {settings.seeds} splits, training seed {settings.seed}",
        "training": f"mean ± std over {settings.seeds} training seeds, split {settings.seed}",
        "crossed": f"mean ± std over {settings.seeds} splits (of means over training seeds) ± std over "
        f"{settings.seeds} training seeds (root mean square over splits)",
    }[settings.vary]


def values(outcomes: Iterable[Outcome], method: str, name: str = "accuracy") -> np.ndarray:
    """One result of a method per cell."""
    return np.asarray([outcome.methods[method][name] for outcome in outcomes], float)


def spread(numbers: np.ndarray, settings: Settings, digits: int = 1, sign: str = "") -> str:
    """Mean ± std over cells in the order of `seed_pairs`; with crossed seeds ± between splits ± between trainings."""
    numbers = 100 * np.asarray(numbers)
    if settings.vary != "crossed" or settings.seeds == 1:
        return f"{numbers.mean():{sign}.{digits}f}" + (f"±{numbers.std(ddof=1):.{digits}f}" if numbers.size > 1 else "")
    square = numbers.reshape(settings.seeds, settings.seeds)
    between, within = square.mean(1).std(ddof=1), square.var(1, ddof=1).mean() ** 0.5
    return f"{square.mean():{sign}.{digits}f}±{between:.{digits}f}±{within:.{digits}f}"


def methods_of(columns: Mapping[Any, Sequence[Outcome]], rules: Sequence[str]) -> list[str]:
    """The rows of a table: rules, then the references that were computed."""
    everything = [outcome.methods for outcomes in columns.values() for outcome in outcomes]
    return [*rules, *(method for method in REFERENCES if all(method in found for found in everything))]


def label(method: str) -> str:
    """A method in words; a rule of these experiments without its package."""
    return REFERENCES.get(method, method.removeprefix("experiments.fedfisher."))


def best_rule(outcomes: Sequence[Outcome], rules: Sequence[str]) -> str:
    """The rule of the highest mean accuracy."""
    return max(rules, key=lambda rule: values(outcomes, rule).mean())


def accuracy_table(columns: Mapping[str, Sequence[Outcome]], rules: Sequence[str], settings: Settings) -> str:
    """Test accuracy in %: methods down, columns of cells across; the best rule of a column in bold."""
    best = {name: best_rule(outcomes, rules) for name, outcomes in columns.items()}

    def entry(method: str, name: str) -> str:
        text = spread(values(columns[name], method), settings)
        return f"**{text}**" if method == best[name] else text

    methods = methods_of(columns, rules)
    rows = [[label(method), *(entry(method, name) for name in columns)] for method in methods]
    return f"Test accuracy in %, {spread_note(settings)}.\n\n" + common.markdown_table(["", *columns], rows)


def difference_table(columns: Mapping[str, Sequence[Outcome]], rules: Sequence[str], settings: Settings) -> str:
    """Differences of accuracy, paired by seeds: to FedAvg if it is among the rules, and to each column's best rule."""
    methods = methods_of(columns, rules)

    def entry(method: str, base: str, outcomes: Sequence[Outcome]) -> str:
        if method == base:
            return ""
        gap = values(outcomes, method) - values(outcomes, base)
        return f"{spread(gap, settings, sign='+')} ({np.sum(gap > 0)}/{gap.size})"

    def table(bases: Mapping[str, str]) -> str:
        rows = [[label(m), *(entry(m, bases[name], found) for name, found in columns.items())] for m in methods]
        return common.markdown_table(["", *(f"{name} − {bases[name]}" for name in columns)], rows)

    note = "Differences in points, paired by seeds: mean ± std (how often above zero)."
    best = {name: best_rule(outcomes, rules) for name, outcomes in columns.items()}
    tables = [table(dict.fromkeys(columns, "fedavg"))] if "fedavg" in rules else []
    return f"\n{note}\n\n" + "\n".join([*tables, table(best)])


def cost_table(
    columns: Mapping[str, Sequence[Outcome]], rules: Sequence[str], exchanges: Mapping[str, int] | None = None
) -> str:
    """What a rule costs: uploads, seconds of measuring (shared by rules that measure the same) and of merging.

    Args:
        columns: Cells.
        rules: The rows.
        exchanges: How many each rule is, for a column of them.
    """
    everything = [outcome for outcomes in columns.values() for outcome in outcomes]

    def mean(rule: str, name: str, digits: int, scale: float = 1.0) -> str:
        return f"{scale * values(everything, rule, name).mean():.{digits}f}"

    counted = {} if exchanges is None else {"exchanges": lambda rule: str(exchanges[rule])}
    named: dict[str, Callable[[str], str]] = counted | {
        "Mbit up/client": lambda rule: mean(rule, "bits_up", 2, 1e-6),
        "s measuring": lambda rule: mean(rule, "seconds_measure", 1),
        "s merging": lambda rule: mean(rule, "seconds_merge", 1),
    }
    rows = [[rule, *(entry(rule) for entry in named.values())] for rule in rules]
    seconds = values(everything, "training", "seconds").mean()
    text = (
        f"Means over cells; training the clients takes {seconds:.0f} s. The first cell's seconds include compilation."
    )
    return f"\n{text}\n\n" + common.markdown_table(["rule", *named], rows)


def summary(columns: Mapping[str, Sequence[Outcome]], rules: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Mean accuracies in %, their spreads and paired differences to FedAvg, by column and method."""
    methods = methods_of(columns, rules)

    def each(number: Callable[[Sequence[Outcome], str], float], names: Sequence[str]) -> dict[str, dict[str, float]]:
        return {name: {m: round(100 * number(found, m), 2) for m in names} for name, found in columns.items()}

    result: dict[str, Any] = {
        "accuracy": each(lambda found, m: values(found, m).mean(), methods),
        "std": each(lambda found, m: _std(values(found, m)), methods),
        "best_rule": {name: best_rule(found, rules) for name, found in columns.items()},
        "spread": spread_note(settings),
        "seeds": settings.seeds,
    }
    if "fedavg" in rules:
        others = [method for method in methods if method != "fedavg"]
        gap = lambda found, m: values(found, m) - values(found, "fedavg")  # noqa: E731
        result["minus_fedavg"] = each(lambda found, m: gap(found, m).mean(), others)
        result["minus_fedavg_std"] = each(lambda found, m: _std(gap(found, m)), others)
    return result


def _std(numbers: np.ndarray) -> float:
    return float(numbers.std(ddof=1)) if numbers.size > 1 else float("nan")


def dots(axis: Any, outcomes: Sequence[Outcome], rules: Sequence[str]) -> None:
    """Accuracies of every method: a dot per seed, a bar for the mean."""
    methods, own = methods_of({"": outcomes}, rules), common.rule_colours(rules)
    for row, method in enumerate(methods):
        numbers, colour = 100 * values(outcomes, method), own.get(method, common.REFERENCE)
        axis.barh(row, numbers.mean(), color=colour, alpha=0.35, height=0.7)
        axis.plot(numbers, np.full(numbers.size, row), "o", color=colour, markersize=3)
    name_rows(axis, [label(method) for method in methods])
    axis.invert_yaxis()
    axis.set(xlabel="test accuracy (%)", xlim=(0, 100))
