"""`fedfisher inspect`: what is in a file."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import payload
from ..merge._rule import require_like
from ..payload import Limits
from ..payload import _container as container
from ..payload import _file as file
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..payload._header import owes_noise
from ..silos import _model_file as model_file
from ._fold_files import distance

MOST_SHOWN = 2000  # characters of what a file says


@dataclasses.dataclass(frozen=True)
class InspectSettings:
    """Show what a payload or model file holds, checked as before a merge; of a region only the header is checked."""

    file: Annotated[Path, tyro.conf.Positional]
    """The file to show."""
    start: Path | None = None
    """A starting model to compare it with: payloads must be made from it, models be of its network."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""


def inspect(settings: InspectSettings) -> None:
    """Print the header and a line per entry."""
    console = Console()
    data, named = container.read_bytes(settings.file, Limits()), str(settings.file)
    header, arrays = container.unpack(data, Limits(), named)
    if "model" in header:
        said = {key: value for key, value in header.items() if key != "format"} | _looked_at(settings, header["model"])
        rows = [(name, array, "raw", 8 * array.nbytes) for name, array in sorted(arrays.items())]
        console.print(_facts(settings.file, said), _entries(rows))
        return
    start = None if settings.start is None else model_file.read(settings.start, settings.model)
    like, made_from = (None, None) if start is None else (start.params, start.fingerprint)
    if region.is_region(header):
        part, _, _ = files_of.opened(data, named, files_of.Terms(like, start=made_from))
        rows = [(name, array, "as stored", 8 * array.nbytes) for name, array in sorted(arrays.items())]
        console.print(_facts(settings.file, _said(part)), _entries(rows))
        return
    sent, found = payload.loads(data, like, file=named, start=made_from)
    size = sum(leaf.size for leaf in found.leaves)
    promised = found.about.privacy or {"": None}
    said = {
        **{name: value for name, value in dataclasses.asdict(found.about).items() if name != "privacy"},
        **{f"privacy {name}".rstrip(): value for name, value in promised.items()},
        **({"for": "fedfisher secure alone: its noise is divided among silos"} if owes_noise(promised) else {}),
        "structure": found.structure,
        "examples": found.examples,
        "library": found.library,
        "parameters": size,
        "bits": f"{found.bits} ({found.bits / 32 / size:.3f} × FedAvg's)",
    }
    decoded = file.entries(sent)
    rows = [(name, decoded[name], str(found.plan.get(name, "raw")), 8 * arrays[name].nbytes) for name in decoded]
    console.print(_facts(settings.file, said), _entries(rows))


def _looked_at(settings: InspectSettings, network: Any) -> dict[str, str]:
    """What a look at a model file tells beside its header.

    Raises:
        PayloadError: the file is refused, as by everything that reads models.
        ValueError: the start is of another network.
    """
    if settings.model is None and ":" in str(network):
        if settings.start is not None:
            raise ValueError("start: needs --model to compare networks of your own")
        return {"checked": "the header alone: --model imports its network"}
    found = model_file.read(settings.file, settings.model)
    if settings.start is None:
        return {"checked": "all"}
    start = model_file.read(settings.start, settings.model)
    require_like(f"{settings.file}: ", found.params, start.params, "the start's")
    return {"checked": "all", "from the start": f"{distance(found.params, start.params):.4g}"}


def _said(part: files_of.Part) -> dict[str, Any]:
    """What a region says of its silos."""
    headers = [silo.header for silo in part.silos]
    about = headers[0].about
    return {
        "holds": part.holds,
        **{name: getattr(about, name) for name in ("rule", "likelihood", "start", "kind")},
        "structure": headers[0].structure,
        "silos": ", ".join(f"{header.about.silo} {header.about.name}".rstrip() for header in headers),
        "examples": sum(header.examples for header in headers),
        "private": ", ".join(str(header.about.silo) for header in headers if header.about.privacy) or None,
    }


def _facts(path: Path, said: dict[str, Any]) -> Table:
    table = Table(title=literal(path), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in said.items():
        table.add_row(literal(key), literal("" if value is None else value))
    return table


def literal(value: Any) -> Text:
    """What a file says as a terminal may show it: no markup, nothing that moves the cursor."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return Text(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…")


def _entries(rows: list[tuple[str, np.ndarray, str, int]]) -> Table:
    table = Table(header_style="bold")
    for column in ("entry", "shape", "type", "smallest", "largest", "bits", "encoded"):
        table.add_column(column, justify="left" if column in ("entry", "encoded") else "right", overflow="fold")
    for name, array, how, bits in rows:
        wide = np.asarray(array, np.float64) if array.size else np.zeros(1)
        numbers = str(array.shape), array.dtype.name, f"{wide.min():.3g}", f"{wide.max():.3g}", str(bits)
        table.add_row(literal(name), *numbers, literal(how))
    return table
