"""FIPA and FedAvg with equal tuning, on fresh seeds: regression and Poisson's equation (FIPA, arXiv 2601.13608).

The clients' rate, and FIPA's τ for each rank, are those of the least error on tuning seeds: the geometric mean over
those seeds and all numbers of pieces. With one setting each, methods are then compared on seeds that chose nothing.
Problems, methods and rounds are those of `fipa.regression` and `fipa.pde`; FIPA is damped and clipped.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from experiments.fipa import fields, pde, regression
from experiments.lib import common
from experiments.lib.gains import paired

PIECES = {"regression": regression.PIECES, "poisson": (1, 2, 4)}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seed: The first of the seeds that are reported.
        tuning_seed: The first of the tuning seeds, of which there are as many.
        seeds: How many of either.
        ranks: FIPA's ranks in regression.
        poisson_ranks: Those for Poisson's equation.
        problems: The problems.
        line_search: Let the clients' mean loss choose the server's step, for FedAvg and FIPA alike.
        rates: Rates of the clients' Adam to choose from.
        taus: FIPA's damping, relative to the largest eigenvalue, to choose from.
        rounds: Rounds of every method.
        warm_up: Rounds of FedAvg that FIPA begins with.
        epochs: Local epochs.
    """

    seed: int = 30
    tuning_seed: int = 100
    seeds: int = 5
    ranks: tuple[int, ...] = (5, 10, 50)
    poisson_ranks: tuple[int, ...] = (5, 10, 50)
    problems: tuple[Literal["regression", "poisson"], ...] = ("regression", "poisson")
    line_search: bool = False
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    taus: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    rounds: int = 40
    warm_up: int = 5
    epochs: int = 20


def methods(settings: Settings, problem: str) -> dict[str, str]:
    """The methods on a problem, and what tables call them."""
    ranks = settings.ranks if problem == "regression" else settings.poisson_ranks
    found = {"fedavg": "FedAvg"} | {f"fipa-{rank}-clipped": f"FIPA, rank {rank}" for rank in ranks}
    return {name + fields.SEARCHED: label for name, label in found.items()} if settings.line_search else found


def run(problem: str, method: str, pieces: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The errors of one method on one split [seeds, rounds + 1]; see `fields.follow`."""
    if problem == "regression":
        return {"error": regression.run(method, pieces, settings)["error"]}
    return {"error": pde.run(problem, method, pieces, settings)["error"]}


def candidates(settings: Settings, method: str, seed: int) -> list[dict[str, Any]]:
    """What a method is tried with; FedAvg has no τ."""
    names = ("seeds", "rounds", "warm_up", "epochs")
    same = {name: getattr(settings, name) for name in names} | {"seed": seed}
    taus = settings.taus[:1] if method.startswith("fedavg") else settings.taus
    return [same | {"learning_rate": rate, "tau": tau} for rate in settings.rates for tau in taus]


def last(records: list[dict[str, Any]], **where: Any) -> np.ndarray:
    """The errors of the last round [seeds], infinite where it is not a number."""
    return fields.errors(records, **where)[:, -1]


def best(records: list[dict[str, Any]], problem: str, method: str, tried: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The setting of the least geometric mean of errors."""

    def score(one: Mapping[str, Any]) -> float:
        found = [last(records, problem=problem, method=method, pieces=p, settings=one) for p in PIECES[problem]]
        return float(np.mean(np.log(found)))

    return min(tried, key=score)


def main() -> None:
    """Searches, runs what was chosen on other seeds, and reports."""
    quick = {"seeds": 2, "rates": (3e-3,), "taus": (1e-3,), "rounds": 4, "warm_up": 2, "epochs": 2}
    settings = common.command_line(Settings, __doc__, quick=quick)
    cases = [(problem, method) for problem in settings.problems for method in methods(settings, problem)]

    def grid(problem: str, method: str, tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"problem": problem, "method": method, "pieces": pieces, "settings": one}
            for one in tried
            for pieces in PIECES[problem]
        ]

    tuning: list[dict[str, Any]] = []
    chosen: dict[tuple[str, str], Mapping[str, Any]] = {}
    fresh: list[dict[str, Any]] = []
    for case in cases:  # a method's programs serve both kinds of seeds while they are in memory
        tried = candidates(settings, case[1], settings.tuning_seed)
        tuning += common.run_all(settings.out, grid(*case, tried), run, f"{case[1]}: tuning")
        chosen[case] = best(tuning, *case, tried)
        fresh += common.run_all(settings.out, grid(*case, [{**chosen[case], "seed": settings.seed}]), run, case[1])
    text = (
        f"Relative l2 error after {settings.rounds} rounds on {settings.seeds} fresh seeds, mean ± std; in brackets "
        "the seeds on which a method beats FedAvg, then its mean error relative to FedAvg's. The clients' rate and τ "
        f"were chosen for each method on {settings.seeds} other seeds.\n"
    )
    summary: dict[str, Any] = {"seeds": settings.seeds, "worst_ratio": 0.0}
    if settings.line_search:
        text = text[:-1] + " Every round the clients' mean loss chooses the server's step.\n"
    fig, axes = common.figure(1, len(settings.problems), width=4.6)
    for axis, problem in zip(axes[0], settings.problems, strict=True):
        rows, summary[problem], several = [], {}, PIECES[problem]
        plain = {
            p: last(fresh, problem=problem, method=next(iter(methods(settings, problem))), pieces=p) for p in several
        }
        for number, (method, label) in enumerate(methods(settings, problem).items()):
            found = {p: last(fresh, problem=problem, method=method, pieces=p) for p in several}
            ratios = {p: float(found[p].mean() / plain[p].mean()) for p in several}
            gains = {p: paired(plain[p], found[p]) for p in several}
            how = chosen[problem, method]
            said = f"{label}: rate {how['learning_rate']:g}" + (
                "" if method.startswith("fedavg") else f", τ {how['tau']:g}"
            )
            cells = [f"{found[p].mean():.3g} ± {found[p].std(ddof=1):.2g}" for p in several]
            if not method.startswith("fedavg"):
                more = [f" ({gains[p]['seeds_better']}/{settings.seeds}; {ratios[p]:.2f})" for p in several]
                cells = [cell + own for cell, own in zip(cells, more, strict=True)]
                summary["worst_ratio"] = max(summary["worst_ratio"], *ratios.values())
            rows.append([said, *cells])
            told = {str(p): {"errors": found[p], "ratio": ratios[p], **gains[p]} for p in several}
            summary[problem][method] = {"chosen": how, "pieces": told}
            places = np.arange(len(several)) + 0.15 * (number - 1.5)
            for place, p in zip(places, several, strict=True):
                label = f"_{label}" if p != several[0] else label
                axis.plot(np.full(len(found[p]), place), found[p], "o", color=common.COLOURS[number], label=label)
        text += f"\n{problem}:\n\n" + common.markdown_table(["", *[f"pieces {p}" for p in several]], rows)
        axis.set(title=f"{problem}: a dot a seed", yscale="log", ylabel="relative l2 error", xlabel="pieces per client")
        axis.set_xticks(range(len(several)), several)
    axes[0, 0].legend()
    common.report(settings.out, text, summary, fig)


if __name__ == "__main__":
    main()
