"""Merges with privacy of every example for all that clients send: models, and statistics beside them.

Digits, an MLP, clients of a Dirichlet split; each seed with a split, a start, training and noise of its own. Clients
train by DP-SGD, measure at their own models and add all of the noise themselves; "recalibrated" is FedAvg, then sums of
the last layer's inputs at its model, with noise by each client or divided among all of them inside a secure sum. Every
cell keeps one promise about one example that is added or removed, composed over all that its silo sends: FedAvg spends
it on training alone, others three quarters of it (`dp_training.Beside`), and the analytic head, for which nothing is
trained, all of it on its sums; a natural-gradient step after it has two more exchanges, of three in all. Norms are
clipped far below those of most examples, which depends on no data: clips that merges do not depend on the scale of.
Class moments and steps have units, and there clips are what standardised inputs have on average: √64 for an input, 65
for its square and a constant's; 1 for a gradient, as for residuals of one-hot targets. Nothing was tuned.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedfisher_jax as ff
from experiments.lib import common
from experiments.privacy.silos import (
    DELTA,
    OF_STEPS,
    STEPS,
    Federation,
    federation,
    measure_of,
    promised_for,
    score,
    whole,
    with_inputs,
    world,
)
from fedfisher_jax.merge import Payload, Update
from fedfisher_jax.privacy import example_noise
from fedfisher_jax.privacy._example_parts import Noise
from fedfisher_jax.privacy._noisy_parts import mended, private_parts, with_noise

EPSILONS: tuple[float, ...] = (0.5, 1.0, 2.0, 8.0)
CELLS = (*((epsilon, True) for epsilon in EPSILONS), (None, True), (None, False))  # ε, and whether parts are clipped
MORE_EPSILONS = (1.0, 2.0, 8.0, None)
RULES = ("fedfisher-diag", "regmean", "fedfisher-kfac")
HEADS = {"fedavg, recalibrated": 1, "fedavg, recalibrated, divided noise": 0}  # how often all of the noise is added
ROWS = ("fedavg", *RULES, *HEADS, "analytic head")
EXCHANGES = 3  # of a head and a step after it
STEPPED: dict[str, tuple[int, example_noise.Trust]] = {  # exchanges, and who adds noise
    "analytic head, noise on sums": (1, "central"),
    "analytic head, stepped": (EXCHANGES, "local"),
    "analytic head, stepped, noise on sums": (EXCHANGES, "central"),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: How many, each of a split, a start, training and noise.
        clients: Their number.
        alphas: Concentrations of the Dirichlet splits.
        epochs: Local epochs.
    """

    seeds: int = 5
    clients: int = 5
    alphas: tuple[float, ...] = (10.0, 0.5)
    epochs: int = 30


def run(
    seed: int, alpha: float, clients: int, epochs: int, epsilon: float | None, clipped: bool, more: bool = False
) -> dict[str, float]:
    """Accuracy of every merge, in %: of `ROWS`, or of pseudo-data and `STEPPED`."""
    here, draws = federation(seed, alpha, clients), np.random.default_rng([seed, int(10 * (epsilon or 0)), *[1] * more])
    draw = lambda shape: draws.normal(size=shape)  # noqa: E731
    beside: list[Any] = [None if epsilon is None else promised_for(epsilon, n, epochs, True) for n in here.sizes]
    local = here.models(epochs, beside)
    if more:
        sent = here.measured("pseudo-data", local, clipped, list(map(with_inputs, beside)), draw)
        result = {"pseudo-data": score(here.merged("pseudo-data", sent))}
        return result | {name: score(stepped(here, epsilon, clipped, *how, draw)) for name, how in STEPPED.items()}
    rules, key = world()[2], here.key

    def averaged(local: Any) -> Any:
        sizes = enumerate(here.sizes)
        models = [(n, jax.tree.map(lambda leaf, i=i: leaf[i], local)) for i, n in sizes]
        return here.merged("fedavg", [Payload(jnp.asarray(float(n)), model) for n, model in models])

    alone: list[Any] = [None if epsilon is None else promised_for(epsilon, n, epochs, False) for n in here.sizes]
    result = {"fedavg": score(averaged(local if epsilon is None else here.models(epochs, alone)))}
    for name in RULES:
        result[name] = score(here.merged(name, here.measured(name, local, clipped, beside, draw)))
    for name, times in (*HEADS.items(), ("analytic head", 1)):
        rule, model = ("head", averaged(local)) if name in HEADS else (name, here.start)
        sent = [measure_of(rule, clipped)(Update(None, model), one, key.measure) for one in here.own]
        if epsilon is not None:
            how: dict[str, Any] = {} if times else {"trust": "distributed", "sharers": clients}
            kept = [whole(epsilon) if name == rule else example_noise.after_training(one, **how) for one in beside]
            sent = [example_noise.noisy(one, p, draw) for one, p in zip(sent, kept, strict=True)]
        result[name] = score(ff.merge_payloads(rules[rule], sent, model).params)
    return result


def stepped(
    here: Federation, epsilon: float | None, clipped: bool, many: int, trust: example_noise.Trust, draw: Callable
) -> Any:
    """The model of an analytic head, and where exchanges are `EXCHANGES` of a natural-gradient step after it."""

    def measured(name: str, model: Any) -> list[Payload]:
        keys = jax.random.split(here.key.measure, len(here.own))
        return [measure_of(name, clipped)(Update(None, model), one, k) for one, k in zip(here.own, keys, strict=True)]

    rules, sent = world()[2], measured("analytic head", here.start)
    if epsilon is not None:
        how: dict[str, Any] = {} if trust == "local" else {"trust": "distributed", "sharers": len(here.own)}
        sent = [example_noise.noisy(one, whole(epsilon, releases=many, **how), draw) for one in sent]
    model = ff.merge_payloads(rules["analytic head"], sent, here.start).params
    for name in STEPS[: many - 1]:
        rule, sent = rules[name], measured(name, model)
        if epsilon is not None:
            multiplier = example_noise.promise(epsilon, DELTA, releases=many).noise_multiplier
            noise = Noise(multiplier, OF_STEPS, replaced=False)
            if trust == "local":
                sent = [mended(with_noise(one, noise, draw), noise) for one in sent]
            else:
                rule = private_parts(rule, noise, trust, draw)
        model = ff.merge_payloads(rule, sent, model).params
    return model


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "alphas": (10.0,), "epochs": 2})
    shared = {"clients": settings.clients, "epochs": settings.epochs}
    grid = [
        {"seed": seed, "alpha": alpha, **shared, "epsilon": epsilon, "clipped": clipped, **more}
        for more in ({}, {"more": True})
        for alpha in settings.alphas
        for epsilon, clipped in CELLS
        for seed in range(settings.seed, settings.seed + settings.seeds)
        if not more or epsilon in MORE_EPSILONS
    ]
    records = common.run_all(settings.out, grid, run)
    text = f"Accuracy in %, digits, {settings.clients} clients, δ = {DELTA:g}, one example added or removed; "
    text += f"mean ± std over {settings.seeds} seeds.\n"
    summary: dict[str, float] = {}
    for alpha in settings.alphas:
        rows = []
        for name in (*ROWS, "pseudo-data", *STEPPED):
            more = None if name in ROWS else True
            found = [common.column(records, name, alpha=alpha, epsilon=e, clipped=c, more=more) for e, c in CELLS]
            rows.append([name, *(common.mean_std(one) if one.size else "–" for one in found)])
            told = ("no noise" if c else "as it is" if e is None else "" for e, c in CELLS)
            names = [words if e is None else f"epsilon {e:g}" for (e, _), words in zip(CELLS, told, strict=True)]
            summary |= {
                f"alpha {alpha:g}, {name}, {n}": float(v.mean()) for n, v in zip(names, found, strict=True) if v.size
            }
        header = ["merge"]
        header += [("clipped, no noise" if c else "neither") if e is None else f"ε = {e:g}" for e, c in CELLS]
        text += f"\nα = {alpha:g}\n\n" + common.markdown_table(header, rows)
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
