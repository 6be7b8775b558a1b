"""Processes of their own, for tests; they fork from one that has imported the library and computed nothing."""

import multiprocessing
import os

from fedfisher_jax.cli import _cli as cli

os.environ["JAX_ENABLE_X64"] = "1"  # in children, as conftest.py does here
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fedfisher_jax.cli", "fedfisher_jax.payload"])


def start(target, *arguments):
    """A started process that runs `target(*arguments)`."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def command(folder, arguments):
    """A subcommand, run in a folder."""
    os.chdir(folder)
    cli.main(arguments)
