"""What `make test-torch` runs; elsewhere nothing of this folder is collected."""

import importlib.util

NEEDED = ("torch", "torchax", "transformers", "peft")

if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    """Say that it is so."""
    return f"tests/checkpoints: left out, without {', '.join(missing)}" if missing else None


def pytest_configure(config):
    """Let peft 0.21 ask transformers 5 by an older name."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
