"""`python -m fedfisher_jax.cli`."""

from . import main

main()
