"""The one record that everything after loading works with: normalised examples, labels, and what is known of them."""

import dataclasses

import numpy as np

from ._scaling import Scaling
from ._targets import as_targets, require_targets


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples to train on and examples to test on; checked when it is made.

    Attributes:
        name: what it is called in reports.
        train_x: float32 [N, H, W, C] images or [N, features] rows, already normalised.
        train_y: int32 [N] labels in 0 … num_classes − 1; of a likelihood without classes, targets [N, num_classes].
        test_x: float32, the same shape as `train_x` but for the first axis.
        test_y: int32 labels of `test_x`.
        num_classes: number of classes, C; a class without examples is allowed. Without classes, of targets.
        groups: int [N], the column of a natural split (a writer, a hospital) over training examples, or None.
        augment: whether the FedFisher paper trains on random crops and flips of this set (arXiv 2403.12329).
        scaling: what was done to the numbers as they were found; None where nothing was.
        classes: the labels as they were found, of which `train_y` and `test_y` are the places; None where they are
            those places themselves.
        likelihood: what targets are fitted with: categorical, gaussian (float32) or bernoulli (int32 zeros and ones).

    Raises:
        ValueError: an array is empty, of another type or shape than stated, holds NaN or an infinite value, or a label
            is out of range; one line that names the array.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    num_classes: int
    groups: np.ndarray | None = None
    augment: bool = False
    scaling: Scaling | None = None
    classes: tuple[int | str, ...] | None = None
    likelihood: str = "categorical"

    def __post_init__(self) -> None:
        require_targets(self.likelihood)
        least = 2 if self.likelihood == "categorical" else 1
        if self.num_classes < least:
            raise ValueError(f"{self.name}: num_classes: got {self.num_classes}, expected at least {least}")
        for part in ("train", "test"):
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            _check_examples(f"{self.name}: {part}_x", x)
            if self.likelihood == "categorical":
                _check_labels(f"{self.name}: {part}_y", y, len(x), self.num_classes)
            else:
                _check_targets(f"{self.name}: {part}_y", self.likelihood, y, (len(x), self.num_classes))
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise ValueError(
                f"{self.name}: train_x and test_x: got {self.train_x.shape[1:]} and "
                f"{self.test_x.shape[1:]}, expected examples of one shape"
            )
        if self.groups is not None:
            if not np.issubdtype(self.groups.dtype, np.integer):
                raise ValueError(f"{self.name}: groups: got {self.groups.dtype}, expected integers")
            if self.groups.shape != self.train_y.shape[:1]:
                raise ValueError(
                    f"{self.name}: groups: got shape {self.groups.shape} for {len(self.train_y)} examples, "
                    "expected one entry per training example"
                )


def _check_examples(what: str, x: np.ndarray) -> None:
    if x.ndim not in (2, 4):
        raise ValueError(f"{what}: got {x.shape}, expected shape [N, height, width, channels] or [N, features]")
    if x.size == 0:
        raise ValueError(f"{what} is empty, shape {x.shape}")
    if x.dtype != np.float32:
        raise ValueError(f"{what}: got {x.dtype}, expected float32")
    if not (np.isfinite(x.min()) and np.isfinite(x.max())):  # NaN propagates through min: no mask as large as the data
        first = next(i for i, example in enumerate(x) if not np.isfinite(example).all())
        raise ValueError(f"{what} has NaN or infinite values, first in example {first}")


def _check_labels(what: str, y: np.ndarray, count: int, num_classes: int) -> None:
    if y.shape != (count,):
        raise ValueError(f"{what}: got {y.shape}, expected one label per example, shape ({count},)")
    if y.dtype != np.int32:
        raise ValueError(f"{what}: got {y.dtype}, expected int32")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"{what}: got labels from {y.min()} to {y.max()}, expected 0 … {num_classes - 1}")


def _check_targets(what: str, likelihood: str, y: np.ndarray, shape: tuple[int, int]) -> None:
    kind = np.float32 if likelihood == "gaussian" else np.int32
    if y.shape != shape or y.dtype != kind:
        raise ValueError(f"{what}: got {y.dtype} {y.shape}, expected {np.dtype(kind)} {shape} for {likelihood}")
    as_targets(what, likelihood, y)
