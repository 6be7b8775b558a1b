"""Sets kept as image files: `train/<class>/…`, and `test/<class>/…`, `valid/<class>/…` or `val/` with its annotations.

CINIC-10 (arXiv 1810.03505) has `train`, `valid` and `test`; its `valid` is left alone where `test` is there.
Tiny-ImageNet has `train/<class>/images`, a `test` without labels, and `val/images` whose classes stand in
`val/val_annotations.txt`.
"""

import os
from pathlib import Path

import numpy as np

from ._pictures import decode
from ._specs import Images, Spec
from ._where import candidates

_SUFFIXES = (".png", ".jpg", ".jpeg")
_TEST_FOLDERS = ("test", "valid", "val")
_ANNOTATIONS = "val_annotations.txt"

Labelled = list[tuple[Path, int]]


def find(spec: Spec, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The first folder that has a `train` folder with class folders in it, or None."""
    return next((folder for folder in candidates(data_dir, spec.folders) if _class_names(folder / "train")), None)


def read(folder: Path, spec: Spec) -> Images:
    """Read every image; classes are numbered in the order of their folders' names.

    Raises:
        ValueError: the number of classes is not the set's, there are no labelled test images, or an image is damaged.
    """
    names = _class_names(folder / "train")
    if len(names) != spec.num_classes:
        raise ValueError(f"{folder / 'train'} must have {spec.num_classes} class folders, got {len(names)}")
    train, test = _by_class(folder / "train", names), _test_files(folder, names)
    return Images(*_decode_all(train, spec), *_decode_all(test, spec))


def _class_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _by_class(folder: Path, names: list[str]) -> Labelled:
    files: Labelled = []
    for label, name in enumerate(names):
        paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise ValueError(f"{folder / name} has no .png or .jpg images")
        files += [(path, label) for path in paths]
    return files


def _test_files(folder: Path, names: list[str]) -> Labelled:
    for part in _TEST_FOLDERS:
        if (folder / part / _ANNOTATIONS).is_file():
            return _by_annotations(folder / part, names)
        if _class_names(folder / part) == names:
            return _by_class(folder / part, names)
    raise ValueError(
        f"{folder} has no labelled test images: expected test/, valid/ or val/ with the class folders of train/"
    )


def _by_annotations(folder: Path, names: list[str]) -> Labelled:
    """Lines of `file name <tab> class <tab> box`; the files are in `images/`."""
    labels = {name: label for label, name in enumerate(names)}
    files: Labelled = []
    try:
        lines = (folder / _ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / _ANNOTATIONS} is no text: {error}") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in labels:
            raise ValueError(f"{folder / _ANNOTATIONS} line {number} names no class of train/: {line[:80]!r}")
        files.append((folder / "images" / fields[0], labels[fields[1]]))
    return files


def _decode_all(files: Labelled, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(files), *spec.shape), np.uint8)
    for i, (path, _) in enumerate(files):
        images[i] = decode(path, spec.shape, resize=spec.resize)
    return images, np.array([label for _, label in files], np.int32)
