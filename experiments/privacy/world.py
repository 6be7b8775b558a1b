"""A federation to attack: its payloads as a server would see them, and whom attacks are measured on.

Everything is drawn from a seed, but for the noise of differential privacy, which has none.
"""

import dataclasses
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import cells
from fedfisher_jax import Update, categorical, cohort, data, evaluate
from fedfisher_jax._files import plain
from fedfisher_jax.curvature import Capture, Subspace
from fedfisher_jax.data import Dataset
from fedfisher_jax.federate import measure_clients, run_keys, train_clients
from fedfisher_jax.merge import Payload, Rule, fedavg, fedfisher, merge_payloads, regmean_kron
from fedfisher_jax.models import Network
from fedfisher_jax.privacy import attacks, noise, secure_merge
from fedfisher_jax.privacy.attacks import views

FISHERS = ("diagonal", "kronecker", "gram", "low_rank", "full")
KINDS = {
    "weights": "weights (FedAvg)",
    "diagonal": "+ diagonal",
    "kronecker": "+ Kronecker",
    "gram": "+ input moments",
    "low_rank": "+ low rank",
    "full": "+ full",
}
PROTECTIONS = {"none": "alone", "quantised": "compressed", "sum": "secure sum", "dp": "private"}
MOST_FULL = 2_000  # parameters of networks whose full Fisher is measured
CANDIDATES = 50  # real images of a class that a reconstruction is compared with, of members and of others
SCORED = 300  # about so many members' scores are compared with as many of others
COMPONENTS = 5
FEWEST = 10  # examples of a class without which a client does not count as having it


@dataclasses.dataclass(frozen=True)
class World:
    """The part of the settings that says who is attacked; a federation's identity, with network and seed.

    Attributes:
        dataset: a name of `fedfisher list`.
        clients: their number.
        alpha: concentration of the Dirichlet split.
        examples: drawn from the training set for all clients together; the rest are never seen by anybody.
        epochs: local epochs.
        hidden: widths of the MLP.
        rank: eigenpairs of low-rank Fishers.
        attacked: how many clients are attacked; the means over them are what is reported.
        budget: size of compressed payloads, × FedAvg's 32 bits per parameter; of low-rank ones times rank + 1.
        epsilon: privacy of payloads with noise (δ = 10⁻⁵), clipped to norms of one.
    """

    dataset: str
    clients: int
    alpha: float
    examples: int
    epochs: int
    hidden: tuple[int, ...]
    rank: int
    attacked: int
    budget: float
    epsilon: float


class Target(NamedTuple):
    """Whom an attack is measured on; real images [C · CANDIDATES, …] are grouped by class."""

    shares: np.ndarray  # [C] of the client's labels
    present: np.ndarray  # [C] classes that it has enough of
    mean: Any  # [h, w, c], of all its images
    components: Any  # [COMPONENTS, pixels], their first principal components
    class_means: Any  # [C, h, w, c]
    members: Any  # candidates of each class
    others: Any  # as many, of people in no federation
    allowed: Any  # [C, C · CANDIDATES]
    scored_members: tuple[Any, Any]  # examples and labels whose membership is guessed
    scored_others: tuple[Any, Any]  # likewise, with the same labels


class Federation(NamedTuple):
    """What the attacks read."""

    dataset: Dataset
    network: Network
    captured: Capture
    start: Any
    rules: dict[str, Rule]
    payloads: dict[str, list[Payload]]  # kind → each client's
    targets: list[Target]
    public: Any  # images that anybody has: half of the test set
    bounds: attacks.Bounds


@cache
def loaded(name: str) -> Dataset:
    """The data set."""
    return data.load(name)


@cache
def network_of(name: str, dataset: str, hidden: tuple[int, ...]) -> tuple[Network, Capture]:
    """A network by its name, "-bias" behind it for biases, and its layers."""
    shape, classes = loaded(dataset).train_x.shape[1:], loaded(dataset).num_classes
    model, bias = name.removesuffix("-bias"), name.endswith("-bias")
    options = {"hidden": hidden} if model == "mlp" else {}
    return cells.captured_network(model, shape, classes, bias, **options)


@cache
def rules_of(name: str, dataset: str, hidden: tuple[int, ...], rank: int) -> dict[str, Rule]:
    """The rule behind each kind of payload; a full Fisher for small networks alone."""
    network, captured = network_of(name, dataset, hidden)
    arguments = network.apply, categorical()
    rules = {"weights": fedavg(*arguments), "gram": regmean_kron(*arguments, captured=captured)}
    for kind in ("diagonal", "kronecker"):
        rules[kind] = fedfisher(*arguments, structure=kind, captured=captured)
    effort = Subspace(rank, oversampling=rank // 2)
    rules["low_rank"] = fedfisher(*arguments, structure="low_rank", subspace=effort, batch_size=256)
    sizes = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    if sum(leaf.size for leaf in sizes) <= MOST_FULL:
        rules["full"] = fedfisher(*arguments, structure="full", captured=captured)
    return {kind: rules[kind] for kind in KINDS if kind in rules}


def protections_of(kind: str, rule: Rule) -> list[str]:
    """What there is for a kind of payload: stacked ones have no sums, low-rank ones no noise."""
    missing = {"sum"} if rule.combine == "stack" else set()
    return [p for p in PROTECTIONS if p not in missing | ({"dp"} if kind == "low_rank" else set())]


@lru_cache(maxsize=1)
def federation(world: World, network_name: str, seed: int) -> Federation:
    """Train the clients and measure every kind of payload."""
    full = loaded(world.dataset)
    random = np.random.default_rng(seed)
    order = random.permutation(len(full.train_y))
    inside, outside = order[: world.examples], order[world.examples :]
    x, y = jnp.asarray(full.train_x[inside]), jnp.asarray(full.train_y[inside])
    parts = data.split("dirichlet-client", full.train_y[inside], world.clients, seed=seed, alpha=world.alpha)
    network, captured = network_of(network_name, world.dataset, world.hidden)
    rules = rules_of(network_name, world.dataset, world.hidden, world.rank)
    key, who = run_keys(seed), cohort(x, y, parts, length=world.examples)
    train = cells.training(network, False, world.epochs)
    start = jax.jit(network.init)(key.init)
    models, _ = train_clients(train, start, who, key.train)
    payloads = {}
    for kind, rule in rules.items():
        sent, _ = measure_clients(rule.measure, Update(models.params, start), who, key.measure)
        payloads[kind] = [jax.tree.map(lambda leaf, n=n: leaf[n], sent) for n in range(world.clients)]
    targets = [target(full, inside[part], outside, random) for part in parts[: world.attacked]]
    bounds = attacks.Bounds(float(full.train_x.min()), float(full.train_x.max()))
    public = jnp.asarray(full.test_x[::2])
    return Federation(full, network, captured, start, rules, payloads, targets, public, bounds)


def target(full: Dataset, mine: np.ndarray, outside: np.ndarray, random: np.random.Generator) -> Target:
    """One client's examples, and as many of each class of others'."""
    classes, images, labels = full.num_classes, full.train_x, full.train_y
    counts = np.bincount(labels[mine], minlength=classes)
    members, others, allowed, scored = [], [], np.zeros((classes, classes * CANDIDATES), bool), ([], [])
    means = np.zeros((classes, *images.shape[1:]), np.float32)
    for label in range(classes):
        own, foreign = (random.permutation(part[labels[part] == label]) for part in (mine, outside))
        pairs = min(len(own), len(foreign))
        size = min(pairs, CANDIDATES)
        allowed[label, label * CANDIDATES : label * CANDIDATES + size] = True
        for images_of_class, part in ((members, own), (others, foreign)):
            images_of_class.append(np.resize(part[:size], CANDIDATES) if size else np.zeros(CANDIDATES, int))
        judged = min(pairs, round(SCORED * counts[label] / counts.sum()))
        scored[0].append(own[:judged])
        scored[1].append(foreign[:judged])
        if len(own):
            means[label] = images[own].mean(0)
    allowed[~allowed.any(1), 0] = True  # classes that the client lacks are compared with anything and never counted
    first, second = (jnp.asarray(images[np.concatenate(part)]) for part in (members, others))
    judged = [np.concatenate(part) for part in scored]
    inputs, strange = ((jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in judged)
    shares, present, mean = counts / counts.sum(), counts >= FEWEST, images[mine].mean(0)
    rows = images[mine].reshape(len(mine), -1)
    components = np.linalg.eigh(np.cov(rows.T))[1][:, ::-1][:, :COMPONENTS].T.astype(np.float32)
    return Target(shares, present, mean, components, means, first, second, jnp.asarray(allowed), inputs, strange)


@cache
def guarantee(epsilon: float) -> noise.Guarantee:
    """The guarantee of private payloads, for one release."""
    return noise.noise_for(epsilon, 1e-5, clip_params=1.0)


@lru_cache(maxsize=1)
def seen(world: World, network_name: str, seed: int, kind: str, protection: str) -> list[Payload]:
    """What the server sees of each client."""
    here = federation(world, network_name, seed)
    rule, sent = here.rules[kind], here.payloads[kind]
    if protection == "quantised":
        budget = world.budget * (world.rank + 1 if kind == "low_rank" else 1)  # its vectors cannot be left out
        about = rule.name, "categorical", here.start, here.captured, budget
        return [views.quantised(payload, *about) for payload in sent]
    if protection == "sum":
        return [views.summed(rule, sent)] * len(sent)
    if protection == "dp":
        return [noise.privatise(payload, here.start, guarantee(world.epsilon)) for payload in sent]
    return sent


def accuracy(world: World, network_name: str, seed: int, kind: str, protection: str) -> dict[str, float]:
    """Test accuracy of the merged model, merged from what the server sees."""
    here = federation(world, network_name, seed)
    if protection == "sum":
        merged = secure_merge(here.rules[kind], here.payloads[kind])
    else:
        merged = merge_payloads(here.rules[kind], seen(world, network_name, seed, kind, protection))
    test = jnp.asarray(here.dataset.test_x), jnp.asarray(here.dataset.test_y)
    found = evaluate(here.network.apply, categorical(), merged.params, *test)
    return {"accuracy": float(found.accuracy)}


def world_of(settings: Any) -> World:
    """The settings that `World` names."""
    return World(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(World)})


def as_json(world: World) -> dict[str, Any]:
    """For the identity of a run."""
    return plain(dataclasses.asdict(world))


def from_json(value: dict[str, Any]) -> World:
    """The inverse of `as_json`."""
    return World(**{**value, "hidden": tuple(value["hidden"])})
