"""One encoded image file (PNG, JPEG) as an array."""

import io
from pathlib import Path

import numpy as np

_MODES = {1: "L", 3: "RGB"}


def decode(source: bytes | Path, shape: tuple[int, int, int], *, resize: bool) -> np.ndarray:
    """Decode an image to uint8 [height, width, channels].

    Args:
        source: the file's content, or its path.
        shape: the height, width and channels wanted; grey pictures become colour ones and back as `shape` asks.
        resize: whether a picture of another size is resized (bilinear) rather than refused.

    Raises:
        ValueError: no image, a damaged one, or one of another size.
    """
    from PIL import Image

    what = str(source) if isinstance(source, Path) else "an image"
    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            picture = file.convert(_MODES[channels])
    except OSError as error:  # PIL's UnidentifiedImageError is one
        raise ValueError(f"{what} cannot be read as an image: {error}") from error
    if picture.size != (width, height):
        if not resize:
            raise ValueError(f"{what} has {picture.height}×{picture.width} pixels, expected {height}×{width}")
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(shape)
