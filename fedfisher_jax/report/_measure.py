"""What models are compared by: accuracy where there is one, else their error in units of the target."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One score of a result.

    Attributes:
        key: its name in a result.
        said: its name for people, in the midst of a sentence.
        plural: its name in the record of clients.
        factor: what it is multiplied by to be shown.
        form: how it is written then.
        better: which of several values is best.
    """

    key: str
    said: str
    plural: str
    factor: float
    form: str
    better: Callable[[Iterable[float]], float]

    def text(self, value: float | None) -> str:
        """A value, as it is in a result, as it is shown."""
        return "–" if value is None else format(self.factor * value, self.form)

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best of some values, those that were not finite (None) left out; None where no other is there."""
        known = [value for value in values if value is not None]
        return self.better(known) if known else None


ACCURACY = Measure("accuracy", "test accuracy (%)", "accuracies", 100.0, ".1f", max)
RMSE = Measure("rmse", "test RMSE", "rmses", 1.0, ".4g", min)
LOSS = Measure("loss", "test loss (nats)", "losses", 1.0, ".4g", min)


def measure_of(results: Iterable[Mapping[str, Any] | None]) -> Measure:
    """Choose what some results are compared by: the first measure that one of them has."""
    results = [result for result in results if result]
    found = (one for one in (ACCURACY, RMSE, LOSS) if any(result.get(one.key) is not None for result in results))
    return next(found, ACCURACY)


def measure_of_record(record: Mapping[str, Any]) -> Measure:
    """Choose what the results of a run are compared by."""
    return measure_of([*record["rules"].values(), *record["references"].values()])


def digits(value: float | None) -> str:
    """Write a score with four digits; a dash stands for one that was not finite, which records have as None."""
    return "–" if value is None else f"{value:.4f}"


def megabits(bits: int | float) -> str:
    """Write bits as megabits, with two digits at least of a small model's."""
    return f"{bits / 1e6:.2f}" if bits >= 1e5 else f"{bits / 1e6:.2g}"
