"""What importing costs: nothing that only a command, a figure or a file needs."""

import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "rich", "PIL", "scipy.optimize", "scipy.special", "scipy.stats", "sklearn", "orbax", "tyro")
HEAVY += ("tensorflow_datasets", "cryptography", "dp_accounting", "flwr", "safetensors.torch", "torch")


def loaded(statement):
    """Modules that a statement loads in a fresh process, beside those of jax, optax and flax."""
    code = f"import sys, jax, optax, flax\nbefore = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def heavy(modules):
    return sorted({name for name in HEAVY for module in modules if module == name or module.startswith(name + ".")})


def test_the_library_loads_nothing_heavy():
    modules = loaded("import fedfisher_jax")
    assert "fedfisher_jax.merge._pfnm" in modules and heavy(modules) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "list", "run --help"])
def test_a_command_that_only_answers_needs_no_more_than_its_parser(command):
    quiet = "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):"
    modules = loaded(
        f"import contextlib, io\nfrom fedfisher_jax.cli import main\n{quiet}\n    main({command.split()!r})"
    )
    assert "fedfisher_jax.cli._cli" in modules and set(heavy(modules)) <= {"tyro", "rich"}
