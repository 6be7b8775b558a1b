"""FIPA as a refinement of FedAvg on images (2601.13608): many clients, few in a round, and a long warm-up by FedAvg.

The warm-up is run once for each seed and kept as a checkpoint, from which every method goes on with the same clients in
every round. A method is a rule and the server's optimiser; FedAvg has its step's length tuned as FIPA has.
"""

import dataclasses
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import cells, common, over_rounds
from fedfisher_jax import Cohort, Examples, Federation, LocalTraining, categorical, cohort, data, evaluate, rounds
from fedfisher_jax.curvature import Subspace
from fedfisher_jax.federate import payload_bits, run_rounds
from fedfisher_jax.merge import FipaStep, PastFishers, Rule, Update, fedavg, fipa, public_fipa_step

RULES = {
    "fedavg": "FedAvg",
    "frozen": "FedAvg of the last layer, body frozen",
    "last": "FIPA, last layer",
    "memory": "FIPA, last layer, memory",
    "public": "FIPA, last layer, form of public codes",
    "whole": "FIPA, whole model",
}
CONTROLS = (
    "fedavg sgd-1",
    "fedavg sgd-0.5",
    "fedavg sgd-0.25",
    "fedavg sgd-0.1",
    "fedavg adam-0.001",
    "frozen sgd-0.25",
)
LAST, WHOLE = "memory sgd-0.25", "whole sgd-0.25"  # as a search on other seeds found, after 16 rounds of warm-up


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list` (fashion_mnist, cifar10, cifar100, …), or a path to an .npz file.
        clients: All clients.
        participation: Share of them in a round.
        alpha: Concentration of the Dirichlet split.
        warm_up: Rounds of plain FedAvg before.
        rounds: Rounds after the warm-up.
        every: Rounds between scores.
        epochs: Local epochs of SGD.
        learning_rate: Of local SGD, without momentum.
        rank: Eigenpairs of a client, of the last layer or of the whole model.
        tau: Damping, relative to the largest eigenvalue.
        rho: Weight of past rounds' Fishers in "memory".
        public: γ and τ of the form of public codes, τ as it is.
        methods: RULE SERVER each: a rule of fedavg, frozen, last, memory, public, whole, and plain, sgd-RATE,
            sgd-RATE-MOMENTUM or adam-RATE.
        seeds: Each draws split, start, sampling and training.
    """

    dataset: str = "fashion_mnist"
    clients: int = 100
    participation: float = 0.05
    alpha: float = 0.1
    warm_up: int = 200
    rounds: int = 50
    every: int = 5
    epochs: int = 1
    learning_rate: float = 0.05
    rank: int = 10
    tau: float = 0.01
    rho: float = 5.0
    public: tuple[float, float] = (1.0, 0.1)
    methods: tuple[str, ...] = (*CONTROLS, "last sgd-0.25", LAST, "public plain")
    seed: int = 30
    seeds: int = 5


QUICK = {"dataset": "digits", "clients": 20, "participation": 0.25, "warm_up": 10, "rounds": 10, "seeds": 2}
QUICK |= {"methods": ("fedavg sgd-1", "fedavg sgd-0.25", LAST, WHOLE)}
BATCH = 32
WORLD = ("dataset", "clients", "participation", "alpha", "warm_up", "epochs", "learning_rate")
READS = {
    "last": ("rank", "tau"),
    "memory": ("rank", "tau", "rho"),
    "public": ("rank", "public"),
    "whole": ("rank", "tau"),
}


def rule_of(name: str, here: cells.World, options: dict[str, Any]) -> Rule:
    """The server's rule of a method.

    Raises:
        ValueError: unknown name.
    """
    apply, likelihood = here.network.apply, categorical()
    if name in ("fedavg", "frozen"):
        return fedavg(apply, likelihood)
    if name not in RULES:
        raise ValueError(f"methods: got {name!r}, expected one of {', '.join(RULES)} and a server")
    head = here.captured.layers[-1].leaves
    effort = Subspace(options["rank"], 5, 1, head)
    if name == "whole":  # one pass less and few vectors more: a round takes a third of the time
        effort = Subspace(options["rank"], 2, 0)
    step = public_fipa_step(*options["public"]) if name == "public" else FipaStep(tau=options["tau"])
    past = PastFishers(options["rho"]) if name == "memory" else None
    return fipa(apply, likelihood, subspace=effort, step=step, past=past, batch_size=128)


def labels(head: tuple[int, ...], params: Any) -> Any:
    """Which parameters train where the body is frozen."""
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten(["head" if number in head else "body" for number in range(len(leaves))])


@cache
def federation_of(rule: str, server: str, options: tuple[tuple[str, Any], ...], *world: Any) -> Federation:
    """One object for all seeds, so that it is compiled once; `options` are the rule's."""
    one = dict(zip(WORLD, world, strict=True))
    here = world_of(one["dataset"])
    sgd = optax.sgd(one["learning_rate"])
    if rule == "frozen":
        frozen: dict[Any, Any] = {"head": sgd, "body": optax.set_to_zero()}
        sgd = optax.partition(frozen, partial(labels, here.captured.layers[-1].leaves))
    training = LocalTraining(here.network.apply, categorical(), sgd, one["epochs"], BATCH)
    sampled = rounds.fraction(one["participation"], one["clients"])
    return Federation(training, rule_of(rule, here, dict(options)), sampled, over_rounds.server(server))


def world_of(dataset: str) -> cells.World:
    """Data and network."""
    return cells.world(dataset, cells.model_of(dataset))


def bits_sent(federation: Federation, params: Any, here: cells.World) -> int:
    """What a client sends in a round, from the shapes of its payload."""
    few = Examples(*here.arrays[:2], jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))
    payload = jax.eval_shape(federation.rule.measure, Update(params, params, None, 1), few, jax.random.key(0))
    return payload_bits(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), payload))


def clients_of(seed: int, one: dict[str, Any]) -> Cohort:
    """The clients of a seed, with rows of one length, so that every seed runs the same programs."""
    here = world_of(one["dataset"])
    x, y, *_ = here.arrays
    split = data.split("dirichlet-client", here.dataset.train_y, one["clients"], seed=seed, alpha=one["alpha"])
    return cohort(x, y, split, length=len(y))


def warmed(seed: int, who: Cohort, one: dict[str, Any], folder: Path) -> rounds.State:
    """The state after the warm-up, from the checkpoint if there is one."""
    init_key, key = jax.random.split(jax.random.key(seed))
    federation = federation_of("fedavg", "plain", (), *(one[name] for name in WORLD))
    state = rounds.init(federation, world_of(one["dataset"]).network.init(init_key), one["clients"], key)
    return run_rounds(federation, state, who, one["warm_up"], folder / f"{seed}-{one['warm_up']}", every=50)[0]


def run(
    out: Path, method: str, seed: int, count: int, every: int, options: dict[str, Any], **one: Any
) -> dict[str, Any]:
    """The rounds of one method after the warm-up."""
    here, (rule, server) = world_of(one["dataset"]), method.split()
    *_, test_x, test_y = here.arrays
    who = clients_of(seed, one)
    given = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items())
    federation = federation_of(rule, server, given, *(one[name] for name in WORLD))
    warm = warmed(seed, who, one, out / "warm-up")
    state = rounds.init(federation, warm.params, one["clients"], warm.key)._replace(round=warm.round)
    score = lambda params: float(evaluate(here.network.apply, categorical(), params, test_x, test_y).accuracy)  # noqa: E731
    before = score(warm.params)
    _, found = over_rounds.follow(federation, state, who, count, score, every)
    return {**found, "before": before, "bits": bits_sent(federation, warm.params, here)}


def main() -> None:
    """Runs what is missing and reports.

    Raises:
        ValueError: no FedAvg among the methods.
    """
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    if not any(method.startswith("fedavg ") for method in settings.methods):
        raise ValueError("methods: expected a fedavg to compare with, got none")
    fixed = {name: getattr(settings, name) for name in WORLD} | {"count": settings.rounds, "every": settings.every}
    grid: list[dict[str, Any]] = [
        {"method": method, "seed": seed, **fixed}
        | {"options": {name: getattr(settings, name) for name in READS.get(method.split()[0], ())}}
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for method in settings.methods
    ]
    for one in grid:
        rule_of(one["method"].split()[0], world_of(settings.dataset), one["options"])
        over_rounds.server(one["method"].split()[1])
    records = common.run_all(settings.out, grid, partial(run, settings.out))
    curves = {m: 100 * common.column(records, "accuracy", method=m) for m in settings.methods}  # [seeds, scores]
    means = {m: curve.mean(1) for m, curve in curves.items()}
    rivals = [method for method in settings.methods if method.startswith("fedavg ")]
    rival = max(rivals, key=lambda method: means[method].mean())
    plain, best = means.get("fedavg sgd-1"), means[rival]
    rows, gains = [], {}
    for method, mine in means.items():
        rule, server = method.split()
        mb = common.column(records, "bits", method=method)[0] * settings.rounds / 8e6
        bases = (plain, means.get(f"fedavg {server}"), best)
        against = [None if base is None or base is mine else mine - base for base in bases]
        cells_ = ["" if d is None else over_rounds.paired(d) for d in against]
        rows.append(
            [
                f"{RULES[rule]}, {server}",
                common.mean_std(mine),
                common.mean_std(curves[method][:, -1]),
                *cells_,
                f"{mb:.1f}",
            ]
        )
        gains[method] = {"mean": mine.mean(), "last": curves[method][:, -1].mean()}
        if against[1] is not None:
            gains[method]["gain_over_the_same_server"] = against[1].mean()
        if against[2] is not None:
            gains[method] |= {"gain": against[2].mean(), "differences": against[2]}
            gains[method] |= {"interval": over_rounds.interval(against[2]), "seeds_better": int((against[2] > 0).sum())}
    before = 100 * common.column(records, "before", method=settings.methods[0])
    first, last = settings.warm_up + 1, settings.warm_up + settings.rounds
    g, tau = settings.public
    text = (
        f"{settings.dataset}, {settings.clients} clients, {100 * settings.participation:g} % a round, α = "
        f"{settings.alpha:g}, local epochs: {settings.epochs}; {settings.warm_up} rounds of plain FedAvg "
        f"({common.mean_std(before)} %), then {settings.rounds} rounds of each method with the same clients. Test "
        f"accuracy in %, mean ± std over seeds {settings.seed} to {settings.seed + settings.seeds - 1}; means over "
        f"every {settings.every}th of the rounds {first} to {last}. Gains are paired: mean ± std, in brackets the "
        f"mean's 95 % interval by Student's t, then the seeds on which there is one. FIPA: rank {settings.rank}, τ = "
        f"{settings.tau:g} of the largest eigenvalue; memory: ρ = {settings.rho:g}; public codes: γ = {g:g}, τ = "
        f"{tau:g}. The last gain is over the FedAvg that is best on these very seeds, which favours FedAvg.\n\n"
    )
    header = [
        "",
        "mean of rounds",
        f"round {last}",
        "gain over plain FedAvg",
        "over FedAvg, same server",
        f"over {rival}",
        "MB up",
    ]
    text += common.markdown_table(header, rows)
    summary: dict[str, Any] = {
        "rival": rival,
        "seeds": settings.seeds,
        "first_seed": settings.seed,
        "rounds": settings.rounds,
    }
    for name, method in (("last_layer", LAST), ("whole_model", WHOLE)):
        if "gain" in gains.get(method, {}):
            summary |= {f"gain_{name}": gains[method]["gain"], f"seeds_better_{name}": gains[method]["seeds_better"]}
    fig, axes = common.figure(1, 2, width=5.0, height=3.6)
    for number, (method, curve) in enumerate(curves.items()):
        style, colour = ("--" if number >= len(common.COLOURS) else "-"), common.COLOURS[number % len(common.COLOURS)]
        scored = settings.warm_up + common.column(records, "scored", method=method)[0]
        axes[0, 0].plot(
            scored, curve.mean(0), style, color=colour, label=" ".join((RULES[method.split()[0]], method.split()[1]))
        )
        if "differences" in gains[method]:
            y = np.full(settings.seeds, -number)
            axes[0, 1].plot(gains[method]["differences"], y, "o", color=colour, alpha=0.7)
            axes[0, 1].plot([gains[method]["gain"]], [-number], "|", color=colour, markersize=16)
    axes[0, 0].set(xlabel="rounds", ylabel="test accuracy (%), mean")
    axes[0, 0].legend(fontsize=6)
    axes[0, 1].axvline(0, color="#000000", linewidth=0.8)
    axes[0, 1].set(xlabel=f"points over {rival}, each seed", yticks=[])
    common.report(settings.out, text, summary | {"methods": gains}, fig)


if __name__ == "__main__":
    main()
