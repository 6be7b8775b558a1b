"""`fedfisher list`: what flags may name."""

import dataclasses

from rich.console import Console
from rich.table import Table

from .. import data, models
from ..merge import catalogue
from ._local_training import LOCAL


@dataclasses.dataclass(frozen=True)
class ListSettings:
    """List the names of data sets, models, splits, variants of local training, and rules with what each does."""


def list_names(settings: ListSettings) -> None:
    """Print the names, and a table of rules."""
    del settings
    names = {"data sets": data.DATASETS, "models": models.NAMES, "splits": data.PARTITIONS, "local training": LOCAL}
    console = Console(highlight=False)
    for kind, known in names.items():
        console.print(f"{kind}: {', '.join(known)}")
    console.print(
        "rules (names joined by + are one rule, with an exchange after the other; options stand after commas, as in "
        "fedfisher-kfac,damping=1; kind and samples have flags, too):"
    )
    table = Table(header_style="bold")
    for name in ("rule", "rounds", "files"):
        table.add_column(name, no_wrap=True)
    table.add_column("what it does")
    for name, entry in catalogue.RULES.items():
        table.add_row(name, *("yes" if works else "no" for works in (entry.rounds, entry.files)), _says(name, entry))
    console.print(table)


def _says(name: str, entry: catalogue.Entry) -> str:
    options = [option for option in catalogue.options_of(name) if option not in ("kind", "samples")]
    return entry.says + (f"\noptions: {', '.join(options)}" if options else "")
