"""The server's step of `fedfisher secure`: it unmasks the sum of those who stayed, and merges that."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _files, report
from ..curvature import capture
from ..merge._one_by_one import merge_sums
from ..payload import Limits, PayloadError, leaves
from ..payload import _files_of_a_merge as files_of
from ..privacy import _secure_letters as letters
from ..privacy._one_story import fingerprint, story
from ..privacy._secure_letters import Letter, by_silo
from ..privacy._secure_steps import require_alike
from ..privacy._secure_total import Terms, total_of
from ..silos import _model_file as model_file
from ._gather import paths_of, rule_for
from ._secure import SumSettings


def merge(settings: SumSettings) -> dict[str, Any]:
    """Write the global model, then the report, which it returns."""
    paths, described = paths_of(settings.files), settings.out.with_suffix(".json")
    for path in (settings.out, described):
        _files.require_file(path, [settings.start, *paths])
    sorted_ = _sorted([letters.read(path) for path in paths])
    announced = {n: one.announced for n, one in sorted_[letters.KEYS].items() if one.announced is not None}
    keys = {n: one.keys for n, one in announced.items()}
    name, agreed = (first := next(iter(sorted_[letters.KEYS].values()))).name, first.settings
    masked = {n: one.words for n, one in sorted_[letters.MASKED].items() if one.words is not None}
    revealed = {n: one.revealed for n, one in sorted_[letters.REVEALED].items() if one.revealed is not None}
    _require_one_story(sorted_, story(agreed, keys))
    asked = f"fedfisher secure reveal --stayed {' '.join(map(str, masked))}"
    if not revealed:
        raise ValueError(f"files: nobody has revealed yet; ask silos {', '.join(map(str, masked))} for: {asked}")
    for one in sorted_[letters.REVEALED].values():
        if one.stayed != set(masked):
            raise PayloadError(f"{one.path}: is for the sum of silos {sorted(one.stayed)}, here are {sorted(masked)}")

    start = model_file.read(settings.start, settings.model)
    example = jax.ShapeDtypeStruct((1, *start.kind.input_shape), jnp.float32)
    captured = capture(start.network.apply, start.params, example)
    require_alike(sorted_[letters.KEYS])
    terms = {"layers": captured.layers, "limits": Limits(), "file": first.path, "start": start.fingerprint}
    header = files_of.checked(next(iter(announced.values())).template, 0, start.params, **terms)
    if ":" in header.about.rule:
        raise PayloadError(f"{first.path}: rule: got {header.about.rule[:80]!r}, expected a name of fedfisher list")
    rule = rule_for(start, captured, header.about.rule, header.about.kind)
    summed = total_of(Terms(rule, header, start.params, start.sent), agreed, announced, masked, revealed)
    merged = merge_sums(rule, summed.sums, summed.shape, None, start.sent)
    for leaf, value in zip(leaves(merged.params), jax.tree.leaves(merged.params), strict=True):
        if not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"rule: the merged model is not finite at {leaf.path}")
    made_by = f"secure sum of {len(masked)} payloads by {rule.name}"
    data = model_file.write(settings.out, start.kind, merged.params, made_by, start.scaling, start.classes)
    record = {
        "rule": rule.name,
        "kind": header.about.kind,
        "start": header.about.start,
        "round": name,
        "contributors": sorted(masked),
        "dropped_out": sorted(set(range(1, agreed.clients + 1)) - set(masked)),
        "revealed": sorted(revealed),
        "threshold": agreed.threshold,
        "fingerprint": fingerprint(agreed, keys),
        "examples": None if summed.examples is None else int(summed.examples),
        "largest_step": summed.largest_step,
        "every_example": summed.every_example,
        "privacy": {str(n): one.template["privacy"] for n, one in announced.items()},
        "diagnostics": merged.diagnostics,
        "versions": report.versions(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    _files.write_json(described, record)
    gone = f", without {record['dropped_out']}" if record["dropped_out"] else ""
    print(f"{settings.out}, {described}: {rule.name} of silos {', '.join(map(str, masked))}{gone}")
    return record


def _sorted(found: list[Letter]) -> dict[str, dict[int, Letter]]:
    """Letters by what they hold and by silo, all of one round."""
    kinds = {kind: [letter for letter in found if letter.holds == kind] for kind in letters.BODIES}
    if not kinds[letters.KEYS] or not kinds[letters.MASKED]:
        raise ValueError("files: expected letters of secure join and secure mask, got none of one of them")
    return {kind: by_silo(inside, kinds[letters.KEYS][0]) for kind, inside in kinds.items()}


def _require_one_story(found: dict[str, dict[int, Letter]], told: bytes) -> None:
    for kind in (letters.SHARES, letters.MASKED, letters.REVEALED):
        for letter in found[kind].values():
            if letter.story != told:
                raise PayloadError(f"{letter.path}: its silo was shown other keys than are here")
