"""How examples are split over clients: pure functions of labels (or groups) and an integer seed.

Every function returns one sorted int64 array of example indices per client; each example is in exactly one of them, and
no client is empty. The order of examples and the clients' shares come from independent streams of the seed, so the same
seed with another alpha cuts the same shuffled examples at other places.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Integer

MAX_DRAWS = 1000
"""How often shares are drawn again before a minimum size is given up."""

Parts = list[np.ndarray]


def dirichlet_client(labels: np.ndarray, num_clients: int, *, seed: int, alpha: float, min_size: int = 1) -> Parts:
    """The FedFisher paper's split: each *client* draws its mixture of classes (arXiv 2403.12329 and its code).

    Client i draws q_i ~ Dir(α·1_C); each class column of q is normalised over clients, and the class is cut by the
    cumulative shares. The paper has no minimum size; here a draw that leaves a client with fewer than `min_size`
    examples (without any, by default) is repeated with the next sub-seed.

    Args:
        labels: int [N].
        num_clients: number of clients, M.
        seed: non-negative integer.
        alpha: concentration α; small is more uneven.
        min_size: the fewest examples a client may have.

    Returns:
        M index arrays.

    Raises:
        ValueError: an argument out of range, or no draw of `MAX_DRAWS` gave every client `min_size` examples.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> labels = np.repeat(np.arange(3), 20)
        >>> parts = ff.data.dirichlet_client(labels, 4, seed=0, alpha=0.1)
        >>> len(parts), sorted(np.concatenate(parts).tolist()) == list(range(60))
        (4, True)
    """

    def shares(rng: np.random.Generator, num_classes: int) -> np.ndarray:
        log_gamma = _log_gamma(rng, alpha, (num_clients, num_classes))
        mixtures = log_gamma - _log_sum_exp(log_gamma, axis=1)
        return np.exp(mixtures - _log_sum_exp(mixtures, axis=0))

    return _dirichlet(labels, num_clients, seed, alpha, min_size, shares)


def dirichlet_class(labels: np.ndarray, num_clients: int, *, seed: int, alpha: float, min_size: int = 10) -> Parts:
    """Each *class* is divided over clients by Dir(α·1_M) (arXiv 1905.12022; minimum size 10 as in arXiv 2102.02079).

    At the same α this is another skew than `dirichlet_client`: here the shares of a class are independent of the other
    classes, so clients also differ in size. Their rule that a client with N/M examples gets no more is left out.

    Args, Returns and Raises are those of `dirichlet_client`.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> labels = np.repeat(np.arange(3), 20)
        >>> parts = ff.data.dirichlet_class(labels, 3, seed=0, alpha=0.5, min_size=10)
        >>> min(map(len, parts)) >= 10
        True
    """

    def shares(rng: np.random.Generator, num_classes: int) -> np.ndarray:
        log_gamma = _log_gamma(rng, alpha, (num_clients, num_classes))
        return np.exp(log_gamma - _log_sum_exp(log_gamma, axis=0))

    return _dirichlet(labels, num_clients, seed, alpha, min_size, shares)


def iid(labels: np.ndarray, num_clients: int, *, seed: int) -> Parts:
    """Shuffle the examples and cut them in parts whose sizes differ by at most one.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> [len(part) for part in ff.data.iid(np.zeros(10, int), 3, seed=0)]
        [4, 3, 3]
    """
    labels = _check(labels, num_clients, seed)
    order = _streams(seed)[0].permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, num_clients)]


def shards(labels: np.ndarray, num_clients: int, *, seed: int, classes_per_client: int) -> Parts:
    """Give every client exactly k classes (label skew "#C = k" of arXiv 2102.02079, in the manner of arXiv 1602.05629).

    Clients in turn take k of the classes that the fewest clients hold so far, ties at random; each class is then
    shuffled and cut in equal shards (to one example), one per client that holds it. (Equal shards of the sorted labels,
    the original way, straddle classes, so clients would have *about* k.)

    Raises:
        ValueError: k is not in 1 … C, M·k < C (some class would have no client), or a class has fewer examples than
            clients that hold it.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> labels = np.repeat(np.arange(3), 20)
        >>> parts = ff.data.shards(labels, 3, seed=0, classes_per_client=2)
        >>> [len(set(labels[part].tolist())) for part in parts]
        [2, 2, 2]
    """
    labels = _check(labels, num_clients, seed)
    classes, codes = np.unique(labels, return_inverse=True)
    if not 1 <= classes_per_client <= len(classes):
        raise ValueError(
            f"classes_per_client: got {classes_per_client}, expected 1 to {len(classes)}, the number of classes"
        )
    if num_clients * classes_per_client < len(classes):
        raise ValueError(
            f"classes_per_client × num_clients: got {classes_per_client} × {num_clients}, "
            f"expected at least {len(classes)}, the number of classes"
        )
    order, deal = _streams(seed)
    held = np.zeros((num_clients, len(classes)), np.int64)
    for client in range(num_clients):
        fewest = np.lexsort((deal.random(len(classes)), held.sum(axis=0)))
        held[client, fewest[:classes_per_client]] = 1
    sizes, holders = np.bincount(codes), held.sum(axis=0)
    if np.any(sizes < holders):
        short = int(np.argmax(holders - sizes))
        raise ValueError(
            f"class {classes[short]} has {sizes[short]} examples for {holders[short]} clients: lower num_clients"
        )
    extra = np.cumsum(held, axis=0) <= sizes % holders  # the first holders take one more each where it does not divide
    return _cut(codes, held * (sizes // holders + extra), order)


def quantity(labels: np.ndarray, num_clients: int, *, seed: int, alpha: float, min_size: int = 1) -> Parts:
    """Draw sizes from Dir(α·1_M), and labels IID (quantity skew of arXiv 2102.02079).

    Every client first gets `min_size` examples; the others are divided by the Dirichlet shares, so no draw is repeated.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> labels = np.repeat(np.arange(3), 20)
        >>> parts = ff.data.quantity(labels, 3, seed=0, alpha=0.3, min_size=5)
        >>> sum(map(len, parts)), min(map(len, parts)) >= 5
        (60, True)
    """
    labels = _check(labels, num_clients, seed, alpha=alpha, min_size=min_size)
    order, deal = _streams(seed)
    log_gamma = _log_gamma(deal, alpha, (num_clients, 1))
    free = np.array([len(labels) - num_clients * min_size])
    sizes = min_size + _counts(np.exp(log_gamma - _log_sum_exp(log_gamma, axis=0)), free)[:, 0]
    return [np.sort(part) for part in np.split(order.permutation(len(labels)), np.cumsum(sizes)[:-1])]


def natural(groups: np.ndarray) -> Parts:
    """Make one client per distinct value of `groups` [N] (a writer, a hospital), in sorted order.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> [part.tolist() for part in ff.data.natural(np.array([7, 2, 7, 2]))]
        [[1, 3], [0, 2]]
    """
    groups = np.asarray(groups)
    if groups.ndim != 1 or groups.size == 0:
        raise ValueError(f"groups: got {groups.shape}, expected shape [N] with N ≥ 1")
    codes = np.unique(groups, return_inverse=True)[1]
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def _check(labels: np.ndarray, num_clients: int, seed: int, *, alpha: float = 1.0, min_size: int = 1) -> np.ndarray:
    """Labels as a checked integer vector; every other argument in range."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: got {labels.dtype} {labels.shape}, expected integers of shape [N]")
    if not 1 <= num_clients <= len(labels):
        raise ValueError(f"num_clients: got {num_clients}, expected 1 to {len(labels)}, the number of examples")
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected a non-negative integer")
    if not 1e-100 <= alpha <= 1e100:  # false for NaN; beyond these bounds its powers overflow
        raise ValueError(f"alpha: got {alpha}, expected a finite number > 0")
    if not 1 <= min_size <= len(labels) // num_clients:
        raise ValueError(
            f"min_size: got {min_size}, expected 1 to {len(labels) // num_clients} "
            f"({len(labels)} examples over {num_clients} clients)"
        )
    return labels


def _streams(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Independent generators: one orders the examples, the other draws who gets how many."""
    order, deal = np.random.SeedSequence(seed).spawn(2)
    return np.random.default_rng(order), np.random.default_rng(deal)


def _dirichlet(
    labels: np.ndarray,
    num_clients: int,
    seed: int,
    alpha: float,
    min_size: int,
    shares: Callable[[np.random.Generator, int], np.ndarray],
) -> Parts:
    """Cut every class by the first drawn shares [M, C] that give every client `min_size` examples."""
    labels = _check(labels, num_clients, seed, alpha=alpha, min_size=min_size)
    codes = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(codes)
    order, deal = _streams(seed)
    for _ in range(MAX_DRAWS):
        counts = _counts(shares(deal.spawn(1)[0], len(sizes)), sizes)
        if counts.sum(axis=1).min() >= min_size:
            return _cut(codes, counts, order)
    raise ValueError(
        f"alpha={alpha:g} left some of {num_clients} clients with fewer than {min_size} examples in {MAX_DRAWS} draws: "
        f"raise alpha, or lower num_clients or min_size"
    )


def _log_gamma(rng: np.random.Generator, alpha: float, shape: tuple[int, int]) -> Float[np.ndarray, "m c"]:
    """Logarithms of Gamma(α) variates, which do not underflow at small α: log G(α) = log G(α + 1) + log(U) / α."""
    return np.log(rng.standard_gamma(alpha + 1, shape)) + np.log1p(-rng.random(shape)) / alpha


def _log_sum_exp(x: Float[np.ndarray, "m c"], axis: int) -> Float[np.ndarray, "..."]:
    largest = x.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis=axis, keepdims=True))


def _counts(shares: Float[np.ndarray, "m c"], sizes: Integer[np.ndarray, " c"]) -> Integer[np.ndarray, "m c"]:
    """Examples per client when each class is cut at its cumulative shares; columns sum to `sizes`.

    Cuts are rounded to the nearest example. Rounding down, as the paper's code does, moves half an example per class
    from the first client to the last: with 200 classes, about a hundred examples.
    """
    cuts = np.rint(np.cumsum(shares, axis=0) * sizes).astype(np.int64)
    return np.diff(np.vstack([np.minimum(cuts[:-1], sizes), sizes]), axis=0, prepend=0)


def _cut(codes: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, "m c"], rng: np.random.Generator) -> Parts:
    """Shuffle, gather each class, and deal it to the clients in turn by its column of counts."""
    shuffled = rng.permutation(len(codes))
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    owner = np.repeat(np.tile(np.arange(len(counts)), counts.shape[1]), counts.T.ravel())
    return np.split(by_class[np.lexsort((by_class, owner))], np.cumsum(counts.sum(axis=1))[:-1])
