"""Natural-gradient steps after the analytic head: no client trains, and accuracy is told after every exchange.

The first exchange is `analytic` at the designed start; every step after it is two exchanges. All that is sent adds up
over examples, so the split matters to rounding alone, and to the draws of the Monte-Carlo curvature. --choose measures
candidates of the settings on a validation split of fewer training examples; the report then says how they compare.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.lib import cells, common
from fedfisher_jax import Rule, Update, categorical, cohort, data, evaluate, federate, models
from fedfisher_jax.federate import run_keys
from fedfisher_jax.federate._simulate import payload_bits
from fedfisher_jax.merge import analytic, exchanges, natural_gradient, then
from fedfisher_jax.merge._natural_gradient import DAMPINGS, SHRINK
from fedfisher_jax.merge._sent import model_of

KIND = "monte_carlo"  # of the curvature
FIRST_CHOICE = 100  # seed of the choice, which no table has
VALIDATION, EXAMPLES = (
    10_000,
    15_000,
)  # training examples that are held out, and that are used, where settings are chosen
CANDIDATES = {
    "least squares, λ = 0.1": {"dampings": (0.1,)},
    "least squares, λ = 0.03, 0.3": {"dampings": (0.03, 0.3)},
    "least squares, λ = 0.003, 0.03, 0.3": {},
    "cross-entropy, λ = 0.003, 0.03, 0.3": {"squares": False},
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`.
        alphas: Concentrations of the Dirichlet split, one for each number of clients.
        clients: Numbers of clients.
        steps: How many.
        seeds: Each draws a start and a split.
        choose: Only measure the settings' candidates, on a validation split of the training data, with one seed.
    """

    dataset: str = "fashion_mnist"
    alphas: tuple[float, ...] = (0.1,)
    clients: tuple[int, ...] = (5,)
    steps: int = 4
    seeds: int = 3
    choose: bool = False


QUICK = {"dataset": "digits", "steps": 1, "seeds": 1}


def after_each(rule: Rule, start: Any, who: Any, judge: Any, key: jax.Array) -> Iterator[dict[str, float]]:
    """Go through a rule's exchanges, and judge the model after each; bits are those sent up to then."""
    sent, bits = start, 0
    for number, part in enumerate(exchanges(rule)):
        own = jax.random.fold_in(key, number)
        payloads, _ = federate.measure_clients(part.measure, Update(None, sent), who, own)
        bits += payload_bits(payloads)
        sent = federate.merge_clients(part, payloads, sent).params
        yield judge(model_of(sent)) | {"bits": bits}


def run(dataset: str, alpha: float, clients: int, steps: int, seed: int) -> dict[str, Any]:
    """Test accuracy, loss and bits after every exchange."""
    here = cells.world(dataset, cells.model_of(dataset))
    parts = data.split("dirichlet-client", here.dataset.train_y, clients, seed=seed, alpha=alpha)
    x, y, *test = here.arrays
    return columns(followed(here, seed, cohort(x, y, parts, length=len(y)), test, steps, {}))


def choose(choice: str, candidate: str, dataset: str, steps: int, seed: int) -> dict[str, Any]:
    """The same on validation examples, of one client with some of the others."""
    del choice
    here = cells.world(dataset, cells.model_of(dataset))
    x, y, *_ = here.arrays
    order = np.random.default_rng(seed).permutation(len(y))
    held, kept = order[:VALIDATION], order[VALIDATION:][:EXAMPLES]
    who, options = cohort(x, y, [kept]), CANDIDATES[candidate]
    return columns(followed(here, seed, who, (x[held], y[held]), steps, options))


def followed(
    here: cells.World, seed: int, who: Any, held_out: Sequence[Any], steps: int, options: Mapping[str, Any]
) -> Iterator[dict[str, float]]:
    """Scores on held-out examples after each exchange of the head and so many steps."""
    network, likelihood, key = here.network, categorical(), run_keys(seed)
    offered: dict[str, Any] = {"captured": here.captured}
    made = models.designed if "conv1" in here.network.init(key.init) else None
    first = analytic(network.apply, likelihood, start=made, **offered)
    more = natural_gradient(network.apply, likelihood, steps=steps, kind=KIND, **options, **offered)

    def judge(params: Any) -> dict[str, float]:
        loss, accuracy = evaluate(network.apply, likelihood, params, *held_out)
        return {"accuracy": float(accuracy), "loss": float(loss)}

    return after_each(then(first, more), network.init(key.init), who, judge, key.measure)


def columns(found: Iterator[dict[str, float]]) -> dict[str, list[float]]:
    """Lists by name."""
    rows = list(found)
    return {name: [row[name] for row in rows] for name in rows[0]}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    if settings.choose:
        fixed = {"choice": "natural-gradient", "dataset": settings.dataset, "steps": 2, "seed": FIRST_CHOICE}
        records = common.run_all(settings.out, [fixed | {"candidate": name} for name in CANDIDATES], choose)
        print(choice_table(records))
        return
    splits = list(zip(settings.clients, settings.alphas, strict=True))
    fixed = {"dataset": settings.dataset, "steps": settings.steps}
    grid = [
        {**fixed, "clients": clients, "alpha": alpha, "seed": settings.seed + number}
        for clients, alpha in splits
        for number in range(settings.seeds)
    ]
    records = common.run_all(settings.out, grid, run)
    curves = {
        f"{clients} clients, α={alpha:g}": 100 * common.column(records, "accuracy", clients=clients, alpha=alpha)
        for clients, alpha in splits
    }
    bits = np.asarray(records[0]["result"]["bits"]) / 1e6
    shown = [0, *range(2, 2 * settings.steps + 1, 2)]  # the model changes in every second exchange
    rows = [
        [str(n + 1), str(n // 2), f"{bits[n]:.2f}", *(common.mean_std(curve[:, n]) for curve in curves.values())]
        for n in shown
    ]
    dampings = ", ".join(f"{value:g}" for value in DAMPINGS)
    text = (
        f"Test accuracy in % on {settings.dataset}, mean ± std over {settings.seeds} seeds (start and split). Least "
        f"squares, λ = {dampings}, ε = {SHRINK:g}, curvature by {KIND}.\n\n"
    ) + common.markdown_table(["exchanges", "steps", "Mbit up/client", *curves], rows)
    everything = common.read_results(settings.out / "results.jsonl")
    if chosen := [record for record in everything if "choice" in record["settings"]]:
        text += f"\n{choice_table(chosen)}"
    fig, axes = common.figure()
    for name, curve in curves.items():
        axes[0, 0].errorbar([n + 1 for n in shown], curve[:, shown].mean(0), fmt="o-", label=name)
    axes[0, 0].set(xlabel="exchanges", ylabel="test accuracy (%)")
    axes[0, 0].legend()
    summary = {name: {str(n + 1): curve[:, n].mean() for n in shown} for name, curve in curves.items()}
    common.report(settings.out, text, {"accuracy": summary}, fig)


def choice_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Validation accuracies of the candidates after each step."""
    rows = [
        [record["settings"]["candidate"], *(f"{100 * value:.1f}" for value in record["result"]["accuracy"][::2])]
        for record in records
    ]
    note = f"Validation accuracy in %, one seed, {EXAMPLES} training examples, after the head and after each step."
    return f"{note}\n\n" + common.markdown_table(["candidate", "head", "1 step", "2 steps"], rows)


if __name__ == "__main__":
    main()
