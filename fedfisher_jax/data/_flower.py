"""Flower's partitioners (the package flwr-datasets) on arrays of ours."""

from typing import Any

import numpy as np

from ._hugging_face import package
from ._partition import Parts


def by_partitioner(partitioner: Any, **columns: Any) -> Parts:
    """Split examples by a partitioner of flwr-datasets.

    Args:
        partitioner: such as `flwr_datasets.partitioner.DirichletPartitioner(5, partition_by="label", alpha=0.1)`.
        columns: [N] arrays that it may partition by, under the names that it knows: `label=data.train_y`.

    Returns:
        One sorted int64 index array per partition.

    Raises:
        ValueError: no columns, which say how many examples there are, or columns of different lengths.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns: got {lengths or 'none'}, expected at least one, all of one length")
    rows = len(next(iter(columns.values())))
    given = {name: np.asarray(values) for name, values in columns.items()} | {"row": np.arange(rows)}
    partitioner.dataset = package("flwr_datasets's partitioners").Dataset.from_dict(given)
    parts = (partitioner.load_partition(number)["row"] for number in range(partitioner.num_partitions))
    return [np.sort(np.asarray(part, np.int64)) for part in parts]
