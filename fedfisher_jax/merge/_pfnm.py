"""PFNM (arXiv 1905.12022) and its layer-wise form for convolutions (FedMA, arXiv 2002.06440): match neurons, or add.

Clients' neurons are noisy copies of global ones, of which there is an unknown number (Beta–Bernoulli process): a
layer's units are assigned, client after client, to global units or to new ones by the Hungarian algorithm, and what is
matched is averaged. Then the next layer's inputs are put in the global order. The merged network may be wider.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._examples import Examples, known
from .._likelihood import Likelihood
from ..curvature import Capture
from ..curvature._chain import Chain, Units
from ..curvature._cotangents import counting
from ._match_neurons import Prior, match_layers
from ._outline import COUNTS, chain_of, models, one_input, outline
from ._rule import Merged, Payload, Rule, Takes, Update

PyTree = Any


def pfnm(
    apply: Callable,
    likelihood: Likelihood,
    *,
    prior: Prior | None = None,
    iterations: int = 5,
    seed: int = 0,
    captured: Capture | None = None,
) -> Rule:
    """Make PFNM's rule (arXiv 1905.12022): clients are matched from the largest on, then again in random orders.

    Output units stay in place; a class's weights are averaged by the clients' numbers of examples of that class, which
    a client therefore sends. Where a merged layer has another width, parameters are a list of `Units` and
    `Merged.apply` is the network that takes them.

    Args:
        apply: (params, x [n, ...]) → outputs [n, C]; examples do not mix.
        likelihood: what was fitted; categorical counts classes, any other weighs clients by their examples.
        prior: what is assumed of neurons; default `Prior()`.
        iterations: how often every client is matched again.
        seed: what the random order of clients follows from.
        captured: the model's layers; found at the merge if not given.

    Raises:
        ValueError: when merging, a network that is not sequential.
    """

    def solve(payloads: Payload, start: PyTree) -> Merged:
        chain = chain_of(apply, payloads, captured)
        order = np.argsort(-np.asarray(payloads.weight), kind="stable")
        unstacked = models(chain, payloads)
        clients = [unstacked[number] for number in order]
        shares = _class_shares(np.asarray(payloads.statistics["counts"])[order])
        layers = match_layers(clients, shares, prior or Prior(), iterations, np.random.default_rng(seed))
        return _merged(chain, layers)

    return _rule(apply, likelihood, solve)


def released_pfnm(apply: Callable, likelihood: Likelihood, *, seed: int = 0, captured: Capture | None = None) -> Rule:
    """Make PFNM as it stands in the FedFisher authors' table, with its faults.

    Networks get zero biases first. The prior mean 0.1 is meant for biases; there it is in the first layer, but in later
    layers it falls on the first incoming weight. Odds count once. Matched weights are posterior means, n/(n + 1) of the
    clients' mean for n clients. Clients come in the order given.
    """

    def solve(payloads: Payload, start: PyTree) -> Merged:
        chain = chain_of(apply, payloads, captured)
        clients = [[_with_bias(layer) for layer in layers] for layers in models(chain, payloads)]
        shares = _class_shares(np.asarray(payloads.statistics["counts"]))
        prior = Prior(mean=0.1, popularity=1.0, most=10.0, posterior=True)
        draw = np.random.default_rng(seed)
        return _merged(chain, match_layers(clients, shares, prior, 5, draw, misplaced=True))

    return _rule(apply, likelihood, solve)


def _rule(apply: Callable, likelihood: Likelihood, solve: Callable[[Payload, PyTree], Merged]) -> Rule:
    measure, takes = MeasureCounts(apply, likelihood), Takes((dict,), (COUNTS,))
    return Rule("pfnm", measure, lambda payload, start: payload, solve, "stack", jit=False, takes=takes)


@dataclasses.dataclass(frozen=True)
class MeasureCounts:
    """Measures parameters and the numbers of examples of each class."""

    apply: Callable
    likelihood: Likelihood

    def __call__(self, update: Update, data: Examples, key: Any) -> Payload:
        """One client's payload."""
        del key
        params, x = update.params, one_input(data)
        outputs = jax.eval_shape(self.apply, params, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
        counts = jnp.full(outputs.shape[-1], data.size, jnp.result_type(float))
        if self.likelihood.name == "categorical":
            classes = known(data.y)[data.indices]  # [n], or [n, T] for sequences
            valid = (jnp.arange(len(classes)) < data.size).reshape(-1, *[1] * (classes.ndim - 1))
            valid &= counting(self.likelihood, classes)
            counts = jnp.zeros_like(counts).at[classes].add(valid.astype(counts.dtype))
        return outline(params, data, counts=counts)


def _with_bias(layer: Units) -> Units:
    return layer if layer.bias is not None else Units(layer.weight, jnp.zeros(layer.weight.shape[-1]))


def _class_shares(counts: np.ndarray) -> np.ndarray:
    """Compute each client's share of a class's examples [M, C], or of all examples where nobody has that class."""
    totals = counts.sum(0)
    everything = counts.sum(1, keepdims=True) / counts.sum()
    return np.where(totals > 0, counts / np.where(totals > 0, totals, 1), everything)


def _merged(chain: Chain, layers: list[Units]) -> Merged:
    widths = {f"units_{number}": jnp.asarray(layer.weight.shape[-1]) for number, layer in enumerate(layers[:-1])}
    same = tuple(layer.weight.shape[-1] for layer in layers) == chain.units
    biases = [own.bias is None for own in chain.captured.layers] == [layer.bias is None for layer in layers]
    if same and biases:
        return Merged(chain.join(layers), widths)
    return Merged(layers, widths, chain.apply)
