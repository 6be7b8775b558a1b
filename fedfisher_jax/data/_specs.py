"""What is known of each named image set: classes, shape, normalisation, where its files come from."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """What a reader returns: raw pixels uint8 [N, H, W, C] and labels int32 [N], for training and for testing."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spec:
    """Facts of one image set.

    Attributes:
        num_classes: number of classes.
        shape: height, width and channels of an example.
        mean: per channel, subtracted from pixels / 255.
        std: per channel, divides what is left.
        augment: whether the paper trains on random crops and flips (arXiv 2403.12329).
        idx: folders, under a data folder, in which its idx files may lie.
        tfds: its name (and configuration) in TensorFlow Datasets.
        folders: folders, under a data folder, which may hold it as image files.
        test_split: the TFDS split with test labels.
        resize: whether images of other sizes are resized to `shape` (bilinear); else they are an error.
        transpose: whether TFDS stores the images with height and width exchanged.
    """

    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    idx: tuple[str, ...] = ()
    tfds: str | None = None
    folders: tuple[str, ...] = ()
    test_split: str = "test"
    resize: bool = False
    transpose: bool = False


# The paper's code normalises both CIFAR sets with these.
_CIFAR_MEAN, _CIFAR_STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)

SPECS: dict[str, Spec] = {
    # Mean and standard deviation of MNIST's training pixels, as in PyTorch's MNIST example.
    "mnist": Spec(
        10, (28, 28, 1), (0.1307,), (0.3081,), idx=("mnist", "MNIST", "MNIST/raw", "mnist/raw"), tfds="mnist"
    ),
    # The paper's code uses MNIST's numbers here too (Fashion-MNIST's own are 0.2860 and 0.3530).
    "fashion_mnist": Spec(
        10,
        (28, 28, 1),
        (0.1307,),
        (0.3081,),
        idx=("fashion_mnist", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
        tfds="fashion_mnist",
    ),
    # Not in the papers: the training pixels' mean and standard deviation as remembered, not confirmed by a source.
    "kmnist": Spec(10, (28, 28, 1), (0.1918,), (0.3483,), tfds="kmnist"),
    # Not in the papers: the by-class training pixels' mean and standard deviation that public code commonly uses.
    # TFDS keeps the original files' orientation, height and width exchanged.
    "emnist": Spec(62, (28, 28, 1), (0.1736,), (0.3317,), tfds="emnist/byclass", transpose=True),
    # The paper's code does not normalise SVHN: pixels in [0, 1].
    "svhn_cropped": Spec(10, (32, 32, 3), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), tfds="svhn_cropped"),
    "cifar10": Spec(10, (32, 32, 3), _CIFAR_MEAN, _CIFAR_STD, augment=True, tfds="cifar10"),
    "cifar100": Spec(100, (32, 32, 3), _CIFAR_MEAN, _CIFAR_STD, augment=True, tfds="cifar100"),
    # The decathlon keeps its test labels secret (TFDS stores −1): its validation split is our test set.
    "gtsrb": Spec(
        43,
        (32, 32, 3),
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        augment=True,
        tfds="visual_domain_decathlon/gtsrb",
        test_split="validation",
        resize=True,
    ),
    "cinic10": Spec(
        10,
        (32, 32, 3),
        (0.47889522, 0.47227842, 0.43047404),
        (0.24205776, 0.23828046, 0.25874835),
        augment=True,
        folders=("cinic10", "CINIC-10", "cinic-10"),
    ),
    # 64×64 pictures resized to the 32×32 of the paper's pre-training. Its normalisation is not in the papers: these are
    # the training pixels' numbers that public Tiny-ImageNet code commonly uses.
    "tiny_imagenet": Spec(
        200,
        (32, 32, 3),
        (0.4802, 0.4481, 0.3975),
        (0.2302, 0.2265, 0.2262),
        folders=("tiny_imagenet", "tiny-imagenet-200"),
        resize=True,
    ),
}


def normalise(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(pixels / 255 − mean) / std per channel: uint8 [N, H, W, C] → float32 [N, H, W, C]."""
    x = pixels.astype(np.float32)
    x /= np.float32(255)
    x -= np.asarray(mean, np.float32)
    x /= np.asarray(std, np.float32)
    return x
