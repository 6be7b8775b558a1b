"""TensorFlow Datasets: prepared sets read without tensorflow, others built with it when the user asks.

`tensorflow_datasets.load` is never called: without a network it retries for minutes before it fails. A prepared set is
found by its files alone, before the package is even imported.
"""

import importlib.util
import itertools
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from ._pictures import decode
from ._specs import Images, Spec
from ._where import DataNotFoundError, data_folders, expanded

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CHUNK = 1024  # records per read
_MOST_EXAMPLES = 2**23  # of a split


def find(spec: Spec, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the newest prepared version, `<data folder>/<tfds name>/<version>`, or None."""
    for folder in _folders(data_dir):
        versions = [
            path.parent
            for path in (folder / str(spec.tfds)).glob("*/dataset_info.json")
            if _VERSION.fullmatch(path.parent.name)
        ]
        if versions:
            return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    return None


def read(folder: Path, spec: Spec) -> Images:
    """Read a prepared set (array_record or tfrecord files) with its features `image` and `label`, without tensorflow.

    Raises:
        ValueError: a split is missing, a record is damaged, an image has another size than the set's, or a label is
            no class.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # its parsers fail in many ways at what is damaged
        raise ValueError(
            f"{folder} cannot be read, prepare the set again: {' '.join(str(error).split())[:200]}"
        ) from error
    for split in ("train", spec.test_split):
        if split not in builder.info.splits:
            raise ValueError(
                f"{folder} has no split {split!r}, only {sorted(builder.info.splits)}: prepare the set again"
            )
    return Images(*_read_split(builder, "train", spec), *_read_split(builder, spec.test_split, spec))


def prepare(spec: Spec, data_dir: str | os.PathLike[str] | None) -> Path:
    """Download and build a set as array_record files (needs tensorflow and a network); returns its folder.

    It goes to `data_dir`, else $FEDFISHER_DATA, else $TFDS_DATA_DIR, else ~/tensorflow_datasets. Original files that
    lie in `downloads/manual` there, with the checksums that TFDS knows, are not downloaded.

    Raises:
        DataNotFoundError: tensorflow is not installed, or the download failed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise DataNotFoundError(
            f"building {spec.tfds} needs tensorflow: pip install 'fedfisher-jax[tensorflow]' and load it once more"
        )
    import requests
    import tensorflow_datasets as tfds

    named = data_dir or os.environ.get("FEDFISHER_DATA") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    builder = tfds.builder(str(spec.tfds), data_dir=expanded(named), file_format="array_record")
    _check_network(builder, expanded(named) / "downloads" / "manual")
    try:
        builder.download_and_prepare(file_format="array_record")
    except (requests.RequestException, tfds.download.DownloadError) as error:
        raise DataNotFoundError(f"{spec.tfds} could not be downloaded: {error}") from error
    return Path(builder.data_dir)


def _check_network(builder: Any, manual: Path) -> None:
    """Fail at once where no host of the files still needed has an address; the downloader would retry for minutes."""
    if getproxies():  # then the proxy resolves names
        return
    urls = [urlsplit(url) for url in builder.url_infos or ()]
    hosts = sorted({str(url.hostname) for url in urls if not (manual / Path(url.path).name).is_file()})
    if hosts and not any(map(_has_address, hosts)):
        raise DataNotFoundError(f"{builder.name} cannot be downloaded: no network, {' and '.join(hosts)} not found")


def _has_address(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def _folders(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    named = os.environ.get("TFDS_DATA_DIR")
    return data_folders(data_dir, *([named] if named else []), "~/tensorflow_datasets")


def _read_split(builder: Any, split: str, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """One split: uint8 [N, H, W, C] and int32 [N]."""
    count = builder.info.splits[split].num_examples
    if not 0 < count <= _MOST_EXAMPLES:
        raise ValueError(f"{builder.data_dir}: split {split!r} announces {count} examples, the cap is {_MOST_EXAMPLES}")
    images, labels = np.empty((count, *spec.shape), np.uint8), np.empty(count, np.int32)
    done = 0
    for example in itertools.islice(_examples(builder, split), count):
        label = int(example["label"])
        if not 0 <= label < spec.num_classes:  # before it is cast, or it wraps
            raise ValueError(f"{builder.data_dir}: split {split!r}: label {label}, expected 0 … {spec.num_classes - 1}")
        images[done], labels[done] = decode(example["image"], spec.shape, resize=spec.resize), label
        done += 1
    if done != count:
        raise ValueError(f"{builder.data_dir}: split {split!r} has {done} examples, not {count}: prepare the set again")
    return (images.swapaxes(1, 2) if spec.transpose else images), labels


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split, images still encoded."""
    import tensorflow_datasets as tfds

    decoders: Any = {"image": tfds.decode.SkipDecoding()}
    if str(builder.info.file_format.value) == "array_record":
        source: Any = builder.as_data_source(split, decoders=decoders)
        for start in range(0, len(source), _CHUNK):
            yield from source.__getitems__(list(range(start, min(start + _CHUNK, len(source)))))
    else:
        for path in builder.info.splits[split].filepaths:
            for record in _tfrecords(Path(path)):
                yield builder.info.features.deserialize_example_np(record, decoders=decoders)


def _tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a tfrecord file: length (8 bytes, little endian), checksum (4), record, checksum (4)."""
    left = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            left -= 12 + length + 4
            record = file.read(length + 4) if left >= 0 else b""  # or a damaged length asks for all memory
            if len(header) < 12 or len(record) < length + 4:
                raise ValueError(f"{path} is truncated: prepare the set again")
            yield record[:length]
