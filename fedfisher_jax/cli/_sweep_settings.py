"""The settings of `fedfisher sweep`: those of `fedfisher run`, with several values each."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from ..report._further_scores import ALONE
from ._cluster import KINDS, SLURM
from ._names import file_name
from ._ranges import COUNT
from ._settings import RunSettings

NOT_VARIED = (  # what is the same in all cells
    *(
        "rules",
        "seed",
        "data_seed",
        "out",
        "strategy",
        "data_dir",
        "save",
        "track",
        "overwrite",
        "likelihood",
        "label",
        "silo_column",
        "ignore",
    ),
    *("pooled", "barrier", "bias", "lengths"),
)
NOT_TAKEN = ("distributed",)
ON = (
    f"{KINDS}; Slurm's options are {', '.join(SLURM).replace('_', '-')} (time in minutes, memory in GB for each cell). "
    "OUT is on a file system that all machines share. By default cells run in this process, one after the other."
)
TOGETHER = (
    "Settings whose values go together, the first of one with the first of the others, and not in every combination: "
    "--epochs 1 4 --rounds 20 5 --together epochs rounds."
)


def several(cls: type) -> type:
    """Make the dataclass of a sweep from that of a run: each setting takes several values, none being the default.

    Its fields are those of `cls`, with tuples of values in the place of one, and `seeds`, `against`, `file`, `on`,
    `together`, `last` and `status`.
    """
    helps, hints = _helps(cls), get_type_hints(cls)
    fields: list[Any] = []
    for field in dataclasses.fields(cls):
        if field.name in NOT_TAKEN:
            continue
        said, kind, default, hint = helps.get(field.name, ""), hints[field.name], field.default, None
        if field.name == "out":
            said, default = "Folder of the tables, the figure and the cells.", Path("runs/sweep")
        elif field.name == "save":
            default = False
        elif field.name == "seed":
            said = "The first seed, or all of them; a seed draws the split too, unless --data-seed holds that."
            kind, default = tuple[int, ...], (0,)
        elif field.name not in NOT_VARIED:
            hint = f"(default: {default})"
            kind, default = tuple[_without_none(kind), ...], ()
        word = tyro.conf.arg(help=said, help_behavior_hint=hint)
        fields.append((field.name, Annotated[kind, word], dataclasses.field(default=default)))
    seeds = Annotated[int | None, tyro.conf.arg(help="How many seeds, from --seed on (default: 3).")]
    together = Annotated[tuple[str, ...], tyro.conf.arg(help=TOGETHER)]
    last = Annotated[int, tyro.conf.arg(help="Rounds over whose scores tables take the mean, the last ones.")]
    against = Annotated[str | None, tyro.conf.arg(help="Rule that differences are taken against; default the first.")]
    file = Annotated[Path | None, tyro.conf.arg(help="A TOML file of these settings, its keys the flags' names.")]
    on = Annotated[str | None, tyro.conf.arg(help=f"Where cells run, each as a process: {ON}")]
    status = Annotated[bool, tyro.conf.arg(help="Run nothing: say how far the cells are, and why some failed.")]
    more = {"seeds": seeds, "against": against, "file": file, "on": on}
    fields += [(name, kind, dataclasses.field(default=None)) for name, kind in more.items()]
    fields.append(("together", together, dataclasses.field(default=())))
    fields.append(("last", last, dataclasses.field(default=1)))
    fields.append(("status", status, dataclasses.field(default=False)))
    doc = "Run every combination of settings, which take several values each, on every seed; make tables and a figure."
    return dataclasses.make_dataclass("SweepSettings", fields, frozen=True, namespace={"__doc__": doc})


def cells_of(settings: Any) -> list[tuple[str, RunSettings]]:
    """Every cell, with the name of its column: the settings of which several values were given.

    Values are said in short, a data set without its folder, say, unless two columns would have one name.

    Folders are named by all settings that were given, so that a sweep of more values finds what is there.

    Raises:
        ValueError: a value twice; settings that cannot go together.
    """
    given = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(RunSettings)
        if field.name not in (*NOT_VARIED, *NOT_TAKEN) and getattr(settings, field.name)
    }
    same = {name: getattr(settings, name) for name in NOT_VARIED if name != "out"}
    products = itertools.product(*_axes(given, settings.together))
    several = [{name: value for part in parts for name, value in part.items()} for parts in products]

    def columns(said: Callable[[str, Any], str]) -> list[str]:
        return [", ".join(said(n, value) for n, value in chosen.items() if len(given[n]) > 1) for chosen in several]

    short, found = columns(_said), []
    named = short if len(set(short)) == len(short) else columns(lambda name, value: f"{name} {value}")
    for column, chosen in zip(named, several, strict=True):
        for seed in seeds_of(settings):
            folder = settings.out / "cells" / _folder_name(chosen, seed)
            cell = RunSettings(**{**same, **chosen, "seed": seed, "out": folder})
            found.append((column or ALONE[settings.likelihood == "gaussian"], cell))
    return found


def _folder_name(chosen: dict[str, Any], seed: int) -> str:
    """The settings and the seed."""
    named = ",".join(f"{name}={value}" for name, value in chosen.items())
    return ",".join([file_name(named)] * bool(named) + [f"seed={seed}"])


def _axes(given: dict[str, tuple], together: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """The settings that vary by themselves, those that go together as one: all values of each, by their names."""
    joined = [name.replace("-", "_") for name in together]
    for name in joined:
        if not given.get(name) or len(given[name]) != len(given[joined[0]]) or len(joined) < 2:
            counts = ", ".join(f"{name} {len(given.get(name, ()))}" for name in joined)
            raise ValueError(
                f"together: got numbers of values {counts}, expected two names or more, with as many values each"
            )
    groups = [joined] * bool(joined) + [[name] for name in given if name not in joined]
    groups.sort(key=lambda names: list(given).index(names[0]))
    axes = []
    for names in groups:
        axis = list(zip(*(given[name] for name in names), strict=True))
        if len(set(axis)) != len(axis):
            values = " ".join(", ".join(map(str, one)) for one in axis)
            raise ValueError(f"{', '.join(names)}: got {values}, expected values that differ")
        axes.append([dict(zip(names, one, strict=True)) for one in axis])
    return axes


def seeds_of(settings: Any) -> list[int]:
    """The seeds: those that are listed, or so many from the first on.

    Raises:
        ValueError: both, none, one twice, or a number of them that is out of range.
    """
    if settings.seeds is not None and not COUNT.holds(settings.seeds):
        raise ValueError(f"seeds: got {settings.seeds}, expected {COUNT.words}")
    listed = list(settings.seed)
    if not listed or len(set(listed)) != len(listed):
        raise ValueError(f"seed: got {' '.join(map(str, listed)) or 'none'}, expected at least one, all different")
    if len(listed) == 1:
        return list(range(listed[0], listed[0] + (3 if settings.seeds is None else settings.seeds)))
    if settings.seeds not in (None, len(listed)):
        raise ValueError(f"seeds: got {settings.seeds}, and {len(listed)} numbers after --seed; leave one of them out")
    return listed


def _said(name: str, value: Any) -> str:
    if name == "dataset":
        return Path(value).stem
    number = f"{value:g}" if isinstance(value, float) else str(value)
    words = {"alpha": "α", "model": "", "local": "", "rounds": "rounds:"}.get(name, name.replace("_", " "))
    return f"{words} {number}".strip()


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(one for one in get_args(kind) if one is not type(None))
    return kind


def _helps(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, from its source."""
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    texts: dict[str, str] = {}
    for field, said in itertools.pairwise(getattr(found, "body", [])):
        if not (isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)):
            continue
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            texts[field.target.id] = " ".join(str(said.value.value).split())
    return texts


SweepSettings: Any = several(RunSettings)
