"""The server's step of `fedfisher secure`: it unmasks the sum of those who stayed, and merges that."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _files, report
from ..curvature import capture
from ..curvature.structures._moments import NoisyMoments
from ..merge._exact_sums import Sums
from ..merge._one_by_one import contribution_shape, merge_sums
from ..payload import Header, Limits, PayloadError, leaves
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..privacy import _fixed_point as fixed_point
from ..privacy import _integer_noise as integer_noise
from ..privacy import _secure_letters as letters
from ..privacy._example_promise import Promise, spent
from ..privacy._one_story import fingerprint, story
from ..privacy._secure_letters import Letter, by_silo
from ..privacy._secure_merge import resolution, shaped
from ..privacy._secure_server import unmask
from ..silos import _model_file as model_file
from ._gather import paths_of, rule_for
from ._secure import SumSettings
from ._secure_silo import require_alike


def merge(settings: SumSettings) -> dict[str, Any]:
    """Write the global model, then the report, which it returns."""
    paths, described = paths_of(settings.files), settings.out.with_suffix(".json")
    for path in (settings.out, described):
        _files.require_file(path, [settings.start, *paths])
    sorted_ = _sorted([letters.read(path) for path in paths])
    keys = {n: one.announced.keys for n, one in sorted_[letters.KEYS].items() if one.announced is not None}
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
    announced = [one.announced for one in sorted_[letters.KEYS].values() if one.announced is not None]
    require_alike(sorted_[letters.KEYS])
    terms = {"layers": captured.layers, "limits": Limits(), "file": first.path, "start": start.fingerprint}
    header = files_of.checked(announced[0].template, 0, start.params, **terms)
    if ":" in header.about.rule:
        raise PayloadError(f"{first.path}: rule: got {header.about.rule[:80]!r}, expected a name of fedfisher list")
    rule = rule_for(start, captured, header.about.rule, header.about.kind)
    sent = region.payload_shape(header, start.params)._replace(kind=None)
    shape = contribution_shape(rule, sent, start.sent)
    said = [one.scales for one in announced]
    bits, owed = resolution(said, len(keys), shape), integer_noise.owed(header)
    share = None if owed is None else integer_noise.share_of(owed, said, len(keys), shape)
    if {len(words) for words in masked.values()} != {len(bits)}:
        raise PayloadError(f"files: masked numbers are not as many as {rule.name} adds, {len(bits)}")
    summed = fixed_point.decode(unmask(agreed, keys, masked, revealed), bits)
    summed = shaped(summed, shape)
    if share is not None:
        summed, shape = (integer_noise.told(tree, share, len(masked)) for tree in (summed, shape))
    sums, examples = _sums(summed, shape, header)
    merged = merge_sums(rule, sums, shape, None, start.sent)
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
        "examples": None if examples is None else int(examples),
        "largest_step": float(np.ldexp(1.0, -int(bits.min()))),
        "every_example": None if owed is None else _kept(owed, summed["moments"], len(masked)),
        "privacy": {str(n): one.template["privacy"] for n, one in zip(keys, announced, strict=True)},
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


def _kept(owed: Promise, moments: NoisyMoments, silos: int) -> dict[str, Any]:
    """What is promised about every example in the sum, and the noise that is in it."""
    multiplier = owed.noise_multiplier * math.sqrt(silos / owed.sharers)
    stds = np.sqrt(moments.variances)
    return {
        **{name: getattr(owed, name) for name in ("epsilon", "delta", "releases", "unit", "sharers")},
        "silos_with_noise": silos,
        "epsilon_if_all_keep_theirs": spent([multiplier] * owed.releases, owed.delta),
        "noise": {name: float(std) for name, std in zip(integer_noise.NAMES, stds, strict=True)},
    }


def _sums(summed: Any, shape: Any, header: Header) -> tuple[Sums, float | None]:
    """The sum that a region of these silos would hold, checked as that is, and the examples of all where it tells."""
    arrays = {}
    for name, leaf in region.named_leaves(summed):
        arrays |= {f"high/{name}": leaf, f"low/{name}": np.zeros(leaf.shape)}
    examples = float(arrays["high/weight"]) if "high/weight" in arrays else None
    if examples is not None and not (examples >= 1 and examples == int(examples)):
        raise ValueError(f"sum: got {examples} examples, expected a whole number")
    try:
        return region.sums_of(arrays, shape, header, int(examples or 0)), examples
    except np.linalg.LinAlgError as error:
        raise ValueError(f"sum: {error}") from error
