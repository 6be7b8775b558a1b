"""RegMean++ (2508.03121): RegMean layer by layer, an exchange for each, with activations of the model merged so far.

RegMean weighs a client's layer by the second moments of that layer's inputs in the client's own model; behind merged
layers its inputs are others. On the FedFisher authors' five clients (Fashion-MNIST, LeNet, α = 0.1), all layers by
W = (Σ p A)⁻¹ Σ p A W_i, off-diagonal entries of A times a factor, as RegMean has it. No labels are read. Last, a
head in closed form on the result, by labels: is it better to mend the layers below it first?
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import authors_run
from experiments.lib import common
from fedfisher_jax import Update, categorical, data, evaluate, examples, fisher, merge_payloads
from fedfisher_jax.curvature import Layer
from fedfisher_jax.merge import recalibrate

PIXELS = (
    255 * np.float32(0.1307),
    255 * np.float32(0.3081),
)  # mean and spread in the authors' training
HEADS = {"recalibrate": (), "recalibrate@fc1,fc2:100": ("fc1", "fc2:100")}
RIDGE = 1e-6  # times the mean diagonal entry: pixels that are always black say nothing


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        factors: What off-diagonal entries of second moments are multiplied with.
        examples: How many examples of each client, the first ones; 0 takes all.
    """

    factors: tuple[float, ...] = (1.0, 0.9)
    examples: int = 0


@cache
def world() -> tuple[Any, ...]:
    """Training images, test images, both scaled as the authors did, and the labels of both."""
    found = data.load("fashion_mnist")
    assert found.scaling is not None
    mean, std = (np.asarray(values, np.float32) for values in found.scaling)
    scaled = [jnp.asarray((x * std + mean - PIXELS[0]) / PIXELS[1]) for x in (found.train_x, found.test_x)]
    return (*scaled, jnp.asarray(found.train_y), jnp.asarray(found.test_y))


def accuracy(params: Any) -> float:
    """Test accuracy."""
    _, x, _, y = world()
    return float(evaluate(authors_run.NETWORK.apply, categorical(), params, x, y).accuracy)


@jax.jit
def second_moments(params: Any, x: jax.Array) -> tuple[jax.Array, ...]:
    """A of every layer, at a model and images."""
    apply, captured = authors_run.NETWORK.apply, authors_run.captured()
    return fisher(apply, categorical(), params, examples(x), structure="gram", captured=captured).inputs


def merged_layer(layer: Layer, moments: list[np.ndarray], models: list[Any], factor: float) -> dict[int, jax.Array]:
    """One layer's leaves by RegMean, in float64."""
    shares = authors_run.sizes() / authors_run.sizes().sum()
    weights = [np.asarray(layer.to_matrix(jax.tree.leaves(model)), float) for model in models]
    kept = [share * (factor * a + (1 - factor) * np.diag(np.diag(a))) for share, a in zip(shares, moments, strict=True)]
    ridge = RIDGE * np.trace(sum(kept)) / len(kept[0]) * np.eye(len(kept[0]))
    kept = [a + share * ridge for share, a in zip(shares, kept, strict=True)]
    found = np.linalg.solve(sum(kept), sum(a @ w for a, w in zip(kept, weights, strict=True)))
    return layer.from_matrix(jnp.asarray(found, jnp.float32))


def recalibrated(params: Any, rows: list[np.ndarray], features: tuple[str, ...]) -> Any:
    """The model with a head in closed form on these features, from all clients' examples."""
    rule = recalibrate(authors_run.NETWORK.apply, categorical(), features=features, captured=authors_run.captured())
    x, _, y, _ = world()
    measure = jax.jit(lambda at, x, y: rule.measure(Update(None, at), examples(x, y), jax.random.key(0)))
    return merge_payloads(rule, [measure(params, x[own], y[own]) for own in rows], params).params


def run(factor: float, own: bool, count: int) -> dict[str, float]:
    """Accuracies after each layer, by moments of the clients' own models or of the one merged so far; then of heads."""
    clients = range(authors_run.CLIENTS)
    models, rows = [authors_run.params(i) for i in clients], [authors_run.rows(i)[: count or None] for i in clients]
    shares = authors_run.sizes() / authors_run.sizes().sum()
    average = jax.tree.map(
        lambda *leaves: jnp.tensordot(jnp.asarray(shares, jnp.float32), jnp.stack(leaves), 1), *models
    )
    merged, accuracies = jax.tree.leaves(average), {}
    for number, layer in enumerate(authors_run.captured().layers):
        sent = jax.tree.unflatten(jax.tree.structure(average), merged)
        moments = [
            np.asarray(second_moments(models[i] if own else sent, world()[0][rows[i]])[number], float) for i in clients
        ]
        for leaf, value in merged_layer(layer, moments, models, factor).items():
            merged[leaf] = value
        name = authors_run.LAYERS[number]
        accuracies[name] = accuracy(jax.tree.unflatten(jax.tree.structure(average), merged))
    last = jax.tree.unflatten(jax.tree.structure(average), merged)
    heads = {name: accuracy(recalibrated(last, rows, features)) for name, features in HEADS.items()}
    return accuracies | heads


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"factors": (1.0,), "examples": 50})
    grid = [{"factor": f, "own": own, "count": settings.examples} for f in settings.factors for own in (True, False)]
    rows, summary = [], {}
    for record in common.run_all(settings.out, grid, run):
        who, found = record["settings"], record["result"]
        name = "RegMean, one exchange" if who["own"] else f"RegMean++, {len(authors_run.LAYERS)} exchanges"
        rows.append([name, f"{who['factor']:g}", *[f"{100 * a:.1f}" for a in found.values()]])
        summary[f"{name}, factor {who['factor']:g}"] = found[authors_run.LAYERS[-1]]
    text = (
        "Test accuracy in % when so many layers are merged and the others are averages, one run; in the last columns "
        "with a head in closed form after that, one exchange more.\n\n"
    )
    text += common.markdown_table(["", "factor", *authors_run.LAYERS, *HEADS], rows)
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
