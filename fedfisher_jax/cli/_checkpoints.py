"""`measure --model hf:FOLDER` and `merge --base FOLDER`: payloads of checkpoints, and a merged folder."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import payload
from .._examples import examples
from .._frozen import trainable
from .._likelihood import categorical, check_targets
from .._trees import outline
from ..curvature import Capture, capture
from ..curvature._cotangents import KINDS
from ..federate import run_keys
from ..merge import Payload, Update, catalogue
from ..merge._options import plain_name
from ..payload import Limits
from ..payload._files_of_a_merge import Terms, parts_of, payloads_of
from ._measure_settings import HF, MeasureSettings


def measured(settings: MeasureSettings) -> tuple[Payload, str, str]:
    """Measure a folder's model on this silo's data: the payload, its likelihood's name, and the start's fingerprint.

    Raises:
        ValueError: the folder, the base or the data do not work, named.
    """
    from .. import torch

    folder = Path((settings.model or "").removeprefix(HF))
    chosen = _chosen(settings.where)
    base = torch.from_module(torch.read(settings.start))
    fingerprint = payload.fingerprint(base.params)
    module = torch.read(folder, settings.start)
    model = torch.from_module(module)
    if torch.is_adapter(folder):
        names = torch.adapter_names(module)  # its model is the start, as it is
        part = trainable(model.apply, model.params, lambda name: name in names and chosen(name))
    else:
        if _shapes(model.params) != _shapes(base.params):
            raise ValueError(f"model: {folder}: its parameters have other names, shapes or types than the start's")
        part = trainable(model.apply, model.params, chosen)
        for name in sorted(set(base.params) - set(part.params)):
            if (base.params[name] != model.params[name]).any():
                raise ValueError(f"model: {folder}: {name} is not the start's, and --where leaves it out")
    del base, module
    tokens = settings.start if torch.is_adapter(folder) else folder
    x, y = torch.read_rows(settings.data, tokens, settings.text_column, settings.label_column, settings.length)
    outputs = jax.eval_shape(model.apply, model.params, outline(x, len(next(iter(x.values())))))
    sequence = len(outputs.shape) == 3
    if y is None and not (sequence and "input_ids" in x):
        raise ValueError(f"data: {settings.data}: got no labels, expected them for a model without next tokens")
    y = torch.next_tokens(x["input_ids"], x.get("attention_mask")) if y is None else y
    likelihood = categorical(ignore=torch.IGNORED if sequence else None)
    check_targets(likelihood, outputs.shape, y)
    captured = capture(part.apply, part.params, jax.tree.map(jnp.asarray, x))
    for line in fallen_back(captured, part.params):
        print(line)
    offers = {"captured": captured, "kind": settings.kind, "samples": settings.samples}
    rule = catalogue.named_rule(settings.rule, part.apply, likelihood, offers=offers)
    if rule.name not in torch.RULES:
        raise ValueError(f"rule: got {rule.name}, expected one of {', '.join(torch.RULES)}")
    data, key = examples(x, y), jax.random.fold_in(run_keys(settings.seed).measure, settings.silo)
    # Not jitted as a whole: XLA would take frozen parameters for constants, and fold them for minutes.
    return rule.measure(Update(part.params), data, key), likelihood.name, fingerprint


def _chosen(where: str | None) -> Callable[[str], bool]:
    """Make the predicate on names of parameters that --where stands for."""
    try:
        pattern = re.compile(where or "")
    except re.error as error:
        raise ValueError(f"where: got {where!r}, expected a regular expression: {error}") from error
    return lambda name: pattern.search(name) is not None


def fallen_back(captured: Capture, params: Any) -> list[str]:
    """Say what share of the parameters is in layers, and of the others what each is and why, a line for each reason."""
    paths, leaves = zip(*jax.tree.leaves_with_path(params), strict=True)
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in zip(paths, leaves, strict=True)}
    total, by_reason = sum(sizes.values()), {}
    for path, reason in captured.fallback.items():
        by_reason.setdefault(reason, []).append(path)
    outside = sum(sizes[path] for path in captured.fallback)
    lines = [f"layers hold {1 - outside / total:.2%} of {total:,} parameters; a diagonal has the others"]
    for reason, found in by_reason.items():
        share = sum(sizes[path] for path in found) / total
        lines.append(f"  {share:.2%} in {len(found)} arrays, as {found[0]}: {reason}")
    return lines


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
    parts = parts_of(files, Terms(limits=limits))
    described, about = parts[0].silos[0].header.leaves, parts[0].silos[0].header.about
    if unknown := [leaf.path for leaf in described if leaf.path not in whole.params]:
        raise ValueError(f"{parts[0].path}: {unknown[0][:80]!r} is no parameter of the base: is it an adapter's?")
    mine = {leaf.path: whole.params[leaf.path] for leaf in described}
    terms = Terms(mine, limits=limits, start=fingerprint)
    headers: list[Any] = []
    name = settings.rule or about.rule
    plain = plain_name(name) if settings.rule is not None else name  # a file's own words choose no options
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
    text = torch.card(name, about.kind, contributors, merged.diagnostics)
    params = {**whole.params, **merged.params}  # frozen ones are the base's
    torch.write(settings.out, settings.base, params, text, adapter=settings.adapter)
    print(f"{settings.out}: {len(headers)} payloads merged by {name}; README.md says how")


def _shapes(params: Any) -> dict[str, Any]:
    return {name: (value.shape, value.dtype) for name, value in params.items()}
