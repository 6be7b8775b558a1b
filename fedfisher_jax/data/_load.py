"""A data set by name: the first of its sources that is on this machine, or an error that says what to do."""

import os

import numpy as np

from . import _folders as folders
from . import _hugging_face as hugging_face
from . import _idx as idx
from . import _tables as tables
from . import _tfds as tfds
from ._dataset import Dataset
from ._digits import read_digits
from ._npz import read_npz
from ._scaling import Scaling
from ._specs import SPECS, Images, Spec, normalise
from ._where import COMMON_FOLDERS, DataNotFoundError, expanded

DATASETS: tuple[str, ...] = ("digits", *SPECS)
"""The names that `load` knows; a path that ends in .npz, .csv or .parquet is one too, and hf:NAME."""


def is_own(name: str) -> bool:
    """Whether a name is the path of a user's own data, by its ending, or of Hugging Face, by its beginning."""
    return name.startswith(hugging_face.PREFIX) or name.endswith((".npz", *tables.ENDINGS))


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    inputs: str = "standardised",
    columns: tables.Columns = tables.Columns(),
    likelihood: str = "categorical",
) -> Dataset:
    """Load a data set, a named one normalised as in the FedFisher paper (arXiv 2403.12329) where the paper states it.

    Sources are tried in the order local idx files (MNIST, Fashion-MNIST), prepared TensorFlow Datasets, image folders.
    (TFDS stores the examples of a set in an order of its own, so a seed then splits them differently.)
    Nothing is downloaded unless `download` is set, and one data set never stands in for another.

    Args:
        name: one of `DATASETS`, or the path of a .npz file (see `read_npz`) or of a .csv or .parquet table
            (see `read_table`), or "hf:" and a folder or name of Hugging Face's `datasets`.
        data_dir: the only folder to look in (for a set's own folder, or as that folder); without it $FEDFISHER_DATA,
            ~/.cache/fedfisher_jax, ~/data, ~/datasets, ./data, and where TensorFlow Datasets and Debian keep theirs.
        download: where the set is not on this machine, let TensorFlow Datasets download and build it (it needs
            tensorflow for that).
        inputs: what is done to the numbers of your own file: "standardised" or "as-is" (see `read_npz`). A named set
            has one normalisation, and "as-is" is refused.
        columns: which columns of a table are its labels, whose a row is, and no inputs.
        likelihood: what the targets of your own file are: categorical (classes), gaussian (numbers) or bernoulli
            (several labels of 0 and 1). Named sets have classes.

    Returns:
        The data set; images are float32 [N, H, W, C].

    Raises:
        ValueError: an unknown name, or damaged files.
        DataNotFoundError: the set is not on this machine; says what to install or where to put which files. It is both
            a FileNotFoundError and a ValueError.
    """
    if name.startswith(hugging_face.PREFIX):
        return hugging_face.read_hugging_face(name, inputs, columns, likelihood)
    if name.endswith(".npz"):
        return read_npz(expanded(name), inputs, likelihood)
    if name.endswith(tables.ENDINGS):
        return tables.read_table(expanded(name), inputs, columns, likelihood)
    if likelihood != "categorical":
        raise ValueError(f"likelihood: got {likelihood} for {name}, expected categorical: named sets have classes")
    if inputs != "standardised":
        raise ValueError(f"inputs: got {inputs!r} for {name}, expected standardised: a named set has one normalisation")
    if name == "digits":
        return read_digits()
    if name not in SPECS:
        raise ValueError(
            f"name: got the data set {name!r}, expected one of {', '.join(DATASETS)}, or a path that ends in "
            ".npz, .csv or .parquet, or hf: and a name of Hugging Face"
        )
    spec = SPECS[name]
    images = _read(name, spec, data_dir, download)
    return Dataset(
        name,
        normalise(images.train_x, spec.mean, spec.std),
        images.train_y,
        normalise(images.test_x, spec.mean, spec.std),
        images.test_y,
        num_classes=spec.num_classes,
        augment=spec.augment,
        scaling=Scaling(255 * np.asarray(spec.mean), 255 * np.asarray(spec.std)),
    )


def _read(name: str, spec: Spec, data_dir: str | os.PathLike[str] | None, download: bool) -> Images:
    if spec.idx and (folder := idx.find(spec, data_dir)):
        return idx.read(folder, spec)
    if spec.tfds and (folder := tfds.find(spec, data_dir)):
        return tfds.read(folder, spec)
    if spec.folders and (folder := folders.find(spec, data_dir)):
        return folders.read(folder, spec)
    if spec.tfds and download:
        return tfds.read(tfds.prepare(spec, data_dir), spec)
    raise DataNotFoundError(_advice(name, spec, data_dir))


def _advice(name: str, spec: Spec, data_dir: str | os.PathLike[str] | None) -> str:
    """One line: what to install or where to put which files."""
    ways = []
    if name == "fashion_mnist" and data_dir is None:
        ways.append("apt-get install dataset-fashion-mnist (Debian)")
    if spec.idx:
        ways.append(f"put {', '.join(idx.FILES)} (.gz or not) in {spec.idx[0]}/")
    if spec.folders:
        test = "val/ with its val_annotations.txt" if name == "tiny_imagenet" else "test/<class>/"
        ways.append(f"put its images in {spec.folders[0]}/train/<class>/ and {spec.folders[0]}/{test}")
    if spec.tfds:
        ways.append(f"put a prepared TFDS set in {spec.tfds}/<version>/")
        ways.append("pip install 'fedfisher-jax[tensorflow]' and load it with download=True (needs a network)")
    places = data_dir or f"data_dir, $FEDFISHER_DATA, {', '.join(COMMON_FOLDERS)}"
    return f"{name} is not on this machine: {'; or '.join(ways)}. Folders are looked for under {places}"
