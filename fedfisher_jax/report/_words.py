"""Words for people: what went wrong without an error, in a sentence each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .._metrics import Scores

LITTLE = 0.1  # nats: who has one class almost alone can learn no more than to say so
SHOWN = 8  # names in a sentence


def words_on_training(names: Sequence[str], after: Scores, guesses: Sequence[Scores | None]) -> list[str]:
    """Say whose model predicts its own examples worse than a constant guess, or no better.

    Args:
        names: what the models are called, [M].
        after: their scores on their own examples, [M].
        guesses: the best constant guess of each one's targets; None where nobody knows it.
    """
    worse, chance = [], []
    for number, (name, guess) in enumerate(zip(names, guesses, strict=True)):
        if guess is None:
            continue
        loss = float(after.loss[number])
        if not loss <= guess.loss + (LITTLE if guess.accuracy is not None else 0.01 * guess.loss):
            worse.append(f"{name} ({loss:.4g}, a guess {guess.loss:.4g})")
        elif loss > 0.95 * guess.loss and guess.loss > LITTLE:
            chance.append(f"{name} ({loss:.4g}, a guess {guess.loss:.4g})")
    found = []
    if worse:
        found.append(f"worse than a constant guess on these examples, by loss: {_listed(worse)}")
    if chance:
        found.append(f"at chance, no better than a constant guess on these examples, by loss: {_listed(chance)}")
    return found


def words_on_rule(name: str, result: Mapping[str, Any]) -> list[str]:
    """Say what a rule's result holds that a person should know: a solve that did not converge, Fishers that are zero.

    Args:
        name: the rule.
        result: "diagnostics" of its solve, and perhaps "zero_fisher", numbers of clients.
    """
    found = []
    for steps in _unfinished(result.get("diagnostics", {})):
        residual = f", residual {float(steps['residual']):.2g}" if "residual" in steps else ""
        found.append(f"{name}: its solver did not converge in {int(steps.get('iterations', 0))} iterations{residual}")
    if zero := result.get("zero_fisher"):
        clients = _listed([str(number) for number in zero])
        found.append(f"{name}: the Fisher is zero everywhere for clients {clients}, whose models count for nothing")
    return found


def words_on_diagnostics(name: str, result: Mapping[str, Any]) -> list[str]:
    """Say in a sentence how a rule's solve went, whatever that was, and what else it tells of itself.

    Args:
        name: the rule.
        result: "diagnostics" of its solve.
    """
    told = dict(result.get("diagnostics", {}))
    inner = {key: told.pop(key) for key in list(told) if isinstance(told[key], Mapping)}
    found = []
    if "iterations" in told:
        how = "converged" if np.all(told.pop("converged", True)) else "stopped"
        residual = told.pop("residual", None)
        words = "" if residual is None else f", residual {float(residual):.2g}"
        count = int(told.pop("iterations"))
        found.append(f"{how} after {count} iteration{'s' * (count != 1)}{words}")
    found += [f"{key.replace('_', ' ')} {_number(value)}" for key, value in told.items()]
    further = [word for key, one in inner.items() for word in words_on_diagnostics(key, {"diagnostics": one})]
    return ([f"{name}: {'; '.join(found)}"] if found else []) + [f"{name}, then {word}" for word in further]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "not finite" if value is None else str(value)


def _unfinished(diagnostics: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The diagnostics, and those of a rule's further exchanges within, whose solve did not converge."""
    if "converged" in diagnostics and not np.all(diagnostics["converged"]):
        yield diagnostics
    for inner in diagnostics.values():
        if isinstance(inner, Mapping):
            yield from _unfinished(inner)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
