"""Float64, shape checking of every annotated function of the package, and paths to the golden arrays."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
hook = install_import_hook("fedfisher_jax", "beartype.beartype")
hook.__enter__()
