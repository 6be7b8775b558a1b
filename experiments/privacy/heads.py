"""Heads in closed form with privacy of every example: accuracy against ε, by whom the noise is added.

Nothing is trained: the features of the common start are measured once, each example's scaled to one norm (a clip below
all norms, which depends on no data), and noise is added to their sums. The sums of all clients are the same however the
data are split, so "distributed" noise (a secure sum from which nobody drops out) and "central" noise give one row for
any number of clients and any α; with "local" noise it is as many times the variance as there are silos. "by mail" is
what `fedfisher measure --trust distributed --sharers M` and `fedfisher secure` do: each of five silos adds discrete
Gaussian integers to its own, of a share that M of them must add, under the masks of a secure sum. "whitened" spends a
quarter of the privacy on a first release of Σφφᵀ, by which features are whitened before they are scaled, in a second
exchange; "plain" is one exchange. Its constants (`example_noise`, `heads.ADASSP`) were chosen on 40,000 training
examples of Fashion-MNIST, 6,000 of them held out, with a start that the table does not have.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from fedfisher_jax import Payload, categorical, data, models
from fedfisher_jax.curvature import Moments, capture
from fedfisher_jax.merge import analytic
from fedfisher_jax.merge._heads import Basis, head_of
from fedfisher_jax.privacy import _fixed_point as fixed_point
from fedfisher_jax.privacy import _integer_noise as integer_noise
from fedfisher_jax.privacy import example_noise, secure_sum
from fedfisher_jax.privacy._secure_merge import scales, shaped, to_vector
from fedfisher_jax.privacy.example_noise import Promise

EPSILONS, DELTA, CLIP = (0.5, 1.0, 2.0, 8.0), 1e-5, 1e-3
TRUST = {"distributed": 1, "local, 5 silos": 5, "local, 100 silos": 100}  # how often all of the noise is added
SILOS, MAILED = 5, {"by mail, 5 sharers": 5, "by mail, 3 sharers": 3}
HOW = ("whitened", "plain")
ROWS = [*((how, trust) for how in HOW for trust in TRUST), *(("plain", trust) for trust in MAILED)]  # mail whitens not
MODELS = {"digits": "mlp", "fashion_mnist": "lenet"}
RIDGE = 1e-4


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: How many, from --seed on; each draws a start, and noise.
        datasets: digits (MLP) and fashion_mnist (LeNet).
        starts: Names of `models.STARTS`.
    """

    seeds: int = 5
    datasets: tuple[str, ...] = ("digits", "fashion_mnist")
    starts: tuple[str, ...] = ("usual",)


@cache
def measured(dataset: str, start_name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features and labels of all training examples, and of the test examples."""
    found = data.load(dataset)
    network, likelihood = models.build(MODELS[dataset], found.train_x.shape[1:], found.num_classes), categorical()
    start = models.STARTS[start_name](network.init(jax.random.key(seed)))
    rule = analytic(network.apply, likelihood, ridge=RIDGE, captured=capture(network.apply, start, found.train_x))
    features = reader(rule, start, found.test_x)
    train, test = (np.asarray(features(start, jnp.asarray(x))) for x in (found.train_x, found.test_x))
    return train, found.train_y, test, found.test_y


def reader(rule: Any, params: Any, x: Any) -> Callable:
    """The function (parameters, examples) → features that a head of this rule reads."""
    place, _ = rule.measure.place(params, x)

    def features(params: Any, xs: Any) -> Any:
        leaves = jax.tree.leaves(params)
        return jax.lax.map(lambda x: place.rows(leaves, x)[0], xs, batch_size=256)

    return jax.jit(features)


def moments_of(rows: np.ndarray, labels: np.ndarray, count: int, basis: Basis | None = None) -> Payload:
    """What clients send together: moments of features that were mapped and then clipped."""
    mapped = rows if basis is None else rows @ basis.matrix.astype(rows.dtype)
    clipped = mapped * np.minimum(1, CLIP / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-30))
    classes = np.eye(count, dtype=rows.dtype)[labels]
    means = [np.asarray(a, np.float64) / len(rows) for a in (clipped.T @ clipped, clipped.T @ classes, classes.sum(0))]
    second, cross, totals = means
    static = ((0, clipped.shape[1]),), False, ((1,), "float32"), ()
    return Payload(len(rows), None, Moments(second, cross, totals, *static))


@cache
def as_they_are(dataset: str, start: str, seed: int) -> Payload:
    """Moments of features that were clipped alone."""
    rows, labels, *_ = measured(dataset, start, seed)
    return moments_of(rows, labels, labels.max() + 1)


def run(dataset: str, start: str, seed: int, epsilon: float | None, trust: str, how: str) -> dict[str, Any]:
    """Accuracy of one head on the test examples."""
    rows, labels, test, wanted = measured(dataset, start, seed)
    if epsilon is None:
        sums, basis = summed(as_they_are(dataset, start, seed)), None
    elif trust in MAILED:
        sums, basis = mailed_sums(rows, labels, epsilon, MAILED[trust], seed), None
    else:
        draw = np.random.default_rng([seed, TRUST[trust], int(10 * epsilon)])
        promised = example_noise.promise(epsilon, DELTA, clip_features=CLIP)
        plain = as_they_are(dataset, start, seed)
        sums, basis = private_sums(rows, labels, plain, promised, TRUST[trust], how == "whitened", draw)
    head = solved(sums, basis)
    return {"accuracy": float(np.mean(np.argmax(test @ head, axis=1) == wanted)), "features": len(head)}


def private_sums(
    rows: np.ndarray,
    labels: np.ndarray,
    plain: Payload,
    promised: Promise,
    times: int,
    whitened: bool,
    draw: np.random.Generator,
) -> tuple[Any, Basis | None]:
    """What the server is told in one exchange, or in two, the first of which is for whitening.

    Args:
        rows: [n, D] features.
        labels: [n] classes.
        plain: `moments_of` them, not whitened.
        promised: what is promised of all exchanges together.
        times: how often all of the noise is added.
        whitened: whether there are two exchanges.
        draw: random numbers for the noise.
    """
    if not whitened:
        return noisy_sums(plain, promised, times, draw), None
    first, promised = example_noise.split(promised)
    basis = example_noise.whitening(noisy_sums(plain, first, times, draw))
    return noisy_sums(moments_of(rows, labels, labels.max() + 1, basis), promised, times, draw), basis


def solved(sums: Any, basis: Basis | None) -> np.ndarray:
    """The head on features as they are."""
    head, _ = head_of(sums, RIDGE)
    return head if basis is None else basis.matrix @ head


def noisy_sums(sent: Payload, promised: Promise, times: int, draw: np.random.Generator) -> Any:
    """The sum of all clients' moments with so many times the variance of the promise's noise."""
    found = example_noise.noisy(sent, promised, lambda shape: np.sqrt(times) * draw.normal(size=shape))
    variances = times * found.statistics.variances
    return summed(found._replace(statistics=dataclasses.replace(found.statistics, variances=variances)))


def mailed_sums(rows: np.ndarray, labels: np.ndarray, epsilon: float, sharers: int, seed: int) -> Any:
    """What the server of a secure sum by mail merges: moments of five silos with noise from seeds."""
    asked = {"clip_features": CLIP, "trust": "distributed", "sharers": sharers}
    promised = example_noise.promise(epsilon, DELTA, **asked)
    parts = np.array_split(np.random.default_rng(seed).permutation(len(labels)), SILOS)
    sent = [moments_of(rows[part], labels[part], labels.max() + 1) for part in parts]
    added = [{"moments": summed(one), "weight": np.asarray(float(one.weight))} for one in sent]
    announced = [scales(integer_noise.bounds(one, promised)) for one in added]
    share = integer_noise.share_of(promised, announced, SILOS, added[0])
    words = []
    for number, one in enumerate(added):
        key = hashlib.sha256(f"{seed}, {number}, {epsilon}, {sharers}".encode()).digest()
        words.append(fixed_point.encode(to_vector(one), SILOS, share.bits) + integer_noise.drawn(share, key))
    total = fixed_point.decode(secure_sum(words).total, share.bits)
    return integer_noise.told(shaped(total, added[0]), share, SILOS)["moments"]


def summed(sent: Payload) -> Any:
    """Sums over examples, from means."""
    return jax.tree.map(lambda leaf: sent.weight * np.asarray(leaf, np.float64), sent.statistics)


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "datasets": ("digits",)})
    grid = [
        {"dataset": dataset, "start": start, "seed": seed, "epsilon": epsilon, "trust": trust, "how": how}
        for dataset in settings.datasets
        for start in settings.starts
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for epsilon, trust, how in [
            (None, "none", "plain"),
            *((e, trust, how) for how, trust in ROWS for e in EPSILONS),
        ]
    ]
    records = common.run_all(settings.out, grid, run)
    cells = list(dict.fromkeys((one["dataset"], one["start"]) for one in grid))
    rows, summary = [], {}
    fig, axes = common.figure(1, len(cells), width=3.6)
    for axis, (dataset, start) in zip(axes[0], cells, strict=True):
        where = {"dataset": dataset, "start": start}
        plain = common.column(records, "accuracy", **where, epsilon=None)
        features = int(common.column(records, "features", **where, epsilon=None)[0])
        axis.axhline(100 * plain.mean(), color="grey", label="no noise")
        lost = {}
        for how, trust in ROWS:
            one = where | {"trust": trust, "how": how}
            found = [common.column(records, "accuracy", **one, epsilon=e) for e in EPSILONS]
            name = f"{dataset}, {MODELS[dataset]}, {start} start, {features} features"
            cells_of = [common.mean_std(one, scale=100) for one in (*found, plain)]
            rows.append([name, how, trust, *cells_of])
            line = "o-" if how == "whitened" else "s:"
            if trust in TRUST:  # the others lie on "plain, distributed"
                axis.plot(EPSILONS, [100 * one.mean() for one in found], line, label=f"{how}, {trust}")
            lost[f"{how}, {trust}"] = {
                f"epsilon_{e:g}": 100 * (plain - one).mean() for e, one in zip(EPSILONS, found, strict=True)
            }
        axis.set(xscale="log", xlabel="ε of an example", ylabel="accuracy (%)", title=f"{dataset}, {start} start")
        axis.legend()
        summary[f"points_lost_{dataset}_{start}"] = lost
    text = f"Accuracy in %, δ = {DELTA:g}, replace one example; mean ± std over {settings.seeds} seeds.\n\n"
    header = ["data, model, features", "features", "noise", *(f"ε = {e:g}" for e in EPSILONS), "no noise"]
    common.report(settings.out, text + common.markdown_table(header, rows), summary, fig)


if __name__ == "__main__":
    main()
