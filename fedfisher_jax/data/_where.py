"""Where data may lie on this machine, and the error that says that they do not."""

import os
from pathlib import Path

COMMON_FOLDERS = ("~/.cache/fedfisher_jax", "~/data", "~/datasets", "data")


class DataNotFoundError(FileNotFoundError, ValueError):
    """A known data set is not on this machine; one line says what to install or where to put which files."""


def data_folders(data_dir: str | os.PathLike[str] | None, *more: str) -> list[Path]:
    """Folders to look in: only `data_dir` where it is given, else $FEDFISHER_DATA, the common ones, and `more`."""
    if data_dir is not None:
        return [Path(data_dir).expanduser()]
    named = os.environ.get("FEDFISHER_DATA")
    return [Path(folder).expanduser() for folder in ([named] if named else []) + [*COMMON_FOLDERS, *more]]


def candidates(data_dir: str | os.PathLike[str] | None, names: tuple[str, ...], *more: str) -> list[Path]:
    """Every folder that may hold a set whose own folder has one of `names`.

    A `data_dir` given by the caller may be that folder itself. Other folders are searched by name only, because the
    files of different sets have the same names (MNIST and Fashion-MNIST do).
    """
    found = [folder / name for folder in data_folders(data_dir, *more) for name in names]
    return found if data_dir is None else [*found, Path(data_dir).expanduser()]
