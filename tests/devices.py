"""Processes that see several devices on one machine."""

import os


def environment(count):
    """The environment of a process with `count` devices that compiles as fast as the tests do (conftest.py)."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
