"""Files that are written whole or not at all, and folders that know what made them."""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MADE_BY = "run.json"  # what made a folder, beside what it made


def write_atomically(path: str | os.PathLike[str], content: str | bytes, mode: int = 0o666) -> None:
    """Write a file under its name only when it is complete: a temporary file beside it, then `os.replace`.

    Its permissions are those of any new file, by the user's umask, and no more than `mode`; when this returns it
    survives a loss of power.
    """
    target = Path(path)
    temporary = target.parent / f".fedfisher.{secrets.token_hex(8)}"  # short, however long the name is
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
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


def write_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure whole, without the time at which it was made.

    Args:
        figure: matplotlib's.
        path: the file, whose suffix is the format; without one, there are PATH.png and PATH.pdf.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, since it costs more than the rest

    FigureCanvasAgg(figure)
    given = Path(path)
    for target in [given] if given.suffix else [given.with_suffix(".png"), given.with_suffix(".pdf")]:
        buffer, kind = io.BytesIO(), target.suffix.removeprefix(".")
        undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
        figure.savefig(buffer, format=kind, metadata=undated)
        write_atomically(target, buffer.getvalue())


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write JSON atomically; arrays become lists, numbers that are not finite become null."""
    write_atomically(path, json.dumps(plain(record), indent=1) + "\n")


def read_json_lines(path: str | os.PathLike[str], *names: str) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line; a last line that is not whole, as a kill leaves it, is left out.

    Args:
        path: the file; one that is not there has no lines.
        names: what every object must hold.

    Raises:
        ValueError: a line is none of these; it is named by its number.
    """
    if not os.path.exists(path):
        return []
    found = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested without end
            record = None
        if not isinstance(record, dict) or not record.keys() >= set(names):
            wanted = f"an object with {', '.join(names)}" if names else "an object"
            raise ValueError(f"{path}: line {number}: got {ascii(line[:40])[1:]}, expected {wanted}; mend or delete it")
        found.append(record)
    return found


def plain(value: Any) -> Any:
    """Write a record in dicts, lists, strings, numbers, booleans and None only."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def require_folder(path: str | os.PathLike[str], name: str = "out") -> Path:
    """Create a folder, which the argument `name` says, and prove that files can be written there.

    Raises:
        ValueError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name}: cannot write to {folder}: {error.strerror or error}") from error
    return folder


def require_file(
    path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = (), name: str = "out"
) -> None:
    """Prove, before any work, that a file can be written there, and that it is none of the inputs under any name.

    The argument `name` says which one it is.

    Raises:
        ValueError: its folder is not there or cannot be written to, its name is none, it is a folder, or an input.
    """
    target = Path(path)
    try:
        if "\0" in str(target) or not target.name or target.is_dir():
            raise ValueError(f"{name}: got {str(target)[:200]!r}, expected the name of a file")
        if not target.parent.is_dir():
            raise ValueError(f"{name}: cannot write {target}: no folder {target.parent}")
        with contextlib.suppress(FileNotFoundError):
            target.lstat()  # OSError where the name is too long
        with tempfile.TemporaryFile(dir=target.parent):
            pass
        for taken in map(Path, inputs):
            if target.resolve() == taken.resolve() or (target.exists() and taken.exists() and target.samefile(taken)):
                raise ValueError(f"{name}: got {target}, which would write over {taken}")
    except OSError as error:
        raise ValueError(f"{name}: cannot write {str(target)[:200]}: {error.strerror or error}") from error


def content(tree: Any) -> str:
    """The SHA-256 of paths, shapes, types and numbers of a tree's arrays; shapes alone where there are no numbers."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):  # by paths: a tree's text may hold addresses of functions
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        if isinstance(leaf, np.ndarray):
            digest.update(leaf.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def require_same_run(
    folder: Path,
    identity: Mapping[str, str],
    *,
    write: bool = True,
    remedy: str = "",
    defaults: Mapping[str, str] | None = None,
    may_change: Collection[str] = (),
) -> None:
    """Note what makes a folder's content, or refuse a folder of something else.

    A folder that was begun before this was noted is taken.

    Args:
        folder: where it is noted, in `MADE_BY`.
        identity: settings and fingerprints by name, as texts.
        write: whether to note it; False only looks.
        remedy: what a person may do instead, for the message.
        defaults: what settings were where the note does not name them, since they are younger than it.
        may_change: settings that the caller compares; the note is then written anew.

    Raises:
        ValueError: it is another run's; what differs is named.
    """
    said = folder / MADE_BY
    if said.exists():
        try:
            theirs = dict(defaults or {}) | dict(json.loads(said.read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"folder: {said} is damaged, expected an object of JSON; name another folder{remedy}"
            ) from error
        names = [name for name in dict.fromkeys([*identity, *theirs]) if theirs.get(name) != identity.get(name)]
        changed = [name for name in names if name in may_change]
        names = [name for name in names if name not in changed]
        differ = [f"{name} {theirs.get(name)!s:.60} there, {identity.get(name)!s:.60} here" for name in names]
        if differ:
            raise ValueError(f"folder: {folder} holds another run: {'; '.join(differ)}; name another folder{remedy}")
        if not changed:
            return
    if write:
        write_atomically(said, json.dumps(identity, indent=1))


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask for the same folder out of it; nothing is left behind, however this one ends.

    Raises:
        ValueError: another one is writing there.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"out: another run is writing to {folder}") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
