"""What others do with fine-tuned models' updates, on numbers that can be followed."""

import numpy as np

from experiments.checkpoints import methods

UPDATES = np.array([[4.0, -3.0, 0.1, 0.2, 0.0], [2.0, 5.0, -0.1, 0.3, 0.0]])


def test_ties_trims_elects_and_averages_those_that_agree():
    """Two of each update's five numbers are kept: 4 and -3, 2 and 5. The second place elects plus: 5 alone."""
    np.testing.assert_allclose(methods.ties(UPDATES, 1.0, density=0.4), [3, 5, 0, 0, 0])
    np.testing.assert_allclose(methods.ties(UPDATES, 0.5, density=0.4), [1.5, 2.5, 0, 0, 0])


def test_a_quarter_of_four_updates_sum_is_their_average():
    np.testing.assert_allclose(methods.task_arithmetic(UPDATES, 0.5), UPDATES.mean(0))


def test_dare_drops_a_share_and_keeps_the_mean():
    many = np.ones((2, 200_000))
    found = methods.dare(many, 0.5, 0.9, seed=0)
    assert set(np.round(np.unique(found), 9)) == {0, 5, 10}
    assert abs(found.mean() - 1) < 0.02
    np.testing.assert_allclose(methods.dare(UPDATES, 0.5, 0.0, seed=0), UPDATES.mean(0))


def test_the_first_setting_is_the_published_one():
    made = methods.candidates(UPDATES, seed=0)
    assert [next(iter(by)) for by in made.values()] == ["", "scale 0.4", "scale 1.0", "drop 0.9, scale 0.4"]
    assert methods.first(0.4, (0.25, 0.4, 1.0)) == (0.4, 0.25, 1.0)
