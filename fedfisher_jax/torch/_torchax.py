"""torchax: its import, what it asks of PyTorch that newer releases no longer have, and what it cannot express.

torchax 0.0.13 lists overloads of operators on named tensors (`aten.all.dimname`, …), which PyTorch 2.13 took out with
the named tensors. Nothing can call them, so while torchax is imported each of them is a name and nothing more.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

try:  # by name, or type checkers take this very room for it
    torch: Any = importlib.import_module("torch")
    if importlib.util.find_spec("torchax") is None:
        raise ModuleNotFoundError("No module named 'torchax'")
except ImportError as missing:
    raise ImportError(f"{missing}: fedfisher_jax.torch needs pip install 'fedfisher-jax[torch]'") from missing

NAMED_TENSORS = ("dimname", "names")  # parts of the names of overloads that take names of axes


@contextlib.contextmanager
def named_tensors() -> Iterator[None]:
    """Let overloads on named tensors that PyTorch lacks be empty names; other missing ones stay errors."""
    packets = torch._ops.OpOverloadPacket
    found = packets.__getattr__

    def lenient(packet: Any, name: str) -> Any:
        try:
            return found(packet, name)
        except AttributeError:
            if any(part in name.lower() for part in NAMED_TENSORS):
                return f"{packet}.{name}"
            raise

    packets.__getattr__ = lenient
    try:
        yield
    finally:
        packets.__getattr__ = found


@contextlib.contextmanager
def _slow_path() -> Iterator[None]:
    """Leave PyTorch's fused attention off, which torchax has no lowering for, and then as it was."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def environment() -> Any:
    """Return torchax's environment, whose `j2t_iso` and `t2j_iso` wrap and unwrap JAX's arrays."""
    with _slow_path(), named_tensors():  # the import turns the fused attention off for the whole process
        import torchax  # pyright: ignore[reportMissingImports]

        return torchax.default_env()


@contextlib.contextmanager
def running() -> Iterator[Any]:
    """Run PyTorch's operators on JAX's arrays, in torchax's environment.

    Raises:
        NotImplementedError: a module uses an operator that torchax has no lowering for; it is named.
    """
    env = environment()
    from torchax.tensor import OperatorNotFound  # pyright: ignore[reportMissingImports]

    try:
        with _slow_path(), torch.no_grad(), env:
            yield env
    except OperatorNotFound as error:
        raise NotImplementedError(f"module: torchax cannot express it: {error}") from error
