"""`measure --model hf:FOLDER` and `--model torch:module:function`: payloads of checkpoints of PyTorch."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import payload
from .._examples import examples
from .._frozen import trainable
from .._likelihood import Likelihood, categorical
from .._trees import outline
from .._users_code import in_few_words
from ..curvature import Capture, capture
from ..data import Columns
from ..data._where import expanded
from ..federate import run_keys
from ..merge import Payload, Update, catalogue
from ..silos import _silo_data as silo_data
from ..silos._network import likelihood_of
from ._measure_settings import HF, TORCH, MeasureSettings, changed


class Brought(NamedTuple):
    """What a silo brings: its model as a function, parameters that all fine-tuned, and its examples."""

    model: Any
    start: dict[str, jax.Array]
    adapter: set[str] | None  # names of its parameters, where the model is the start with one
    x: Any
    y: np.ndarray | None


def measured(settings: MeasureSettings) -> tuple[Payload, str, str]:
    """Measure a model of PyTorch on this silo's data: the payload, its likelihood's name, and the start's fingerprint.

    Raises:
        ValueError: the model, the start or the data do not work, named.
    """
    from .. import torch

    chosen = _chosen(settings.where)
    model, start, adapter, x, y = _of_folder(settings) if _is_folder(settings) else _of_function(settings)
    fingerprint, what = payload.fingerprint(start), settings.checkpoint or settings.model
    if adapter is not None:
        part = trainable(model.apply, model.params, lambda name: name in adapter and chosen(name))
    else:
        if shapes_of(model.params) != shapes_of(start):
            raise ValueError(f"model: {what}: its parameters have other names, shapes or types than the start's")
        part = trainable(model.apply, model.params, chosen)
        for name in sorted(set(start) - set(part.params)):
            if (start[name] != model.params[name]).any():
                raise ValueError(f"model: {what}: {name} is not the start's, and --where leaves it out")
    del start
    outputs = _outputs(model, x, settings.data)
    sequence = len(outputs) == 3
    if y is None and not (sequence and "input_ids" in x):
        raise ValueError(f"data: {settings.data}: got no labels, expected them for a model without next tokens")
    y = torch.next_tokens(x["input_ids"], x.get("attention_mask")) if y is None else y
    likelihood = _likelihood(settings.likelihood, sequence)
    y = silo_data.targets_of(settings.data, likelihood, outputs, y)
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


def _is_folder(settings: MeasureSettings) -> bool:
    return (settings.model or "").startswith(HF)


def _of_folder(settings: MeasureSettings) -> Brought:
    """Read a folder of transformers, or of peft's adapter on the start."""
    from .. import torch

    folder = Path((settings.model or "").removeprefix(HF))
    start = torch.from_module(torch.read(settings.start)).params
    module = torch.read(folder, settings.start)
    adapter = torch.adapter_names(module) if torch.is_adapter(folder) else None
    tokens = folder if adapter is None else settings.start
    x, y = torch.read_rows(settings.data, tokens, settings.text_column, settings.label_column, settings.length)
    return Brought(torch.from_module(module), start, adapter, x, y)


def _of_function(settings: MeasureSettings) -> Brought:
    """Make a user's module, with the checkpoint's numbers, and with the start's; what has no file is as it is made."""
    from .. import torch

    module = torch.make((settings.model or "").removeprefix(TORCH))
    made = torch.from_module(module)
    if settings.start.exists() or changed(settings, ("start",)):
        start = torch.from_module(torch.load(module, settings.start)).params
    else:
        print(f"there is no {settings.start}: the start is the module as {settings.model} makes it")
        start = made.params
    model = made if settings.checkpoint is None else torch.from_module(torch.load(module, settings.checkpoint))
    x, y = _rows(settings)
    own = jnp.result_type(*(value.dtype for value in model.params.values()))  # PyTorch mixes no types of floats
    x = jax.tree.map(lambda part: jnp.asarray(part, own if part.dtype.kind == "f" else None), x)
    return Brought(model, start, None, x, y)


def _rows(settings: MeasureSettings) -> tuple[Any, np.ndarray | None]:
    """Read a .npz file of the module's arguments by name and labels, or examples as for any other network."""
    from .. import torch

    path = expanded(settings.data)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as held:
            by_name = "labels.npy" in held.namelist()
        if by_name:
            return torch.read_rows(path, ".")
    return silo_data.read(settings.data, "train", columns=Columns(settings.label, None, settings.ignore))


def _outputs(model: Any, x: Any, source: str) -> tuple[int, ...]:
    """Find the shape of a model's outputs for all examples, without computing them."""
    count = len(jax.tree.leaves(x)[0])
    try:
        return jax.eval_shape(model.apply, model.params, outline(jax.tree.map(jnp.asarray, x), count)).shape
    except NotImplementedError as error:
        raise ValueError(str(error)) from error
    except (Exception, SystemExit) as error:  # a user's own module may fail in any way
        raise ValueError(f"data: {source}: the model cannot take them: {in_few_words(error)}") from error


def _likelihood(name: str, sequence: bool) -> Likelihood:
    from .. import torch

    return categorical(ignore=torch.IGNORED) if sequence and name == "categorical" else likelihood_of(name)


def _chosen(where: str | None) -> Callable[[str], bool]:
    """Make the predicate on names of parameters that --where stands for."""
    try:
        pattern = re.compile(where or "")
    except re.error as error:
        raise ValueError(f"where: got {where!r}, expected a regular expression: {error}") from error
    return lambda name: pattern.search(name) is not None


def fallen_back(captured: Capture, params: Any) -> list[str]:
    """Say what share of the parameters is in layers, and of each other array its share and why it is in none."""
    paths, leaves = zip(*jax.tree.leaves_with_path(params), strict=True)
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in zip(paths, leaves, strict=True)}
    total, outside = sum(sizes.values()), sum(sizes[path] for path in captured.fallback)
    lines = [f"layers hold {1 - outside / total:.2%} of {total:,} parameters; a diagonal has the others"]
    return lines + [f"  {sizes[path] / total:.2%} {path}: {reason}" for path, reason in captured.fallback.items()]


def shapes_of(params: Any) -> dict[str, Any]:
    """Give shape and type of each parameter by name."""
    return {name: (value.shape, value.dtype) for name, value in params.items()}
