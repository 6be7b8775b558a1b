"""`merge --base FOLDER` and `merge --model torch:module:function`: one folder, or state dict, of many checkpoints."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _files, payload, report
from .._likelihood import categorical
from ..curvature._cotangents import KINDS
from ..merge import catalogue
from ..merge._options import plain_name
from ..payload import Limits
from ..payload._files_of_a_merge import Terms, parts_of, payloads_of
from ._measure_settings import TORCH


class Joined(NamedTuple):
    """What checkpoints make together: parameters by name, and the facts of a report."""

    params: dict[str, Any]
    rule: str
    kind: str | None
    contributors: list[dict[str, Any]]
    diagnostics: Any


def merge_folder(settings: Any, files: list[Path], limits: Limits) -> None:
    """Merge payloads of checkpoints into a folder that `from_pretrained` loads.

    Raises:
        ValueError: a file is refused, or base, rule or folder do not work, named.
    """
    from .. import torch

    if settings.out.exists() and (not settings.out.is_dir() or any(settings.out.iterdir())):
        raise ValueError(f"out: got {settings.out}, expected a new or empty folder")
    start = torch.from_module(torch.read(settings.base))
    fingerprint = payload.fingerprint(start.params)
    whole = start if settings.adapter is None else torch.from_module(torch.read(settings.adapter, settings.base))
    merged = _joined(whole, fingerprint, settings.rule, files, limits)
    text = torch.card(merged.rule, merged.kind, merged.contributors, merged.diagnostics)
    torch.write(settings.out, settings.base, merged.params, text, adapter=settings.adapter)
    print(f"{settings.out}: {len(merged.contributors)} payloads merged by {merged.rule}; README.md says how")


def merge_state(settings: Any, files: list[Path], limits: Limits) -> dict[str, Any]:
    """Merge payloads of a user's module into a state dict that `load_state_dict` takes; a report stands beside it.

    Raises:
        ValueError: a file is refused, or function, base or rule do not work, named.
    """
    from .. import torch

    module = torch.make(settings.model.removeprefix(TORCH))
    if settings.base is not None:
        torch.load(module, settings.base)
    whole = torch.from_module(module)
    merged = _joined(whole, payload.fingerprint(whole.params), settings.rule, files, limits)
    data = torch.write_state(settings.out, module, merged.params)
    record = _files.plain(
        {
            "rule": merged.rule,
            "kind": merged.kind,
            "contributors": merged.contributors,
            "diagnostics": merged.diagnostics,
            "sha256": hashlib.sha256(data).hexdigest(),
            "versions": report.versions(),
        }
    )
    described = settings.out.with_suffix(".json")
    _files.write_json(described, record)
    print(f"{settings.out}: {len(merged.contributors)} payloads merged by {merged.rule}; {described} says how")
    return record


def _joined(whole: Any, start: str, rule_name: str | None, files: list[Path], limits: Limits) -> Joined:
    """Merge payloads of parts of a model, or of all of it, with the whole's other parameters as they are.

    Args:
        whole: the bridged model.
        start: fingerprint of what all fine-tuned.
        rule_name: the merge rule; None for the files' own.
        files: the payloads.
        limits: what files may take.
    """
    from .. import torch

    parts = parts_of(files, Terms(limits=limits))
    described, about = parts[0].silos[0].header.leaves, parts[0].silos[0].header.about
    if unknown := [leaf.path for leaf in described if leaf.path not in whole.params]:
        raise ValueError(f"{parts[0].path}: {unknown[0][:80]!r} is no parameter of the base: is it an adapter's?")
    mine = {leaf.path: whole.params[leaf.path] for leaf in described}
    terms = Terms(mine, limits=limits, start=start)
    headers: list[Any] = []
    name = rule_name or about.rule
    plain = plain_name(name) if rule_name is not None else name  # a file's own words choose no options
    if plain not in torch.RULES:
        raise ValueError(f"rule: got {name[:80]!r}, expected one of {', '.join(torch.RULES)}")
    offers = {"kind": about.kind} if about.kind in KINDS else {}
    rule = catalogue.named_rule(name, whole.apply, categorical(), offers=offers)

    def sent() -> Iterator[Any]:  # one client's statistics at a time
        for part in parts:
            for one, header in payloads_of(part, terms):
                headers.append(header)
                yield one

    merged = torch.merge(rule, sent(), mine)
    for path, value in merged.params.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise ValueError(f"rule: the merged model is not finite at {path}")
    total = sum(header.examples for header in headers)
    contributors = [
        {"silo": one.about.silo, "name": one.about.name, "examples": one.examples, "weight": one.examples / total}
        for one in headers
    ]
    return Joined({**whole.params, **merged.params}, name, about.kind, contributors, merged.diagnostics)
