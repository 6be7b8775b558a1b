"""Compiled programs that commands keep in the user's cache folder, so that the next command need not compile them."""

import contextlib
import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax
from jaxlib import version

MOST_BYTES = 2**28  # of all programs; the ones written longest ago go first
LEAST_SECONDS = 0  # of compiling, for a program to be kept: a hundred small ones of 10 kB take three seconds to compile
CPU = Path("/proc/cpuinfo")


def cache_folder() -> Path:
    """Name this machine's folder: a program that another processor or compiler made may crash here."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    flags = next((line for line in _cpu().splitlines() if line.startswith(("flags", "Features"))), "")
    words = (jax.__version__, version.__version__, platform.machine(), platform.processor(), flags)
    return base / "fedfisher_jax" / "xla" / hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles from now on, unless the user has told it where (JAX_COMPILATION_CACHE_DIR).

    Where there is no home, or none that can be written, nothing is kept.
    """
    if getattr(jax.config, "jax_compilation_cache_dir") is not None:
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _forget_the_oldest(folder)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    if os.access(folder, os.W_OK):
        # What another command has half written is compiled again.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _forget_the_oldest(folder: Path) -> None:
    files = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # here and below: another command was faster
            files.append((file.stat(), file))
    files.sort(key=lambda one: one[0].st_mtime)
    total = sum(stat.st_size for stat, _ in files)
    for stat, file in files:
        if total <= MOST_BYTES:
            return
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        total -= stat.st_size


def _cpu() -> str:
    return CPU.read_text(errors="replace") if CPU.exists() else ""
