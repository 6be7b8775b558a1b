"""What the sums of rules without training tell: attacks on heads, class moments and natural gradients.

Clients measure at the common start, or, for a gradient, at the model of everybody's analytic head. Class means, label
shares and mean images are read off (`attacks.sums`); members are told by their leverage in second moments; a gradient
of ten examples is inverted. A server sees one client's payload, a secure sum of five or of all clients, or a head's
sums with each example hidden by the client's own noise. The other two were attacked without noise, and class moments
come with Kronecker factors, which have no sum. `--merged` adds what the figure of `privacy.attacks` shows of heads.
"""

import dataclasses
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from experiments.privacy import images, report, steps
from experiments.privacy import world as worlds
from experiments.privacy.sums_attacks import MOST, People, attack, guess
from experiments.privacy.world import Federation, World
from fedfisher_jax import Payload, Update, categorical, cohort, data, evaluate
from fedfisher_jax._trees import stack
from fedfisher_jax.federate import measure_clients, merge_clients, run_keys
from fedfisher_jax.merge import Rule, analytic, exchanges, fedavg, natural_gradient, pseudo_data
from fedfisher_jax.privacy import attacks, example_noise
from fedfisher_jax.privacy._secure_merge import total

NETWORK, FEW, CLIP, DELTA = "mlp-bias", 5, 1e-3, 1e-5
KINDS = {"head": "head's S, B", "class moments": "class moments", "gradient": "gradient, factors"}
GUESS = "guess"
ACCURACY = "accuracy"
SEEN = {"alone": "alone", "few": f"sum of {FEW}", "all": "sum of all", "noise": "alone, noise"}
MERGED = {"divided": "sum of all, noise divided"}
THERE = {"head": tuple(SEEN), "class moments": ("alone",), "gradient": ("alone", "few", "all")}
NUMBERS = {  # result → (header, decimals)
    "psnr_class_mean": ("class images, PSNR to the class mean, dB", 1),
    "single": ("the only image of a class, PSNR, dB", 1),
    "features": ("class means of the last layer's inputs, cosine", 3),
    "distance": ("label shares, distance", 3),
    "mean": ("mean image, PSNR, dB", 1),
    "auc": ("membership by leverage, AUC", 3),
    "inverted": ("ten images by gradient inversion, PSNR, dB", 1),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`, of images.
        clients: Their number.
        alpha: Concentration of the Dirichlet split.
        examples: Drawn from the training set for all clients together; the rest are the others.
        hidden: Widths of the MLP.
        attacked: How many of the clients are attacked.
        epsilon: Privacy of an example, where noise hides it, at δ = 1e-5.
        seeds: Each draws examples, split and start.
        kinds: Payloads to attack.
        merged: Attack a sum with divided noise, too, and tell the accuracy of heads.
    """

    dataset: str = "fashion_mnist"
    clients: int = 100
    alpha: float = 0.1
    examples: int = 20_000
    hidden: tuple[int, ...] = (64, 32)
    attacked: int = 5
    epsilon: float = 8.0
    seeds: int = 3
    kinds: tuple[str, ...] = tuple(KINDS)
    merged: bool = False


QUICK = {"dataset": "digits", "clients": 10, "examples": 400, "hidden": (40, 30), "attacked": 3, "seeds": 1}


class Sent(NamedTuple):
    """Every client's payload of a kind, and the model that it was measured at."""

    rule: Rule
    payloads: list[Payload]
    model: Any


@lru_cache(maxsize=1)
def people(world: World, seed: int) -> People:
    """Examples, split and start of a seed."""
    full, draw = worlds.loaded(world.dataset), np.random.default_rng(seed)
    order = draw.permutation(len(full.train_y))
    inside, outside = order[: world.examples], order[world.examples :]
    parts = data.split("dirichlet-client", full.train_y[inside], world.clients, seed=seed, alpha=world.alpha)
    network, captured = worlds.network_of(NETWORK, world.dataset, world.hidden)
    targets = [worlds.target(full, inside[part], outside, draw) for part in parts[: world.attacked]]
    bounds = attacks.Bounds(float(full.train_x.min()), float(full.train_x.max()))
    start, public = jax.jit(network.init)(run_keys(seed).init), jnp.asarray(full.test_x[::2])
    rules = {"weights": fedavg(network.apply, categorical())}
    here = Federation(full, network, captured, start, rules, {}, targets, public, bounds)
    return People(here, [inside[part] for part in parts])


@cache
def rules_of(dataset: str, hidden: tuple[int, ...], epsilon: float, clients: int) -> dict[str, Rule]:
    """The rule behind each kind of payload."""
    network, captured = worlds.network_of(NETWORK, dataset, hidden)
    model = network.apply, categorical()
    head = analytic(*model, captured=captured)
    promised = example_noise.promise(epsilon, DELTA, clip_features=CLIP)
    return {
        "head": head,
        "noise": example_noise.private(head, promised),
        "divided": example_noise.private(head, promised._replace(trust="distributed", sharers=clients)),
        "class moments": pseudo_data(*model, kind="monte_carlo", captured=captured),
        "gradient": exchanges(natural_gradient(*model, kind="monte_carlo", captured=captured))[0],
    }


@lru_cache(maxsize=4)
def sent_by(world: World, seed: int, kind: str) -> Sent:
    """What all clients send."""
    (here, rows), model = people(world, seed), people(world, seed).here.start
    rule = rules_of(world.dataset, world.hidden, world.epsilon, world.clients)[kind]
    if kind == "gradient":
        head = sent_by(world, seed, "head")
        model = merge_clients(head.rule, stack(head.payloads), model).params
    who = cohort(jnp.asarray(here.dataset.train_x), jnp.asarray(here.dataset.train_y), rows)
    trained = jax.tree.map(lambda leaf: jnp.stack([leaf] * world.clients), model) if rule.trains else None
    found, _ = measure_clients(rule.measure, Update(trained, model), who, run_keys(seed).measure)
    return Sent(rule, [jax.tree.map(lambda leaf, n=n: leaf[n], found) for n in range(world.clients)], model)


def seen(world: World, seed: int, kind: str, how: str) -> tuple[list[Payload], Any]:
    """What the server sees of each attacked client, and the model behind it."""
    sent = sent_by(world, seed, how if how in ("noise", "divided") else kind)
    if how in ("all", "divided"):
        return [summed(sent.rule, sent.payloads)] * world.attacked, sent.model
    if how == "few":
        around = [[sent.payloads[(n + k) % world.clients] for k in range(FEW)] for n in range(world.attacked)]
        return [summed(sent.rule, some) for some in around], sent.model
    return sent.payloads[: world.attacked], sent.model


def summed(rule: Rule, payloads: list[Payload]) -> Payload:
    """The means that a secure sum leaves."""
    found = total([rule.lift(one, None) for one in payloads])
    sums_ = found["moments"] if "moments" in found else found["sums"]
    return Payload(found["weight"], None, jax.tree.map(lambda leaf: leaf / found["weight"], sums_))


def accuracy(world: World, seed: int, how: str) -> float:
    """Accuracy of everybody's head on the test examples, which are not public here."""
    sent = sent_by(world, seed, how if how in ("noise", "divided") else "head")
    here = people(world, seed).here
    merged = merge_clients(sent.rule, stack(sent.payloads), sent.model).params
    test = jnp.asarray(here.dataset.test_x), jnp.asarray(here.dataset.test_y)
    return float(evaluate(here.network.apply, categorical(), merged, *test).accuracy)


def run(out: Path, shown: int, world: dict[str, Any], seed: int, kind: str, how: str) -> dict[str, float]:
    """All attacks on one view, means over the attacked clients; pictures of one of them are kept."""
    whom = worlds.from_json(world)
    if kind == GUESS:
        return guess(people(whom, seed).here)
    if kind == ACCURACY:
        return {"accuracy": accuracy(whom, seed, how)}
    there, (views, model) = people(whom, seed), seen(whom, seed, kind, how)
    both = [attack(there, view, model, number, how in ("noise", "divided")) for number, view in enumerate(views)]
    results = {name: [found[name] for found, _ in both if name in found] for name in NUMBERS}
    result = {name: float(np.mean(values)) for name, values in results.items() if values}
    if kind == "gradient":
        many = {"alone": 1, "few": FEW, "all": whom.clients}[how]
        step = steps.step_seen(there.here, dataclasses.replace(whom, clients=many), seed, "sum" if many > 1 else "none")
        result["inverted"] = images.inverted_step(there.here, seed, step)["psnr"]
    target = int(np.argmax([one.present.sum() for one in there.here.targets]))
    if seed == shown and both[target][1] is not None:
        means = images.unit(there.here, there.here.targets[target].class_means)
        kept = {"images": images.unit(there.here, both[target][1]), "class_means": means}
        present = {"present": there.here.targets[target].present}
        report.save_pictures(picture(out, kind, how), {name: np.asarray(a) for name, a in kept.items()} | present)
    return result


def picture(out: Path, kind: str, how: str) -> Path:
    """Where the class images of a view lie."""
    return report.picture_path(out, NETWORK, "class images", kind, how)


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    chosen = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(World)
        if hasattr(settings, field.name)
    }
    whom = worlds.as_json(World(**chosen, epochs=0, rank=0, budget=0.0))
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = [
        {"world": whom, "seed": seed, "kind": kind, "how": how}
        for seed in seeds
        for kind in (*settings.kinds, GUESS)
        for how in THERE.get(kind, ("alone",))
    ]
    if settings.merged:
        told = [("head", "divided"), *((ACCURACY, how) for how in ("alone", "noise", "divided"))]
        grid += [{"world": whom, "seed": seed, "kind": kind, "how": how} for seed in seeds for kind, how in told]
    records = common.run_all(settings.out, grid, partial(run, settings.out, settings.seed), "attacks")
    rows, summary, ways = [], {}, SEEN | (MERGED if settings.merged else {})
    for name, (label, digits) in NUMBERS.items():
        there = [record for record in records if name in record["result"]]
        for kind in (kind for kind in KINDS if any(record["settings"]["kind"] == kind for record in there)):
            found = {how: common.column(there, name, kind=kind, how=how) for how in ways}
            cells = [common.mean_std(values, digits) if len(values) else "–" for values in found.values()]
            rows.append([label, KINDS[kind], *cells])
            means = {ways[how]: values.mean() for how, values in found.items() if len(values)}
            summary.setdefault(name, {})[kind] = means
    text = (
        f"{settings.dataset}, {settings.clients} clients, α = {settings.alpha:g}, {settings.examples} examples in all, "
        f"the first {settings.attacked} clients are attacked; an MLP with biases, nothing is trained. Noise: "
        f"ε = {settings.epsilon:g} for each example, δ = {DELTA:g}. Mean ± std over {settings.seeds} seeds; PSNR of "
        f"single images is cut at {MOST:g}.\n\n"
    ) + common.markdown_table(["", "payload", *ways.values()], rows)
    if settings.merged:
        scores = {
            how: common.column(records, "accuracy", kind=ACCURACY, how=how) for how in ("alone", "noise", "divided")
        }
        summary["accuracy"] = {how: found.mean() for how, found in scores.items()}
        told = [f"{common.mean_std(found, scale=100)} ({how})" for how, found in scores.items()]
        text += f"\nAccuracy of everybody's head, in %: {', '.join(told)}.\n"
    public = {name: common.column(records, name, kind=GUESS) for name in ("psnr_class_mean", "distance", "mean")}
    said = [common.mean_std(public[name]) for name in ("psnr_class_mean", "mean")]
    text += (
        f"\nWithout an attack: the public average of each class {said[0]} dB, the public average of all {said[1]} dB, "
        f"equal shares {common.mean_std(public['distance'], 3)}, AUC 0.5.\n"
    )
    summary["guess"] = {name: values.mean() for name, values in public.items()}
    shown: dict[str, np.ndarray] = {}
    for kind, how in (
        (kind, how) for kind in settings.kinds for how in THERE[kind] if picture(settings.out, kind, how).exists()
    ):
        found = dict(np.load(picture(settings.out, kind, how)))
        classes = np.flatnonzero(found["present"])
        shown |= {
            "real class mean": found["class_means"][classes],
            f"{KINDS[kind]},\n{SEEN[how]}": found["images"][classes],
        }
    report.write_grid(settings.out / "figure.png", [f"class {label}" for label in classes], shown)
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
