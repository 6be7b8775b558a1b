"""A sweep's settings from a TOML file, whose keys are the names of the flags."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

FLAG = "--file"


def with_file(arguments: list[str], settings: type) -> list[str]:
    """Put what a file says before the flags of a command line, so that these are taken where both say something.

    Args:
        arguments: the words of a command, its name first.
        settings: the dataclass of its flags.

    Raises:
        ValueError: two files, one that cannot be read, a key that is no flag, or a value that no flag has.
    """
    places = [n for n, word in enumerate(arguments) if word.partition("=")[0] == FLAG]
    if not places:
        return arguments
    if len(places) > 1:
        raise ValueError(f"file: got {len(places)} of them, expected one .toml file after --file")
    (place,) = places
    _, equals, path = arguments[place].partition("=")
    rest = arguments[place + (1 if equals else 2) :]
    if not equals and place + 1 < len(arguments):
        path = arguments[place + 1]
    if not path:
        raise ValueError("file: got none, expected a .toml file after --file")
    return [arguments[0], *_flags(Path(path), settings), *arguments[1:place], *rest]


def _flags(path: Path, settings: type) -> list[str]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"file: {path} cannot be read as TOML: {error}") from error
    known = {field.name for field in dataclasses.fields(settings)} - {"file"}
    words: list[str] = []
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ValueError(f"file: {path}: got the key {key[:40]!r}, expected flags: {', '.join(sorted(known))}")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *(_word(path, key, one) for one in (value if isinstance(value, list) else [value]))]
    return words


def _word(path: Path, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"file: {path}: {key}: got a {type(value).__name__}, expected texts or numbers")
    return str(value)
