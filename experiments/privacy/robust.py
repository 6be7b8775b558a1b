"""What one or two clients of ten can do to a merge, by attack and by rule.

Digits, an MLP; the clients are those of a Dirichlet split, each seed with a split, a start and training of its own.
Clients that attack do so together: they train on flipped labels (class c becomes 9 − c), or train honestly and lie:
their move with the opposite sign, ten times as long, a Fisher 10⁶ times too large, 10¹² examples; or one sends its file
again under another name. `faulty` and `cap` are the library's defaults.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

import fedfisher_jax as ff
from experiments.lib import cells, common
from fedfisher_jax.federate import measure_clients, merge_clients, run_keys, train_clients
from fedfisher_jax.merge import Payload, Rule, Update, robust
from fedfisher_jax.merge._robust import COORDINATES, How

ATTACKS = ("none", "label flip", "sign flip", "scaled update", "enormous Fisher", "10^12 examples", "two names")
RULES = {"fedavg": ff.fedavg, "fisher-merge": ff.fisher_merge, "fedfisher-kfac": ff.fedfisher}
HOW = ("plain", *get_args(How))


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: How many; each draws a split, a start and training.
        clients: How many, all of them together.
        attackers: How many of them attack.
        alphas: Concentrations of the Dirichlet splits.
        epochs: Local epochs.
    """

    seeds: int = 5
    clients: int = 10
    attackers: int = 2
    alphas: tuple[float, ...] = (10.0, 0.3)
    epochs: int = 60


def lies(attack: str, honest: Payload, flipped: Payload, start: Any, attackers: int) -> Payload:
    """The stacked payloads that a server gets; the first clients attack."""
    guilty = jnp.arange(honest.weight.shape[0]) < attackers

    def where_guilty(theirs: Any, others: Any) -> Any:
        mixed = lambda a, b: jnp.where(guilty.reshape(-1, *[1] * (b.ndim - 1)), a, b)  # noqa: E731
        return jax.tree.map(mixed, theirs, others)

    def moved(factor: float) -> Payload:
        far = jax.tree.map(lambda leaf, at: at + factor * (leaf - at), honest.params, start)
        return honest._replace(params=where_guilty(far, honest.params))

    if attack == "label flip":
        return where_guilty(flipped, honest)
    if attack == "sign flip":
        return moved(-1.0)
    if attack == "scaled update":
        return moved(10.0)
    if attack == "enormous Fisher" and honest.statistics is not None:
        return honest._replace(
            statistics=where_guilty(jax.vmap(lambda f: f.scale(1e6))(honest.statistics), honest.statistics)
        )
    if attack == "10^12 examples":
        return honest._replace(weight=jnp.where(guilty, 1e12, honest.weight))
    if attack == "two names":
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), honest)
    return honest


@cache
def network_of() -> tuple[Any, Any]:
    """The network and its layers."""
    return cells.captured_network("mlp", (8, 8, 1), 10, hidden=(32,))


@cache
def rule_of(name: str, how: str) -> Rule:
    """One object for all seeds, so that it is compiled once."""
    network, captured = network_of()
    more = {} if name == "fedavg" else {"captured": captured}
    rule = RULES[name](network.apply, ff.categorical(), **more)
    return rule if how == "plain" else robust(rule, how)


def run(seed: int, alpha: float, clients: int, attackers: int, epochs: int) -> dict[str, Any]:
    """Accuracy of every attack, rule and way, in %."""
    found, (network, _) = ff.data.load("digits"), network_of()
    parts = ff.data.split("dirichlet-client", found.train_y, clients, seed=seed, alpha=alpha)
    key, training = run_keys(seed), cells.training(network, False, epochs)
    start = jax.jit(network.init)(key.init)
    sent: dict[str, dict[str, Payload]] = {}
    for name, labels in (("honest", found.train_y), ("flipped", 9 - found.train_y)):
        who = ff.cohort(jnp.asarray(found.train_x), jnp.asarray(labels), parts, length=len(labels))
        models, _ = train_clients(training, start, who, key.train)
        sent[name] = {
            rule: measure_clients(rule_of(rule, "plain").measure, Update(models.params, start), who, key.measure)[0]
            for rule in RULES
        }
    score: Callable = jax.jit(
        lambda params: ff.evaluate(network.apply, ff.categorical(), params, found.test_x, found.test_y).accuracy
    )
    result: dict[str, Any] = {}
    for attack in ATTACKS:
        for rule in RULES:
            if attack == "enormous Fisher" and rule == "fedavg":
                continue
            got = lies(attack, sent["honest"][rule], sent["flipped"][rule], start, attackers)
            for how in HOW if rule == "fedavg" else [how for how in HOW if how not in COORDINATES]:
                merged = merge_clients(rule_of(rule, how), got, start)
                result[f"{attack}: {rule}, {how}"] = 100 * float(score(merged.params))
    return result


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "alphas": (10.0,), "epochs": 2})
    shared = {"clients": settings.clients, "attackers": settings.attackers, "epochs": settings.epochs}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = [{"seed": seed, "alpha": alpha, **shared} for alpha in settings.alphas for seed in seeds]
    records = common.run_all(settings.out, grid, run, "federations")
    text, summary = "", {}
    for alpha in settings.alphas:
        found = [record["result"] for record in records if record["settings"]["alpha"] == alpha]
        named = dict.fromkeys(key.partition(": ")[2] for key in found[0])
        each = {key: np.asarray([one[key] for one in found]) for key in found[0]}
        rows = []
        for name in named:
            cells_of = [each.get(f"{attack}: {name}") for attack in ATTACKS]
            rows.append([name, *("–" if one is None else common.mean_std(one) for one in cells_of)])
            if not name.endswith("plain"):
                plain = f"none: {name.partition(', ')[0]}, plain"
                lost = float(np.mean(each[plain] - each[f"none: {name}"]))
                summary[f"points_lost_honest_alpha_{alpha:g}: {name}"] = lost
            worst = min(float(each[f"{attack}: {name}"].mean()) for attack in ATTACKS if f"{attack}: {name}" in each)
            summary[f"worst_attack_alpha_{alpha:g}: {name}"] = worst
        text += f"α = {alpha:g}\n\n" + common.markdown_table(["rule", *ATTACKS], rows) + "\n"
    about = f"Accuracy in %, digits, {settings.attackers} of {settings.clients} clients attack (two names: one)"
    common.report(settings.out, f"{about}; mean ± std over {settings.seeds} seeds.\n\n{text}", summary)


if __name__ == "__main__":
    main()
