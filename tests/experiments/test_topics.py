"""The examples of the task of topics: whose they are, and what they are called."""

import numpy as np
import pytest

from experiments.checkpoints import topics


def test_clients_have_topics_of_their_own_and_no_window_is_seen_twice():
    (x, y), parts = topics.split(seed=3, windows=16, tested=8)
    assert np.bincount(y).tolist() == [16] * len(topics.TOPICS)
    owned = [set(part.train[1]) for part in parts]
    assert sorted(topic for own in owned for topic in own) == list(range(len(topics.TOPICS)))
    for part, own in zip(parts, owned, strict=True):
        assert all(set(labels) == own for _, labels in (part.validate, part.test))
        assert {list(topics.TOPICS)[topic] for topic in own} == set(part.name.split(", "))
        assert [len(labels) for _, labels in (part.train, part.validate, part.test)] == [48, 6, 24]
    several = [x, *(found for part in parts for found, _ in (part.train, part.validate, part.test))]
    rows = np.concatenate([found["input_ids"] for found in several])
    assert rows.min() >= topics.UNKNOWN and rows.max() < topics.VOCABULARY
    assert len(np.unique(rows, axis=0)) > 0.99 * len(rows)  # but for what authors wrote twice


def test_halves_share_no_file_and_have_about_as_many_words():
    files = [["a"] * n for n in (50, 30, 20, 10, 10)]
    first, second = topics.halves(files, np.random.default_rng(0))
    assert sorted(map(len, first + second)) == [10, 10, 20, 30, 50]
    assert abs(sum(map(len, first)) - sum(map(len, second))) <= 50


def test_windows_are_successive_words_of_one_file():
    words = [f"{letter}{n}" for letter in "ab" for n in range(topics.LENGTH + 3)]
    numbers = {word: n for n, word in enumerate(words, 2)}
    files = [words[: len(words) // 2], words[len(words) // 2 :]]
    found = topics.windows_of(files, numbers, np.random.default_rng(0))
    assert sorted(found[:, 0]) == [2, 2 + len(files[0])] and (np.diff(found, axis=1) == 1).all()


def test_too_little_text_is_said():
    with pytest.raises(ValueError, match="topics: data types: got"):
        topics.split(seed=0, windows=10_000, tested=8)
