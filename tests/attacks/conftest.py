import shutil

import numpy as np
import pytest
from commands import command


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with `d.npz` (60 rows of 8 numbers, 3 classes) and `start.safetensors` of a small network."""
    path, random = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    np.savez(path / "d.npz", x=random.normal(size=(60, 8)).astype(np.float32), y=random.integers(0, 3, 60))
    words = ("--model", "mlp", "--input-shape", 8, "--outputs", 3, "--out", path / "start.safetensors")
    assert command("init", *words)[0] == 0
    return path


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """These files in a new current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
