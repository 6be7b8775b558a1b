"""Text as clients: next-token prediction on Python's standard library, or on a folder of anybody's text files.

Both are first read as documents, `{client: (text, text, …)}`, and then cut by `text_clients` into windows that all
clients share as one array; a client is a row of indices, as everywhere else.
"""

import dataclasses
import os
import re
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._where import expanded

Documents = dict[str, tuple[str, ...]]

TOKENS = ("bytes", "characters")
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled", "data"}
# Said at the top of tables and grammars that a program wrote: there is nothing to predict in them but the program.
_GENERATED = re.compile(r"auto-?(matically )?generated|file is generated|configuration generated|codec .* generated")
_HEAD = 600  # characters in which a file says so


class Vocabulary(NamedTuple):
    """What a token is: a byte of UTF-8 (`characters` is None), or a character of a sorted string; 0 is any other."""

    characters: str | None

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return 256 if self.characters is None else len(self.characters) + 1

    def encode(self, text: str) -> np.ndarray:
        """Tokens int32 [length] of a text."""
        return self.numbers(units(text, self.characters is None))

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """Tokens int32 of `units`, of any shape."""
        if self.characters is None:
            return values.astype(np.int32)
        known = units(self.characters, False)
        if not known.size:
            return np.zeros(values.shape, np.int32)
        place = np.minimum(np.searchsorted(known, values), known.size - 1)
        return np.where(known[place] == values, place + 1, 0).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; an unknown token, or a byte that is no UTF-8, is the replacement character."""
        if self.characters is None:
            return bytes(int(token) for token in tokens).decode("utf-8", "replace")
        return "".join((UNKNOWN + self.characters)[int(token)] for token in tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class TextData:
    """Windows of text and whose they are.

    Attributes:
        windows: int32 [n, T + 1] tokens; no two windows share a token.
        vocabulary: what the tokens mean.
        clients: names, in alphabetical order.
        train: per client its rows of `windows` to train on, sorted int64.
        test: per client its rows to be scored on: the ends of its documents.
        pretrain: numbers of the clients that train the global model, sorted.
        personal: numbers of the other half, which personalise it.
        left_out: names of clients with too little text for a window to train on and one to be scored on.
    """

    windows: np.ndarray
    vocabulary: Vocabulary
    clients: tuple[str, ...]
    train: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]
    pretrain: np.ndarray
    personal: np.ndarray
    left_out: tuple[str, ...]

    @property
    def x(self) -> np.ndarray:
        """Int32 [n, T]: what is read."""
        return self.windows[:, :-1]

    @property
    def y(self) -> np.ndarray:
        """Int32 [n, T]: the next token at each position of `x`."""
        return self.windows[:, 1:]


def standard_library(folder: str | os.PathLike[str] | None = None, *, min_characters: int = 20_000) -> Documents:
    """The sources of this Python's standard library: real text that is on every machine, 10 MB of it.

    A top-level package or module with `min_characters` is a client; smaller ones are joined with their alphabetical
    neighbours until they have as many. Tests, installed packages and generated files are left out. Another version of
    Python has other sources, and so may another packaging of the same one: Debian ships idlelib and tkinter apart.

    Args:
        folder: the library's folder; default that of the running Python.
        min_characters: least number of characters of a client; what is left over at the end joins the last group.

    Raises:
        ValueError: the folder has no Python sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"] if folder is None else folder)
    tops: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        module = [part.removesuffix(".py") for part in parts]
        if _SKIPPED.isdisjoint(parts[:-1]) and all(part.isidentifier() for part in module):  # not config-3.11-…
            text = path.read_text(encoding="utf-8", errors="replace")
            if text.strip() and not _GENERATED.search(text[:_HEAD].lower()):
                tops.setdefault(module[0], []).append(text)
    if not tops:
        raise ValueError(f"folder: expected Python sources, found none in {root}")
    sizes = {name: sum(map(len, texts)) for name, texts in tops.items()}
    groups: list[list[str]] = [[]]
    for name in sorted(name for name in tops if sizes[name] < min_characters):
        groups[-1].append(name)
        if sum(sizes[member] for member in groups[-1]) >= min_characters:
            groups.append([])
    *groups, rest = groups
    groups = [*groups[:-1], groups[-1] + rest] if groups else [rest] if rest else []
    joined = {f"{group[0]}..{group[-1]}": group for group in groups}
    alone = {name: [name] for name in tops if sizes[name] >= min_characters}
    members = sorted((alone | joined).items())
    return {name: tuple(text for member in group for text in tops[member]) for name, group in members}


def text_folder(folder: str | os.PathLike[str], pattern: str = "*") -> Documents:
    """A folder of UTF-8 text files: every file in it is a client, and every sub-folder with all files below it.

    Args:
        folder: where; hidden files and folders (a leading dot) are not read.
        pattern: which file names are read, such as "*.txt".

    Raises:
        ValueError: no such folder, no file in it, or a file that is no UTF-8 text; the file is named.
    """
    root = expanded(folder)
    if not root.is_dir():
        raise ValueError(f"folder: expected a folder of text files, got {root}")
    result: Documents = {}
    for path in sorted(root.rglob(pattern)):
        parts = path.relative_to(root).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"folder: {path} is no UTF-8 text, byte {error.start} cannot be read") from error
            result[parts[0]] = (*result.get(parts[0], ()), text)
    if not result:
        raise ValueError(f"folder: expected files that match {pattern!r}, found none in {root}")
    return result


def text_clients(
    documents: Mapping[str, Sequence[str]],
    *,
    tokens: str = "bytes",
    length: int = 64,
    test_share: float = 0.2,
    min_count: int = 1,
    seed: int = 0,
) -> TextData:
    """Cut every client's text into windows of `length` + 1 tokens, and the clients into two halves.

    A client's documents are read one after the other, a line end between them; the last incomplete window is dropped.
    The last of the windows that begin in a document are for the test, as many as keep the client's share so far
    nearest to `test_share`.

    Args:
        documents: client → texts.
        tokens: "bytes" of UTF-8, or "characters".
        length: T, positions of an example.
        test_share: share of each client's windows that is kept for testing.
        min_count: a character is known if the windows that the first half of the clients trains on have it as often.
        seed: non-negative seed that draws the halves.

    Raises:
        ValueError: an argument out of range, or fewer than two clients with two windows.
    """
    if tokens not in TOKENS:
        raise ValueError(f"tokens: got {tokens!r}, expected one of {', '.join(TOKENS)}")
    for name, value in (("length", length), ("min_count", min_count)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: got {test_share}, expected a number between 0 and 1")
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected a non-negative integer")
    for name, texts in documents.items():
        if isinstance(texts, str):
            raise TypeError(f"documents[{name!r}]: got a text, expected a sequence of texts, such as [text]")
    cut = {name: _windows(documents[name], tokens == "bytes", length + 1, test_share) for name in sorted(documents)}
    kept = {name: found for name, found in cut.items() if len(found[0]) > 1}
    if len(kept) < 2:
        raise ValueError(
            f"documents: expected at least two clients with {2 * (length + 1)} {tokens} each, "
            f"got {len(kept)} among {len(documents)} clients"
        )
    ends = np.cumsum([len(windows) for windows, _ in kept.values()])
    rows = np.split(np.arange(ends[-1]), ends[:-1])
    tested = [test for _, test in kept.values()]
    train = tuple(row[~test] for row, test in zip(rows, tested, strict=True))
    test = tuple(row[test] for row, test in zip(rows, tested, strict=True))
    order = np.random.default_rng(seed).permutation(len(kept))
    pretrain, personal = (np.sort(half) for half in np.array_split(order, 2))
    windows = np.concatenate([windows for windows, _ in kept.values()])
    vocabulary = Vocabulary(None)
    if tokens == "characters":
        values, counts = np.unique(windows[np.concatenate([train[n] for n in pretrain])], return_counts=True)
        vocabulary = Vocabulary("".join(map(chr, values[counts >= min_count])))
    left_out = tuple(name for name in cut if name not in kept)
    return TextData(vocabulary.numbers(windows), vocabulary, tuple(kept), train, test, pretrain, personal, left_out)


def units(text: str, as_bytes: bool) -> np.ndarray:
    """A text as numbers: bytes of UTF-8, or code points; [length]."""
    if as_bytes:
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _windows(documents: Sequence[str], as_bytes: bool, size: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows [n, size] of one client's units, and which of them are for the test, bool [n]."""
    texts = [units(text if text.endswith("\n") else text + "\n", as_bytes) for text in documents]
    stream = np.concatenate(texts) if texts else np.zeros(0, np.uint8)
    count = len(stream) // size
    ends = np.cumsum([len(text) for text in texts])
    document = np.searchsorted(ends, np.arange(count) * size, side="right")
    counts = np.bincount(document, minlength=len(texts))
    last = np.cumsum(counts)
    wanted = np.floor(share * last + 0.5).astype(int)
    if count > 1:  # both parts have something
        wanted = np.clip(wanted, last - (count - 1), count - 1)
    test = np.arange(count) >= (last - np.diff(wanted, prepend=0))[document]
    return stream[: count * size].reshape(count, size), test
