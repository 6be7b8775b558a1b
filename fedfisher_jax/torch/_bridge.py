"""A PyTorch module as a function of JAX: (apply, params, buffers), under the names of its state dict."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ._torchax import running, torch


class Bridged(NamedTuple):
    """A PyTorch module as a function of JAX.

    Attributes:
        apply: (params, x) → outputs; x is an array, a tuple of arguments or a dictionary of such by name.
        params: parameters by their names in the state dict, of several names (tied weights) by the first; and the
            running averages of batch norm, whose gradient is zero.
        buffers: what the module holds beside, by name, and nobody merges: counters, tables of positions.
    """

    apply: Callable[[Any, Any], Any]
    params: dict[str, jax.Array]
    buffers: dict[str, jax.Array]


def from_module(module: Any, *, output: str | None = None) -> Bridged:
    """See a PyTorch module as a function of JAX. The module itself stays as it is.

    It runs as after `module.eval()`: dropout is off, and batch norm uses its running averages. Those are among the
    parameters, with zero gradient and so zero Fisher, where every rule keeps the clients' weighted mean: merged running
    means and variances are averages over clients by examples. How far clients' means lie apart is not in the variance.

    `apply` raises NotImplementedError for a module that uses an operator which torchax cannot express, and names it.

    Args:
        module: a `torch.nn.Module`, on any device.
        output: name of the output that is the model's; by default the only one, or "logits" of several.

    Raises:
        TypeError: it is no module, or holds parameters that are no floating-point numbers.

    Example:
        >>> import torch, jax.numpy as jnp, fedfisher_jax as ff
        >>> from fedfisher_jax.torch import from_module
        >>> model = from_module(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
        >>> list(model.params), model.apply(model.params, jnp.ones((5, 4))).shape
        (['0.weight', '0.bias', '2.weight', '2.bias'], (5, 2))
        >>> ff.capture(model.apply, model.params, jnp.ones((1, 4))).fallback
        {}
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    for name, value in module.named_parameters():
        if not value.is_floating_point():
            raise TypeError(f"module: {name}: got {value.dtype}, expected floating-point parameters")
    averages = running_averages(module)
    params = {name: to_jax(value) for name, value in (*module.named_parameters(), *averages.items())}
    buffers = {name: to_jax(value) for name, value in module.named_buffers() if name not in averages}
    shell = _shell(module)

    def apply(params: Any, x: Any) -> Any:
        fixed = {name: jax.lax.stop_gradient(params[name]) for name in averages}
        with running() as env:
            given = env.j2t_iso(jax.tree.map(jnp.asarray, x))
            state = env.j2t_iso({**buffers, **params, **fixed})
            args, named = ((), given) if isinstance(given, dict) else (given, {})
            outputs = torch.func.functional_call(shell, state, args, named)
            return env.t2j_iso(_chosen(outputs, output))

    return Bridged(apply, params, buffers)


def running_averages(module: Any) -> dict[str, Any]:
    """Find the running means and variances of a module's batch norms, by their names in the state dict."""
    norms = torch.nn.modules.batchnorm._NormBase
    return {
        f"{path}.{name}" if path else name: value
        for path, part in module.named_modules()
        if isinstance(part, norms)
        for name, value in part.named_buffers(recurse=False)
        if value.is_floating_point()
    }


def state_dict(module: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Write merged parameters as a state dict of tensors, which `module.load_state_dict` takes.

    Args:
        module: the module, or another one of the same shapes; what is no parameter is its own.
        params: by name, as `from_module` gives them.

    Raises:
        ValueError: names, shapes or types that are not the module's; the first one is named.
    """
    own = {**dict(module.named_parameters()), **running_averages(module)}
    if set(own) != set(params):
        wrong = sorted(set(own) ^ set(params))[0]
        raise ValueError(f"params: got {'no ' if wrong in own else ''}{wrong}, expected the module's parameters")
    found = {id(own[name]): to_torch(value) for name, value in params.items()}
    for name, value in own.items():
        new = found[id(value)]
        if new.shape != value.shape or new.dtype != value.dtype:
            given = f"{new.dtype} {tuple(new.shape)}"
            raise ValueError(f"params: {name}: got {given}, expected {value.dtype} {tuple(value.shape)}")
    return {name: found.get(id(value), value) for name, value in module.state_dict(keep_vars=True).items()}


def _shell(module: Any) -> Any:
    """Copy a module without its numbers, in evaluation mode; tied parameters stay tied."""
    empty = {
        id(value): torch.nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for value in module.parameters()
    }
    shell = copy.deepcopy(module, empty).eval()
    for part in shell.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "_experts_implementation", None) == "grouped_mm":  # torchax has no products of groups
            config._experts_implementation = "batched_mm"
        if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
            part.register_forward_hook(_without_gradient(part.padding_idx))
            part.padding_idx = None  # torchax's own way stands behind a custom derivative, where no layer is found
    return shell


def _without_gradient(row: int) -> Callable:
    """Make a hook that lets positions which read the row of padding give it no gradient, as PyTorch does."""

    def hook(part: Any, given: Any, outputs: Any) -> Any:
        return torch.where((given[0] == row)[..., None], outputs.detach(), outputs)

    return hook


def _chosen(outputs: Any, name: str | None) -> Any:
    """Choose the tensor among a module's outputs that is the model's."""
    if isinstance(outputs, torch.Tensor):
        if name is not None:
            raise ValueError(f"output: got {name!r}, expected None for a module that returns one tensor")
        return outputs
    if isinstance(outputs, Mapping):
        name = name or ("logits" if "logits" in outputs else next(iter(outputs)) if len(outputs) == 1 else None)
        if name in outputs:
            return outputs[name]
        raise ValueError(f"output: got {name!r}, expected one of {', '.join(outputs)}")
    raise ValueError(f"module: got outputs of type {type(outputs).__name__}, expected a tensor or a dictionary of such")


def to_jax(tensor: Any) -> jax.Array:
    """Copy a tensor to JAX, bit for bit, in its own type (float64 and int64 become narrower where JAX has none)."""
    held = tensor.detach().cpu().contiguous()
    if held.dtype == torch.bfloat16:  # numpy has none of its own
        return jnp.array(held.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return jnp.array(held.numpy())


def to_torch(array: Any) -> Any:
    """Copy an array to a tensor, bit for bit, in its own type."""
    held = np.array(array)
    if held.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(held.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(held)
