"""What privacy costs five silos: accuracy under noise for each silo, and how far a merge by a secure sum is off.

The silos are those of `fedfisher example` (digits, MLP), each seed with a split, a start and training of its own. Noise
is that of `fedfisher measure --epsilon E`: δ = 1e-5, clips of 1, one release; it has no seed, so its columns repeat in
distribution alone.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from experiments.fedfisher import bits
from experiments.lib import common
from fedfisher_jax.merge import catalogue
from fedfisher_jax.privacy import noise, secure_merge

RULES = ("fedavg", "fisher-merge", "fedfisher-diag", "regmean-kron", "fedfisher-kfac")
EPSILONS = (100.0, 8.0)


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: How many; each draws a split, a start and training.
        draws: How often noise is drawn for each seed; accuracies are means over it.
    """

    seeds: int = 5
    draws: int = 3


def distance(first: Any, second: Any) -> float:
    """Euclidean, over all leaves."""
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, first, second)))


def run(seed: int, draws: int) -> dict[str, Any]:
    """One set of silos, every rule."""
    silos, result = bits.digits(seed), {}
    x, y = map(jnp.asarray, silos.test)
    score = jax.jit(lambda params: ff.evaluate(silos.apply, ff.categorical(), params, x, y).accuracy)
    for name in RULES:
        rule = catalogue.named_rule(name, silos.apply, ff.categorical(), offers={"captured": silos.captured})
        sent = silos.payloads(rule)
        plain = bits.merge(rule, sent)
        found: dict[str, Any] = {"plain": 100 * float(score(plain))}
        found["move"] = float(np.mean([distance(one.params, silos.start) for one in sent]))
        if rule.combine == "add":
            summed = secure_merge(rule, sent).params
            gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), summed, plain)
            found |= {"sum": 100 * float(score(summed)), "gap": max(jax.tree.leaves(gaps))}
        for epsilon in EPSILONS:
            found |= noisy(rule, sent, silos.start, epsilon, draws, score)
        result[name] = found
    return result


@cache
def guaranteed(epsilon: float) -> noise.Guarantee:
    """For one release; accounting takes seconds."""
    return noise.noise_for(epsilon, 1e-5, clip_params=1.0)


def noisy(
    rule: ff.Rule, sent: list[ff.Payload], start: Any, epsilon: float, draws: int, score: Callable
) -> dict[str, float]:
    """Accuracy of merges of private payloads, and how far these are moved, nearly all of it by noise."""
    guarantee, accuracies, moves = guaranteed(epsilon), [], []
    for _ in range(draws):
        private = [noise.privatise(one, start, guarantee) for one in sent]
        accuracies.append(100 * float(score(bits.merge(rule, private))))
        moves += [distance(one.params, start) for one in private]
    return {f"{epsilon:g}": float(np.mean(accuracies)), f"noise {epsilon:g}": float(np.mean(moves))}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "draws": 1})
    seeds = range(settings.seed, settings.seed + settings.seeds)
    records = common.run_all(settings.out, [{"seed": s, "draws": settings.draws} for s in seeds], run, "silos")
    found = {rule: [record["result"][rule] for record in records] for rule in RULES}

    def shown(rule: str, key: str) -> str:
        return common.mean_std([one[key] for one in found[rule]]) if key in found[rule][0] else "none"

    keys = ("plain", "sum", *(f"{epsilon:g}" for epsilon in EPSILONS), "move", f"noise {EPSILONS[-1]:g}")
    names = ("no noise", "secure sum", *(f"ε = {epsilon:g}" for epsilon in EPSILONS), "move", "move with noise, ε = 8")
    gaps = {rule: max(one.get("gap", np.nan) for one in found[rule]) for rule in RULES}
    off = {rule: "none" if np.isnan(gap) else f"{gap:.1e}" for rule, gap in gaps.items()}
    rows = [[rule, *(shown(rule, key) for key in keys), off[rule]] for rule in RULES]
    table = common.markdown_table(["rule", *names, "secure sum off by at most"], rows)
    means = {
        f"{rule}: {key}": float(np.mean([one[key] for one in found[rule]])) for rule in RULES for key in found[rule][0]
    }
    common.report(settings.out, table, means)


if __name__ == "__main__":
    main()
