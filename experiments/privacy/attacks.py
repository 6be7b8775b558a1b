"""What a payload reveals: attacks on what a server sees (2403.12329, appendix E, and attacks that it did not run).

Model inversion, Fisher-aware inversion, mean images, membership and label shares, against one client's payload, a
compressed one, a secure sum and a differentially private one; gradient inversion against rounds of one step.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import common
from experiments.privacy import images, members, report, world

ATTACKS = images.ATTACKS | members.ATTACKS


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`, of images.
        networks: Some of mlp, mlp-bias, lenet.
        kinds: Payloads, of weights, diagonal, kronecker, gram, low_rank, full.
        clients: Their number.
        alpha: Concentration of the Dirichlet split.
        examples: Drawn from the training set for all clients together; the rest are the others.
        epochs: Local epochs.
        hidden: Widths of the MLP; with at most 2000 parameters the full Fisher is attacked, too.
        rank: Rank of low-rank Fishers.
        attacked: How many of the clients are attacked.
        budget: Size of compressed payloads, × 32 bits per parameter.
        epsilon: Privacy of private payloads, at δ = 1e-5.
        sizes: Examples of a client, for membership by leverage alone.
        seeds: Each draws examples, split, start and training.
        heads: Results of `privacy.sums --merged` with the same clients, for the figure, if there are any.
    """

    dataset: str = "fashion_mnist"
    networks: tuple[str, ...] = ("mlp-bias", "mlp")
    kinds: tuple[str, ...] = tuple(world.KINDS)
    clients: int = 5
    alpha: float = 0.1
    examples: int = 10_000
    epochs: int = 30
    hidden: tuple[int, ...] = (64, 32)
    rank: int = 20
    attacked: int = 3
    budget: float = 0.5
    epsilon: float = 10.0
    sizes: tuple[int, ...] = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
    seeds: int = 3
    heads: Path = Path("experiments/results/privacy/sums_five_clients")


QUICK: dict[str, Any] = {
    "dataset": "digits",
    "networks": ("mlp-bias",),
    "examples": 1000,
    "epochs": 20,
    "hidden": (16,),
    "budget": 1.0,
    "rank": 10,
    "sizes": (50, 100, 200, 400, 800),
    "seeds": 2,
}


def attacks_for(kind: str, network: str) -> list[str]:
    """The attacks that a payload of this kind is open to."""
    if kind == "weights":
        return ["model inversion", "membership by loss", "labels from the update", "gradient inversion"]
    names = ["Fisher-aware inversion", "membership by Fisher score", "membership by leverage", "labels from inputs"]
    names += ["mean image", "components"] if network.startswith("mlp") else []
    return names + (["labels from gradients"] if kind != "gram" else [])


def grid_of(settings: Settings) -> list[dict[str, Any]]:
    """Every run.

    Raises:
        ValueError: a kind of payload that there is not.
    """
    unknown = set(settings.kinds) - set(world.KINDS)
    if unknown:
        raise ValueError(f"kinds: got {sorted(unknown)[0]}, expected some of {', '.join(world.KINDS)}")
    whom = world.as_json(world.world_of(settings))
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = []
    for network in settings.networks:
        rules = world.rules_of(network, settings.dataset, settings.hidden, settings.rank)
        for seed in seeds:
            fixed = {"world": whom, "network": network, "seed": seed}
            for kind in (kind for kind in rules if kind in settings.kinds):
                rule = rules[kind]
                for protection in world.protections_of(kind, rule):
                    for attack in ["accuracy", *attacks_for(kind, network)]:
                        grid.append({**fixed, "attack": attack, "kind": kind, "protection": protection})
            grid += [{**fixed, "attack": "guess", "kind": guess, "protection": "none"} for guess in report.GUESSES]
    for seed in seeds:
        for size in settings.sizes:
            grid.append({"attack": "leverage by size", "dataset": settings.dataset, "size": size, "seed": seed})
    return grid


def run(out: Path, shown: int, attack: str, **cell: Any) -> dict[str, Any]:
    """One attack on one view; pictures of the seed that is shown go to their own folder."""
    if attack == "leverage by size":
        return members.leverage_by_size(cell["dataset"], cell["size"], cell["seed"])
    where = world.from_json(cell["world"]), cell["network"], cell["seed"]
    if attack == "accuracy":
        return world.accuracy(*where, cell["kind"], cell["protection"])
    if attack == "guess":
        found = images.guess_images(*where, cell["kind"])
    else:
        found = ATTACKS[attack](*where, cell["kind"], cell["protection"])
    pictures = found.pop("pictures", None)
    if pictures is not None and cell["seed"] == shown:
        path = report.picture_path(out, cell["network"], attack, cell["kind"], cell["protection"])
        report.save_pictures(path, pictures)
    return found


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    records = common.run_all(settings.out, grid_of(settings), partial(run, settings.out, settings.seed), "attacks")
    text, summary = f"{describe(settings)}\n\n", {}
    for network in settings.networks:
        mine = [r for r in records if r["settings"].get("network") == network]
        text += report.tables(network, mine)
        summary[network] = report.summary(mine)
        report.picture_grid(settings.out, network)
        report.component_grid(settings.out, network)
    sizes = {size: common.column(records, "auc", attack="leverage by size", size=size) for size in settings.sizes}
    text += "### Membership by leverage and a client's number of examples\n\n"
    text += "Second moment of raw pixels, no network; AUC.\n\n"
    text += common.markdown_table([str(size) for size in sizes], [[common.mean_std(v, 3) for v in sizes.values()]])
    summary["leverage by size"] = {str(size): float(np.mean(v)) for size, v in sizes.items()}
    fig = report.figure(settings.networks, records, sizes, heads_of(settings))
    common.report(settings.out, text, summary, fig)


def heads_of(settings: Settings) -> list[dict[str, Any]]:
    """Attacks on heads of the clients whom this script attacks."""
    path, whom = settings.heads / "results.jsonl", world.as_json(world.world_of(settings))
    same = ("dataset", "clients", "alpha", "examples", "hidden", "attacked")
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    mine = [r for r in found if all(r["settings"]["world"][name] == whom[name] for name in same)]
    return mine if settings.networks[0] == "mlp-bias" else []


def describe(settings: Settings) -> str:
    """What the numbers are of."""
    return (
        f"{settings.dataset}, {settings.clients} clients, α = {settings.alpha:g}, {settings.examples} examples in all, "
        f"{settings.epochs} local epochs; the first {settings.attacked} clients are attacked. Compressed: "
        f"{settings.budget:g} × 32 bits per parameter; secure sum over all clients; private: ε = {settings.epsilon:g}, "
        f"δ = 1e-5. Mean ± std over {settings.seeds} seeds."
    )


if __name__ == "__main__":
    main()
