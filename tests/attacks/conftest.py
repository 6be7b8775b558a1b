import numpy as np
import pytest
from commands import command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new current folder with `d.npz` (60 rows of 8 numbers, 3 classes) and a small network's `start.safetensors`."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.savez("d.npz", x=random.normal(size=(60, 8)).astype(np.float32), y=random.integers(0, 3, 60))
    assert command("init", "--model", "mlp", "--input-shape", 8, "--outputs", 3)[0] == 0
    return tmp_path
