"""Kinds of text as clients: code, markup, manuals in several languages and tables, from files that Python comes with.

They are the standard library's and those of packages that this one installs, so no download is needed; other versions
have other texts. Files are read in the order of their names, of each at most a piece, until a client has enough.
"""

import fnmatch
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

Documents = dict[str, tuple[str, ...]]

PIECE, LEAST, MOST = 20_000, 10_000, 200_000  # characters of a file, and of a client
LOCALE = "humanize/locale"
LIBRARY = {
    "python, library": "asyncio/*.py",
    "python, tests": "test/test_[a-d]*.py",
    "python, drawings": "turtledemo/*.py",
    "python, code tables": "encodings/cp*.py",
    "python, manual": "pydoc_data/topics.py",
    "decimal tests": "*.decTest",
    "news of a program": "idlelib/*.txt",
}
PACKAGES = {
    "python, numpy": "numpy/lib/*.py",
    "python, jax": "jax/_src/*.py",
    "python, tests of scipy": "scipy/*/tests/*.py",
    "python, generated": "*_pb2.py",
    "stubs": "numpy/*.pyi",
    "cython": "sklearn/*.pyx",
    "c": "*.c",
    "c, headers": "numpy/*.h",
    "c++": "*.hpp",
    "fortran": "*.f90",
    "protocols": "*.proto",
    "scripts of a browser": "*.js",
    "styles": "*.css",
    "html": "*.html",
    "templates": "*.jinja*",
    "drawings, svg": "matplotlib/*.svg",
    "fonts": "matplotlib/*.afm",
    "yaml": "*.yaml",
    "json": "*.json",
    "markdown": "*.md",
    "descriptions of packages": "*.dist-info/METADATA",
    "licences": "*.dist-info/*LICENSE*",
    "lists of files": "*.dist-info/RECORD",
    "data sets, described": "*.rst",
    "citations": "*.bib",
    "checksums": "tensorflow_datasets/*checksums.tsv",
    "labels": "tensorflow_datasets/*labels*.txt",
    "tables of numbers": "sklearn/*.csv",
    "tables of prices": "matplotlib/*.csv",
    "random numbers, tested": "numpy/*.csv",
    "attributes": "*.arff",
    "time zones": "tzdata/zoneinfo/*.tab",
    "certificates": "certifi/*.pem",
    "messages, German and Dutch": f"{LOCALE}/[dn]*/*.po",
    "messages, Romance": f"{LOCALE}/[cfip][art]*/*.po",
    "messages, Cyrillic": f"{LOCALE}/[ru][uk]*/*.po",
    "messages, East Asia": f"{LOCALE}/[jkz][aoh]*/*.po",
}


def kinds(roots: Mapping[Path, Mapping[str, str]] | None = None, least: int = LEAST) -> Documents:
    """Read what there is of each kind, as `fedfisher_jax.data.text_folder` gives it: {kind: (text, …)}.

    Args:
        roots: folder → kind → which files, a pattern of their path from there in which "*" goes through folders;
            default the standard library and the installed packages.
        least: characters of a kind, below which it is left out.

    Raises:
        ValueError: fewer than two kinds have enough.
    """
    if roots is None:
        paths = sysconfig.get_paths()
        roots = {Path(paths["stdlib"]): LIBRARY, Path(paths["purelib"]): PACKAGES}
    found: dict[str, list[str]] = {}
    for root, patterns in roots.items():
        for name, text in _texts(root, patterns):
            mine = found.setdefault(name, [])
            if sum(map(len, mine)) < MOST:
                mine.append(text[:PIECE])
    result = {name: tuple(texts) for name, texts in found.items() if sum(map(len, texts)) >= least}
    if len(result) < 2:
        raise ValueError(f"kinds: got {len(result)} with {least} characters, expected at least two")
    return result


def _texts(root: Path, patterns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Find files in order, and give each with the first kind that it is of; what is no UTF-8 text is left out."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    for name in names:
        nested = "site-packages" in name and root.name != "site-packages"
        kind = None if nested else next((k for k, one in patterns.items() if fnmatch.fnmatchcase(name, one)), None)
        if kind is None or not (root / name).is_file():
            continue
        try:
            yield kind, (root / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
