"""Files that are written whole or not at all."""

import json
import math
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file under its name only when it is complete: a temporary file beside it, then `os.replace`.

    Its permissions are those of any new file, by the user's umask; when this returns it survives a loss of power.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # where folders can be opened
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write JSON atomically; arrays become lists, numbers that are not finite become null."""
    write_atomically(path, json.dumps(plain(record), indent=1) + "\n")


def plain(value: Any) -> Any:
    """The same record made of dicts, lists, strings, numbers, booleans and None only."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def require_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and prove that files can be written there.

    Raises:
        ValueError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder}: {error.strerror or error}") from error
    return folder
