"""`fedfisher describe`: what a silo tells of its inputs, so that all can agree on one scaling."""

import dataclasses
from pathlib import Path

from .. import _files
from ..data import Columns, is_own
from ..data import describe as sums_of
from ..data._scaling import as_images
from ..data._where import expanded
from ..silos import _silo_data as silo_data
from ..silos import _sums_file as sums_file


@dataclasses.dataclass(frozen=True)
class DescribeSettings:
    """Write count, sum and sum of squares of this silo's inputs, by column, for `fedfisher init --standardise`."""

    data: str
    """This silo's examples: a .npz file with train_x, train_y (or x, y), or a .csv or .parquet table."""
    label: tuple[str, ...] = ("label",)
    """Column, or columns, of the labels in a table."""
    ignore: tuple[str, ...] = ()
    """Columns of a table that are no inputs."""
    out: Path = Path("sums.safetensors")
    """The file to write: all that leaves the silo."""


def describe(settings: DescribeSettings) -> None:
    """Write the sums.

    Raises:
        ValueError: data that do not work, named.
    """
    if not is_own(settings.data):
        raise ValueError(
            f"data: got {settings.data}, expected a .npz, .csv or .parquet file: named data sets are normalised already"
        )
    _files.require_file(settings.out, [expanded(settings.data)])
    x, _ = silo_data.read(settings.data, "train", columns=Columns(settings.label, None, settings.ignore))
    sums = sums_of(as_images(x))
    sums_file.write(settings.out, sums)
    print(f"{settings.out}: {len(x)} examples, {sums.total.size} columns")
