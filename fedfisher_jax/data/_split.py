"""A split by its name, and what it did to the labels."""

from collections.abc import Callable, Sequence

import numpy as np

from ._partition import Parts, dirichlet_class, dirichlet_client, iid, natural, quantity, shards

PARTITIONS: dict[str, Callable[..., Parts]] = {
    "dirichlet-client": dirichlet_client,
    "dirichlet-class": dirichlet_class,
    "iid": iid,
    "shards": shards,
    "quantity": quantity,
    "natural": natural,
}
"""The splits by the names that `split` and the command take."""


def split(
    name: str,
    labels: np.ndarray,
    num_clients: int | None,
    *,
    seed: int,
    alpha: float = 0.1,
    classes_per_client: int = 2,
    min_size: int | None = None,
    groups: np.ndarray | None = None,
) -> Parts:
    """Split examples over clients by the name of a split; each takes the arguments that it knows.

    Args:
        name: one of `PARTITIONS`.
        labels: int [N].
        num_clients: number of clients; for "natural" None or the number of groups.
        seed: non-negative integer, not used by "natural".
        alpha: for the Dirichlet splits and "quantity".
        classes_per_client: for "shards".
        min_size: the fewest examples of a client, for the Dirichlet splits and "quantity"; None is the split's own.
        groups: int [N], for "natural".

    Returns:
        One sorted int64 index array per client.

    Raises:
        ValueError: an unknown name, or an argument out of range.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> parts = ff.data.split("dirichlet-client", np.arange(40) % 4, 3, seed=0, alpha=0.3)
        >>> len(parts), sum(map(len, parts))
        (3, 40)
    """
    if name not in PARTITIONS:
        raise ValueError(f"name: got the partition {name!r}, expected one of {', '.join(PARTITIONS)}")
    if name == "natural":
        return _natural_for(labels, num_clients, groups)
    if num_clients is None:
        raise ValueError(f"num_clients: got None, expected a number for the partition {name!r}")
    arguments = {
        "iid": {},
        "shards": {"classes_per_client": classes_per_client},
    }.get(name, {"alpha": alpha} | ({} if min_size is None else {"min_size": min_size}))
    return PARTITIONS[name](labels, num_clients, seed=seed, **arguments)


def label_counts(labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Count the examples of each class at each client: int64 [M, C].

    Raises:
        ValueError: a label that is none of 0 … num_classes − 1.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> ff.data.label_counts(np.array([0, 1, 1, 0]), [np.array([0, 3]), np.array([1, 2])], 2).tolist()
        [[2, 0], [0, 2]]
    """
    if len(labels) and not 0 <= np.min(labels) <= np.max(labels) < num_classes:
        given = f"{np.min(labels)} to {np.max(labels)}"
        raise ValueError(f"labels: got numbers from {given}, expected 0 to {num_classes - 1} for {num_classes} classes")
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])


def _natural_for(labels: np.ndarray, num_clients: int | None, groups: np.ndarray | None) -> Parts:
    if groups is None:
        raise ValueError("the partition 'natural' needs a groups column, and this data set has none")
    if len(groups) != len(labels):
        raise ValueError(f"groups: got {len(groups)} for {len(labels)} examples, expected one entry per example")
    parts = natural(groups)
    if num_clients not in (None, len(parts)):
        raise ValueError(f"num_clients: got {num_clients}, expected the number of groups, {len(parts)}, for 'natural'")
    return parts
