"""MNIST's idx files, plain or gzipped; Debian's Fashion-MNIST package is found by itself.

The format: two zero bytes, a type byte, the rank, the dimensions as big-endian 32-bit integers, the data in C order
(yann.lecun.com/exdb/mnist).
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from ._specs import Images, Spec
from ._where import candidates

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

MOST_BYTES = 2**30  # of one file, unpacked

DEBIAN_FOLDER = "/usr/share/datasets"
"""Where Debian's `dataset-fashion-mnist` puts its folder."""


def find(spec: Spec, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The first folder that holds all four files (with or without .gz), or None."""
    for folder in candidates(data_dir, spec.idx, DEBIAN_FOLDER):
        if all(_file(folder, name) for name in FILES):
            return folder
    return None


def read(folder: Path, spec: Spec) -> Images:
    """Read the four files of a folder that `find` returned.

    Raises:
        ValueError: a file is damaged or larger than `MOST_BYTES`, images are not of the set's size, or images and
            labels differ in number.
    """
    train_x, train_y, test_x, test_y = (parse(_content(_file(folder, name) or folder / name), name) for name in FILES)
    for images, labels, name in ((train_x, train_y, FILES[0]), (test_x, test_y, FILES[2])):
        if images.shape != (len(labels), *spec.shape[:2]) or labels.ndim != 1:
            raise ValueError(
                f"{folder / name}: expected one {spec.shape[0]}×{spec.shape[1]} image per label, "
                f"got images {images.shape} and labels {labels.shape}"
            )
    return Images(train_x[..., None], train_y.astype(np.int32), test_x[..., None], test_y.astype(np.int32))


def parse(content: bytes, name: str) -> np.ndarray:
    """The uint8 array of any rank in the bytes of an (unzipped) idx file; `name` is for the messages.

    Raises:
        ValueError: wrong magic number, or more or fewer bytes than the header says.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":  # two zero bytes, 0x08 = unsigned byte, then the rank
        raise ValueError(
            f"{name} is not an idx file of unsigned bytes: it starts with {content[:4].hex(' ') or 'nothing'}"
        )
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{name} is truncated: {len(content)} bytes, its header alone has {header}")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f"{name} is truncated or damaged: {len(content)} bytes, its header says {expected}")
    if len(shape) > 32 or math.prod(n for n in shape if n) >= 2**31:  # a size of 0 hides the others
        raise ValueError(f"{name} announces the shape {str(shape)[:80]}, which no array has")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _content(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES} bytes when unpacked, which is the cap")
    return content
