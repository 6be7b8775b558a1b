"""What decides the numbers of a run beside its settings."""

import importlib.metadata
import platform

import jax


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide the numbers."""
    packages = ("fedfisher-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "platform": jax.default_backend(), **found}
