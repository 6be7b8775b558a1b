"""Match the neurons of several networks, layer after layer: PFNM's Hungarian assignments (arXiv 1905.12022)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy  # its parts load where they are used

from ..curvature._chain import Units


@dataclasses.dataclass(frozen=True)
class Prior:
    """What is assumed of neurons, as vectors of incoming weights and bias, before any is seen.

    Attributes:
        gamma: the mass of the Beta–Bernoulli process: more of it, more units.
        sigma: variance of a client's weights around the global ones.
        sigma0: variance of the global weights around their mean.
        mean: the mean of the global weights.
        popularity: the factor of the log-odds of a global unit in its matching score. The score is twice a logarithm,
            so 2.
        most: the largest count of clients that share a unit in those odds.
        posterior: whether to put the posterior mean, pulled to `mean`, in the merged network; else the matched clients'
            mean.
    """

    gamma: float = 7.0
    sigma: float = 1.0
    sigma0: float = 1.0
    mean: float = 0.0
    popularity: float = 2.0
    most: float = float("inf")
    posterior: bool = False


def match_layers(
    clients: Sequence[Sequence[Units]],
    shares: np.ndarray,
    prior: Prior,
    iterations: int,
    draw: np.random.Generator,
    *,
    misplaced: bool = False,
) -> list[Units]:
    """Merge the layers of several models.

    Args:
        clients: each one's layers.
        shares: [M, outputs], the weights of the clients' output units, which sum to 1.
        prior: what is assumed of neurons.
        iterations: as in `pfnm`.
        draw: the generator of random orders of clients.
        misplaced: whether to put the prior mean where released code does, instead of on everything.
    """
    result: list[Units] = []
    placed: list[np.ndarray] = []  # per client: the global number of each unit of the layer before
    for number in range(len(clients[0])):
        layers = [layers[number] for layers in clients]
        if placed:
            layers = [_reordered(one, where, result[-1]) for one, where in zip(layers, placed, strict=True)]
        if number + 1 == len(clients[0]):
            mean = lambda parts: sum(s * np.asarray(p) for s, p in zip(shares, parts, strict=True))  # noqa: E731
            bias = None if layers[0].bias is None else mean([one.bias for one in layers])
            result.append(Units(mean([one.weight for one in layers]), bias))
            break
        vectors = [_vectors(one) for one in layers]
        center = np.full(vectors[0].shape[1], 0.0 if misplaced else prior.mean)
        if misplaced:
            center[-1 if number == 0 else 0] = prior.mean
        placed, units = match(vectors, center, prior, iterations, draw)
        incoming = units if layers[0].bias is None else units[:, :-1]
        weight = incoming.T.reshape(*layers[0].weight.shape[:2], -1)
        result.append(Units(weight, None if layers[0].bias is None else units[:, -1]))
    dtype = clients[0][0].weight.dtype
    return [Units(jnp.asarray(w, dtype), None if b is None else jnp.asarray(b, dtype)) for w, b in result]


def match(
    clients: Sequence[np.ndarray], center: np.ndarray, prior: Prior, iterations: int, draw: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Match neurons [units of client j, f] of several clients.

    Returns:
        For each client the global number of each unit, and the global units [L, f].
    """
    precision, precision0 = 1 / prior.sigma, 1 / prior.sigma0
    start = center * precision0

    def totals(places: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
        """Add up weights and counts per global unit over the clients that have places."""
        known = [(p, w) for p, w in zip(places, clients, strict=True) if p is not None]
        size = max((int(p.max()) + 1 for p, _ in known), default=0)
        weights, counts = np.zeros((size, center.size)), np.zeros(size, int)
        for p, w in known:
            weights[p] += w
            counts[p] += 1
        return weights, counts

    def place(number: int, places: list[np.ndarray | None]) -> None:
        """Assign one client's units, given the others'."""
        places[number] = None
        weights, counts = totals(places)
        kept = counts > 0
        numbers = np.cumsum(kept) - 1
        for other, p in enumerate(places):
            places[other] = None if p is None else numbers[p]
        weights, counts = weights[kept], counts[kept]
        own = clients[number]
        sums, scales = start + weights * precision, precision0 + counts * precision
        joined = _squares(own * precision, sums) / (scales + precision)
        known = joined - (sums**2).sum(1) / scales
        odds = np.minimum(counts, prior.most)
        known += prior.popularity * np.log(odds / (len(clients) - odds))
        alone = ((own * precision + start) ** 2).sum(1) / (precision0 + precision) - (start**2).sum() / precision0
        rank = np.arange(1, len(own) + 1)
        fresh = alone[:, None] - 2 * np.log(rank) + 2 * np.log(prior.gamma / len(clients))
        rows, columns = scipy.optimize.linear_sum_assignment(-np.hstack([known, fresh]))
        new = np.cumsum(columns >= len(counts)) - 1
        assigned = np.empty(len(own), int)
        assigned[rows] = np.where(columns < len(counts), columns, len(counts) + new)
        places[number] = assigned

    places: list[Any] = [np.arange(len(clients[0]))] + [None] * (len(clients) - 1)
    for number in range(1, len(clients)):
        place(number, places)
    for _ in range(iterations if len(clients) > 1 else 0):
        for number in draw.permutation(len(clients)):
            place(int(number), places)
    weights, counts = totals(places)
    if prior.posterior:
        return places, (start + weights * precision) / (precision0 + counts * precision)[:, None]
    return places, weights / counts[:, None]


def _squares(own: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Compute |own_l + sums_i|² [units, global units]."""
    return (own**2).sum(1)[:, None] + 2 * own @ sums.T + (sums**2).sum(1)


def _vectors(layer: Units) -> np.ndarray:
    """Write a layer as vectors [units, incoming weights and bias]."""
    rows = np.asarray(layer.weight, float).reshape(-1, layer.weight.shape[-1]).T
    return rows if layer.bias is None else np.hstack([rows, np.asarray(layer.bias, float)[:, None]])


def _reordered(layer: Units, where: np.ndarray, before: Units) -> Units:
    """Let a layer read global units, with zero weights for those that the client has not."""
    weight = np.zeros((before.weight.shape[-1], *layer.weight.shape[1:]))
    weight[where] = layer.weight
    return Units(weight, layer.bias)
