"""Float64, shape checking of every annotated function of the package, and bounded memory maps of long-lived workers."""

import argparse
import functools
import gc
import itertools
import os
import zlib
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait by spinning, and there is a worker per core
# Most time goes into compiling programs that run once: without LLVM's optimisation, and by XLA's older code for fusions
# where it has one (an unknown flag aborts), that takes half. XLA_FLAGS= keeps what users run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)
# Workers, the processes that tests start and the next run share what they compile, however small.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from jaxtyping import install_import_hook

if version("jax").startswith("0.10."):
    from jax._src.interpreters import mlir

    # A context of MLIR for each of thousands of programs takes a tenth of the time. One serves all but those programs
    # that are compiled while another one is written: there they would be written into it.
    make, shared = mlir.make_ir_context, functools.cache(mlir.make_ir_context)
    mlir.make_ir_context = lambda: shared() if mlir.ir.Context.current is None else make()
gc.set_threshold(50_000, 20, 10)  # looking for cycles in what JAX and its libraries hold took a seventh of the time
jax.config.update("jax_enable_x64", True)
hook = install_import_hook("fedfisher_jax", "beartype.beartype")
hook.__enter__()

MAPS = Path("/proc/self/maps")
tests_until_a_look = itertools.cycle(reversed(range(20)))  # reading the maps takes 20 ms where there are 20,000


def pytest_addoption(parser):
    """`make test` is quick, `make test-slow` runs the rest; both together are the suite, and CI runs both."""
    parser.addoption("--quick", action="store_true", help="skip the tests that are marked slow")
    parser.addoption("--share", metavar="K/N", type=share_of, help="only the K-th of N parts of the slow tests, K < N")


def share_of(text):
    """K and N of "K/N"."""
    number, parts = map(int, text.split("/"))
    if not 0 <= number < parts:
        raise argparse.ArgumentTypeError(f"got {text}, expected K/N with 0 <= K < N")
    return number, parts


def pytest_collection_modifyitems(config, items):
    """Skipped, and so listed at the end with the reason, where deselected tests would go unsaid."""
    quick, share = config.getoption("--quick"), config.getoption("--share")
    for item in items:
        if item.get_closest_marker("slow"):
            if quick:
                item.add_marker(pytest.mark.skip(reason="slow: make test-slow runs it"))
            elif share and zlib.crc32(item.nodeid.encode()) % share[1] != share[0]:
                item.add_marker(pytest.mark.skip(reason=f"slow, and not of the share {share[0]}/{share[1]}"))


def pytest_collection_finish(session):
    """What is imported and collected stays: no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def forget_compiled_programs():
    """Compiled programs hold memory maps, and at Linux's 65,530 of a process XLA aborts: drop them well before."""
    yield
    if next(tests_until_a_look) == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()
