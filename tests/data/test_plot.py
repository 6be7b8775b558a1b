import sys

import numpy as np
import pytest
from PIL import Image

from fedfisher_jax.data import plot_label_counts


@pytest.mark.parametrize("clients, classes", [(1, 2), (5, 10), (100, 10), (300, 200)])
def test_a_figure_of_any_size_is_written(tmp_path, monkeypatch, clients, classes):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails: no global figures
    counts = np.random.default_rng(0).poisson(3, (clients, classes))
    plot_label_counts(counts, tmp_path / "clients.png")
    with Image.open(tmp_path / "clients.png") as figure:
        assert 400 < figure.width < 2200 and 400 < figure.height < 2200
        assert len(figure.convert("RGB").getcolors(maxcolors=2**24) or []) > 20  # drawn upon, not blank


def test_clients_without_examples_can_be_drawn(tmp_path):
    plot_label_counts(np.zeros((3, 4), int), tmp_path / "clients.png")
    assert (tmp_path / "clients.png").stat().st_size > 0


@pytest.mark.parametrize("counts", [np.zeros(3, int), np.zeros((0, 4), int)])
def test_what_is_no_matrix_is_refused(tmp_path, counts):
    with pytest.raises(ValueError, match="counts: got .*, expected shape"):
        plot_label_counts(counts, tmp_path / "clients.png")


def test_classes_have_their_names(tmp_path):
    names = ["cat", "dog", "a name that is longer than a figure has room for"]
    plot_label_counts(np.ones((2, 3), int), tmp_path / "clients.svg", names=names)
    drawn = (tmp_path / "clients.svg").read_text()
    assert "<!-- cat -->" in drawn and "<!-- dog -->" in drawn and "<!-- a name that is … -->" in drawn
    with pytest.raises(ValueError, match="names: got 2, expected one for each of 3 columns"):
        plot_label_counts(np.ones((2, 3), int), tmp_path / "clients.svg", names=names[:2])
