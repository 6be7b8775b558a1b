"""Writes a data set of colour images out of photographs that Python packages carry: from which one is a patch?

    pip install scikit-image
    python -m experiments.fedfisher.photographs

Eight photographs of scikit-image and two of scikit-learn are ten classes. Each is made 320 pixels high; training
patches of 32 × 32 pixels lie in the left two thirds, test patches in the rest, so that no pixel is in both. A patch
loses its mean in every channel, or its colour alone would tell.
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
HEIGHT, SIDE = 320, 32


@dataclasses.dataclass(frozen=True)
class Settings:
    """Flags.

    Attributes:
        out: The file that is written.
        train: Training patches of each photograph.
        test: Test patches of each photograph.
        seed: The seed of the patches' places.
    """

    out: Path = Path("runs/photographs.npz")
    train: int = 1000
    test: int = 200
    seed: int = 0


def files() -> list[Path]:
    """The photographs.

    Raises:
        SystemExit: a package is not installed, or does not carry one of them.
    """
    found = []
    for package, folder, names in (("skimage", "data", SCIKIT_IMAGE), ("sklearn", "datasets/images", SCIKIT_LEARN)):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package}: not installed, expected it for its photographs (pip install scikit-image)")
        found += [Path(spec.origin).parent / folder / name for name in names]
    missing = [str(file) for file in found if not file.exists()]
    if missing:
        raise SystemExit(f"no such photographs: {', '.join(missing)}")
    return found


def patches(image: np.ndarray, count: int, first: int, last: int, rng: np.random.Generator) -> np.ndarray:
    """Cut `count` patches [count, side, side, 3] between two columns, each without its channels' means."""
    rows = rng.integers(image.shape[0] - SIDE + 1, size=count)
    columns = rng.integers(first, last - SIDE + 1, size=count)
    cut = np.stack([image[r : r + SIDE, c : c + SIDE] for r, c in zip(rows, columns, strict=True)])
    return cut - cut.mean((1, 2), keepdims=True)


def dataset(images: list[np.ndarray], train: int, test: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a data set whose classes are the images [height, width, 3]."""
    rng, x, test_x = np.random.default_rng(seed), [], []
    for image in images:
        border = 2 * image.shape[1] // 3
        x.append(patches(image, train, 0, border, rng))
        test_x.append(patches(image, test, border, image.shape[1], rng))
    scale = np.std(np.concatenate(x))
    labels = np.arange(len(images))
    return {
        "train_x": (np.concatenate(x) / scale).astype(np.float32),
        "train_y": np.repeat(labels, train),
        "test_x": (np.concatenate(test_x) / scale).astype(np.float32),
        "test_y": np.repeat(labels, test),
    }


def main() -> None:
    """Writes the file."""
    settings = tyro.cli(Settings, description=__doc__)
    images = []
    for file in files():
        picture = Image.open(file).convert("RGB")
        width = round(picture.width * HEIGHT / picture.height)
        images.append(np.asarray(picture.resize((width, HEIGHT)), np.float32) / 255)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = dataset(images, settings.train, settings.test, settings.seed)
    np.savez_compressed(settings.out, **arrays)


if __name__ == "__main__":
    main()
