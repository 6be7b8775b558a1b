"""Writes the fixture files of the current format version, once; run with a new version, never to change old ones.

PYTHONPATH=tests python tests/payload/make_fixture.py
"""

from pathlib import Path

import numpy as np
from samples import STRUCTURES, about, payload

from fedfisher_jax.payload import Eigen, Uniform, plan
from fedfisher_jax.payload import _file as file
from fedfisher_jax.payload import _header as header

FOLDER = Path(__file__).parent / "fixtures"


def main():
    """A file per structure, raw and compressed, and the numbers that it must be read as, for ever."""
    for structure in STRUCTURES:
        sent = payload(structure, seed=3)
        said = about(structure, silo=3, name="Æsculap")
        save(structure or "fedavg", sent, said, plan.none(sent))
        save(f"{structure or 'fedavg'}_budget", sent, said, plan.fit(sent, said, 20.0))
    sent = payload("kronecker", seed=3)
    said = about("kronecker", silo=3, compression="authors", kind="exact", privacy={"epsilon": 8.0})
    save("kronecker_authors", sent, said, plan.authors(sent))
    eigen = Eigen(2, Uniform(7), Uniform(8, signed=False))
    low_rank = {name: eigen for name in file.entries(sent) if plan.is_matrix("kronecker", name)}
    save("kronecker_eigen", sent, said, low_rank | {"params/scale": Uniform(5, stochastic=True)})


def save(name, sent, said, chosen):
    """The file and its numbers."""
    path = FOLDER / f"v{header.FORMAT}_{name}.safetensors"
    file.write(path, sent, said, chosen, random=np.random.default_rng(0))
    np.savez(path.with_suffix(".npz"), **file.entries(file.read(path, parity=True)[0]))


if __name__ == "__main__":
    main()
