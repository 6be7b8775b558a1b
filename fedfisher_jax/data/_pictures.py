"""One encoded image file (PNG, JPEG) as an array."""

import io
from pathlib import Path
from typing import Any

import numpy as np

_MODES = {1: "L", 3: "RGB"}
_FORMATS = ("PNG", "JPEG")  # PIL would hand others to their decoders, PostScript to another program
MOST_PIXELS = 2**26


def decode(source: bytes | Path, shape: tuple[int, int, int], *, resize: bool) -> np.ndarray:
    """Decode an image to uint8 [height, width, channels].

    Args:
        source: the file's content, or its path.
        shape: the height, width and channels wanted; grey pictures become colour ones and back as `shape` asks, 16 bits
            become 8.
        resize: whether a picture of another size is resized (bilinear) rather than refused.

    Raises:
        ValueError: no PNG or JPEG, a damaged one, one of another size or of more than `MOST_PIXELS`.
    """
    from PIL import Image

    what = str(source) if isinstance(source, Path) else "an image"
    height, width, channels = shape
    if isinstance(source, Path) and not source.is_file():  # a pipe would be waited for
        raise ValueError(f"{what} cannot be read as an image: it is no file")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as file:
            found, many = f"has {file.height}×{file.width} pixels", file.width * file.height > MOST_PIXELS
            fits = (resize or file.size == (width, height)) and not many
            picture = (
                (_of_16_bits(file) if file.mode.startswith("I") else file).convert(_MODES[channels]) if fits else None
            )
    except Exception as error:  # decoders fail in many ways at what is damaged
        raise ValueError(f"{what} cannot be read as an image: {error}") from error
    if picture is None:
        raise ValueError(f"{what} {found}, expected {height}×{width}{f', the cap is {MOST_PIXELS}' if many else ''}")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(shape)


def _of_16_bits(picture: Any) -> Any:
    """Grey values 0 … 65535 as 0 … 255; PIL's own conversion cuts off what is above 255."""
    from PIL import Image

    return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
