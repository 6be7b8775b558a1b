"""Where data may lie on this machine, and the error that says that they do not."""

import os
from pathlib import Path

COMMON_FOLDERS = ("~/.cache/fedfisher_jax", "~/data", "~/datasets", "data")


class DataNotFoundError(FileNotFoundError, ValueError):
    """A known data set is not on this machine; one line says what to install or where to put which files."""


def data_folders(data_dir: str | os.PathLike[str] | None, *more: str) -> list[Path]:
    """Folders to look in: only `data_dir` where it is given, else $FEDFISHER_DATA, the common ones, and `more`."""
    if data_dir is not None:
        return [expanded(data_dir)]
    named = os.environ.get("FEDFISHER_DATA")
    common = [folder for folder in (*COMMON_FOLDERS, *more) if not folder.startswith("~") or _has_home()]
    return [expanded(folder) for folder in ([named] if named else []) + common]


def candidates(data_dir: str | os.PathLike[str] | None, names: tuple[str, ...], *more: str) -> list[Path]:
    """Every folder that may hold a set whose own folder has one of `names`.

    A `data_dir` given by the caller may be that folder itself. Other folders are searched by name only, because the
    files of different sets have the same names (MNIST and Fashion-MNIST do).
    """
    found = [folder / name for folder in data_folders(data_dir, *more) for name in names]
    return found if data_dir is None else [*found, expanded(data_dir)]


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user replaced by home folders.

    Raises:
        ValueError: there is no such home folder, as in some containers.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no home folder: {error}") from error


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True
