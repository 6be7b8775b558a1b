"""OTFusion (arXiv 1910.05653): align every client's neurons with a reference client's, layer by layer, then average.

Alignment is optimal transport between the layers' units with uniform marginals and squared Euclidean distances of their
features. With equal widths that is an assignment.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load where they are used
from jaxtyping import Float

from .._examples import Examples
from .._likelihood import Likelihood
from ..curvature import Capture
from ..curvature._chain import Chain, Units
from ._outline import TAKES_ANY, chain_of, models, outline
from ._rule import ONE_MODEL, Merged, Payload, Rule, Update

PyTree = Any
Layers = Sequence[Units]


def ot_fusion(
    apply: Callable,
    likelihood: Likelihood,
    *,
    reference: int | None = None,
    features: str = "weights",
    probes: Any = None,
    align_output: bool = False,
    rescale: bool = True,
    captured: Capture | None = None,
) -> Rule:
    """Make OTFusion's rule (arXiv 1910.05653); clients' order matters only where it chooses the reference.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted; not used.
        reference: the number of the client whose neurons stay; None is the client with the most examples.
        features: what tells a unit: "weights" (its incoming weights, after alignment of the layer before, and its
            bias) or "activations" (its outputs at `probes`).
        probes: [n, ...] inputs known to the server, without labels.
        align_output: also transport the output units. Classes have their places, so not by default.
        rescale: divide a transport by its marginals, so that moved neurons keep their size; released code may not.
        captured: the model's layers; found at the first merge if not given.

    Raises:
        ValueError: unknown features, or activations without probes; when merging, a network that is not sequential, or
            no such client.
    """
    if features not in ("weights", "activations"):
        raise ValueError(f"features: got {features!r}, expected weights or activations")
    if (features == "activations") != (probes is not None):
        raise ValueError(
            f"probes: expected inputs with features='activations' and only then, got features={features!r}"
        )

    def solve(payloads: Payload, start: PyTree) -> Merged:
        chain = chain_of(apply, payloads, captured)
        weights = np.asarray(payloads.weight, float)
        number = int(np.argmax(weights)) if reference is None else reference
        if not 0 <= number < weights.size:
            raise ValueError(f"reference: got {reference}, expected a client from 0 to {weights.size - 1}")
        fused = fuse(chain, models(chain, payloads), weights, number, probes, align_output, rescale)
        return Merged(chain.join(fused), {"reference": jnp.asarray(number)})

    takes = TAKES_ANY if captured is None else ONE_MODEL  # the layers are found by the shape of an example
    return Rule("otfusion", _measure, lambda payload, start: payload, solve, "stack", jit=False, takes=takes)


def released_ot_fusion(apply: Callable, likelihood: Likelihood, **options: Any) -> Rule:
    """Make OTFusion as it stands in the FedFisher authors' table, with its faults.

    Client 0 is the reference, the output units are moved as well, and transports are not rescaled: with n units each
    aligned weight is 1/n of its size, and so is what comes in from the layer before, so that the result is little more
    than the reference's share of itself. Their code tries this, rescaling, and two variants that forget to align a
    layer's inputs in what is averaged, and keeps the best of four on 500 labelled examples; on their Fashion-MNIST run
    it keeps this one, although rescaling finds the identity there and scores higher on the test set.
    """
    return ot_fusion(apply, likelihood, **{"reference": 0, "align_output": True, "rescale": False} | options)


def fuse(
    chain: Chain,
    clients: Sequence[Layers],
    weights: Any,
    reference: int = 0,
    probes: Any = None,
    align_output: bool = False,
    rescale: bool = True,
) -> list[Units]:
    """Average models of any widths, by weights, each aligned with the reference, whose widths the result has.

    Args:
        chain: the network's chain of layers.
        clients: each client's layers, as `Chain.split` gives them; hidden widths may differ.
        weights: [M], the clients' weights, which need not sum to 1.
        reference: the number of the client that is not moved.
        probes: as in `ot_fusion`; None takes weights as features.
        align_output: as in `ot_fusion`.
        rescale: as in `ot_fusion`.
    """
    target = clients[reference]
    outputs = None if probes is None else [_features(chain.outputs(layers, probes)) for layers in clients]
    shares = np.asarray(weights, float) / np.sum(weights)
    aligned = [
        target
        if number == reference
        else align(
            layers,
            target,
            features=None if outputs is None else list(zip(outputs[number], outputs[reference], strict=True)),
            align_output=align_output,
            rescale=rescale,
        )
        for number, layers in enumerate(clients)
    ]
    average = lambda *leaves: sum(s.astype(x.dtype) * x for s, x in zip(shares, leaves, strict=True))  # noqa: E731
    return jax.tree.map(average, *[list(layers) for layers in aligned])


def align(
    layers: Layers,
    target: Layers,
    *,
    features: Sequence[tuple[Any, Any]] | None = None,
    align_output: bool = False,
    rescale: bool = True,
) -> list[Units]:
    """Move the units of a model to where the target has similar ones.

    A unit of the target receives the mean of the units sent to it; the next layer shares out what it read of a unit
    over where that unit went. (At unequal widths the paper instead takes means on that side too, which changes the
    function when two equal units become one. At equal widths both are the same.)

    Args:
        layers: the model's layers, of any hidden widths.
        target: the reference's layers.
        features: for each layer both models' features [units, f]; None takes the weights.
        align_output: as in `ot_fusion`.
        rescale: as in `ot_fusion`.
    """
    moved: Any = None  # [units before, the target's units before]
    result = []
    for number, ((weight, bias), own) in enumerate(zip(layers, target, strict=True)):
        incoming = weight if moved is None else jnp.einsum("pq,pmu->qmu", moved, weight)
        if number + 1 == len(layers) and not align_output:
            result.append(Units(incoming, bias))
            break
        pair = (_weights(Units(incoming, bias)), _weights(own)) if features is None else features[number]
        plan = transport(_distances(*map(np.asarray, pair)))
        means = jnp.asarray(plan * plan.shape[1] if rescale else plan, weight.dtype)
        moved = jnp.asarray(plan * plan.shape[0] if rescale else plan, weight.dtype)
        received = jnp.einsum("pmu,uv->pmv", incoming, means)
        result.append(Units(received, None if bias is None else bias @ means))
    return result


def transport(cost: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Find the optimal plan [n, m] between uniform marginals, exactly: rows sum to 1/n and columns to 1/m."""
    n, m = cost.shape
    if n == m:
        plan = np.zeros((n, m))
        plan[scipy.optimize.linear_sum_assignment(cost)] = 1 / n
        return plan
    rows = scipy.sparse.kron(scipy.sparse.eye(n), np.ones((1, m)))
    columns = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye(m))
    marginals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    constraints = scipy.sparse.vstack([rows, columns]).tocsr()
    solved = scipy.optimize.linprog(cost.ravel(), A_eq=constraints, b_eq=marginals, bounds=(0, None), method="highs")
    if solved.x is None:
        raise ValueError(f"cost: got one without an optimal plan, expected finite numbers: {solved.message}")
    return solved.x.reshape(n, m)


def _measure(update: Update, data: Examples, key: Any) -> Payload:
    del key
    return outline(update.params, data)


def _weights(layer: Units) -> jax.Array:
    """Write a layer as vectors [units, incoming weights and bias]."""
    rows = layer.weight.reshape(-1, layer.weight.shape[-1]).T
    return rows if layer.bias is None else jnp.concatenate([rows, layer.bias[:, None]], axis=1)


def _features(outputs: Sequence[jax.Array]) -> list[jax.Array]:
    return [z.reshape(-1, z.shape[-1]).T for z in outputs]


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute squared Euclidean distances [n, m]."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)
    return np.maximum(squares - 2 * first @ second.T, 0)
