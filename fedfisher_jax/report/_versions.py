"""What decides the numbers of a run beside its settings."""

import importlib.metadata
import platform

import jax

from .. import __version__


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide the numbers."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "fedfisher-jax": __version__,
        **found,
    }
