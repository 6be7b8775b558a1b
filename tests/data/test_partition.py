import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfisher_jax.data import (
    PARTITIONS,
    dirichlet_class,
    dirichlet_client,
    iid,
    label_counts,
    natural,
    quantity,
    shards,
    split,
)

BALANCED = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200))


def check_is_a_partition(parts, count):
    assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))


@st.composite
def cases(draw):
    """Labels and arguments that every split by labels can serve."""
    num_classes, num_clients = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    least = 2 * num_clients  # with one example a client, one Dirichlet draw in 400 serves all: too few in 1000
    counts = draw(st.lists(st.integers(least, 40), min_size=num_classes, max_size=num_classes))
    labels = np.repeat(np.sort(draw(st.permutations(range(9)))[:num_classes]), counts)
    shuffled = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)
    fewest = -(-num_classes // num_clients)
    return shuffled, num_clients, {
        "seed": draw(st.integers(0, 2**40)),
        "alpha": draw(st.sampled_from([0.3, 1.0, 100.0])),
        "classes_per_client": draw(st.integers(fewest, num_classes)),
        "min_size": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "natural"])
@settings(deadline=None, max_examples=40)
@given(case=cases())
def test_every_example_exactly_once_and_the_same_again(name, case):
    labels, num_clients, arguments = case
    parts = split(name, labels, num_clients, **arguments)
    assert len(parts) == num_clients
    check_is_a_partition(parts, len(labels))
    again = split(name, labels.copy(), num_clients, **arguments)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "natural"])
def test_another_seed_is_another_split(name):
    one, other = (split(name, BALANCED, 5, seed=seed) for seed in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "natural"])
def test_one_client_has_everything(name):
    (part,) = split(name, BALANCED, 1, seed=3, classes_per_client=10)
    np.testing.assert_array_equal(part, np.arange(len(BALANCED)))


@pytest.mark.parametrize("rule", [dirichlet_class, dirichlet_client, quantity])
@pytest.mark.parametrize("min_size", [1, 60, 150])
def test_minimum_size_is_honoured(rule, min_size):
    for seed in range(5):
        parts = rule(BALANCED, 8, seed=seed, alpha=0.5, min_size=min_size)
        assert min(map(len, parts)) >= min_size


@pytest.mark.parametrize("rule", [dirichlet_class, dirichlet_client])
def test_a_minimum_size_that_no_draw_reaches_is_an_error(rule):
    with pytest.raises(
        ValueError, match="alpha=0.01 left some of 50 clients with fewer than 40 examples in 1000 draws"
    ):
        rule(BALANCED, 50, seed=0, alpha=0.01, min_size=40)


@pytest.mark.parametrize("rule", [dirichlet_class, dirichlet_client, quantity])
@pytest.mark.parametrize("alpha", [1e-3, 1e-90, 1e90])
def test_extreme_alphas_are_exact_limits(rule, alpha):
    parts = rule(BALANCED, 2, seed=0, alpha=alpha, min_size=1)
    check_is_a_partition(parts, 2000)
    if alpha > 1:
        assert [len(part) for part in parts] == [1000, 1000]
        if rule is not quantity:
            assert (label_counts(BALANCED, parts, 10) == 100).all()


def test_a_class_goes_to_one_client_as_alpha_vanishes():
    for rule in (dirichlet_class, dirichlet_client):
        counts = label_counts(BALANCED, rule(BALANCED, 3, seed=1, alpha=1e-4, min_size=1), 10)
        assert ((counts == 0) | (counts == 200)).all()


def shares(rule, alpha, num_clients, num_classes, draws):
    """[draws, M, C] shares of each class, over seeds, with so many examples that cutting hardly rounds."""
    labels = np.repeat(np.arange(num_classes), 500)
    parts = [rule(labels, num_clients, seed=seed, alpha=alpha, min_size=1) for seed in range(draws)]
    return np.stack([label_counts(labels, part, num_classes) for part in parts]) / 500


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_dirichlet_class_has_the_second_moment_of_the_dirichlet_distribution(alpha):
    # A component of Dir(α·1_M) has E[p²] = (α + 1) / (M (M α + 1)).
    squares = (shares(dirichlet_class, alpha, 4, 20, 100) ** 2).mean(axis=(1, 2))
    expected = (alpha + 1) / (4 * (4 * alpha + 1))
    assert abs(squares.mean() - expected) < 4 * squares.std() / 10


def paper(rng, alpha, num_clients, num_classes):
    """The paper's recipe, in its own words."""
    mixtures = np.stack([rng.dirichlet(np.full(num_classes, alpha)) for _ in range(num_clients)])
    return mixtures / mixtures.sum(axis=0)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_dirichlet_client_has_the_moments_of_the_papers_recipe(alpha):
    rng = np.random.default_rng(7)
    ours = shares(dirichlet_client, alpha, 4, 6, 300)
    theirs = np.stack([paper(rng, alpha, 4, 6) for _ in range(300)])
    for moment in (lambda p: (p**2).mean(axis=(1, 2)), lambda p: (p.sum(axis=2) ** 2).mean(axis=1)):
        a, b = moment(ours), moment(theirs)
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 300)


def test_the_two_dirichlet_splits_differ_in_how_uneven_client_sizes_are():
    # Per class, a client's size is a sum of C independent shares: with E[p²] above, its variance is C times that of a
    # share. Per client, mixtures sum to one, which holds sizes together.
    by_class, by_client = (
        shares(rule, 0.5, 4, 6, 200).sum(axis=2).var(axis=1) for rule in (dirichlet_class, dirichlet_client)
    )
    expected = 6 * (1.5 / (4 * 3.0) - 1 / 16)
    assert abs(by_class.mean() - expected) < 4 * by_class.std() / np.sqrt(200)
    assert by_client.mean() < expected / 2


@pytest.mark.parametrize("rule", [dirichlet_class, dirichlet_client])
def test_no_client_is_favoured_by_its_place(rule):
    # Rounding cuts down instead would give the last of 10 clients about 50 examples more, and the first 50 fewer.
    labels = np.repeat(np.arange(100), 30)
    sizes = np.stack(
        [[len(part) for part in rule(labels, 10, seed=seed, alpha=10.0, min_size=1)] for seed in range(40)]
    )
    assert (abs(sizes.mean(axis=0) - 300) < 5 * sizes.std(axis=0) / np.sqrt(40)).all()


def test_the_order_of_examples_does_not_depend_on_alpha():
    # The same seed cuts the same shuffled class elsewhere: a first client with fewer examples holds a subset.
    labels = np.zeros(500, int)
    one, other = (quantity(labels, 2, seed=4, alpha=alpha)[0] for alpha in (0.5, 50.0))
    small, large = sorted((one, other), key=len)
    assert len(small) < len(large) and np.isin(small, large).all()
    one, other = (dirichlet_class(labels, 2, seed=4, alpha=alpha, min_size=1)[0] for alpha in (0.5, 50.0))
    small, large = sorted((one, other), key=len)
    assert len(small) < len(large) and np.isin(small, large).all()


def test_iid_sizes_differ_by_one_at_most_and_labels_follow_the_whole():
    parts = iid(BALANCED, 3, seed=0)
    assert sorted(map(len, parts)) == [666, 667, 667]
    assert abs(label_counts(BALANCED, parts, 10) - 200 / 3).max() < 6 * np.sqrt(200 / 3)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), num_clients=st.integers(1, 40), num_classes=st.integers(1, 12), k=st.integers(1, 12))
def test_shards_give_exactly_k_classes_in_equal_parts(seed, num_clients, num_classes, k):
    labels = np.repeat(np.arange(num_classes), 49)
    if not (k <= num_classes <= num_clients * k):
        with pytest.raises(ValueError, match="classes_per_client"):
            shards(labels, num_clients, seed=seed, classes_per_client=k)
        return
    counts = label_counts(labels, shards(labels, num_clients, seed=seed, classes_per_client=k), num_classes)
    np.testing.assert_array_equal((counts > 0).sum(axis=1), k)
    holders = (counts > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for column in counts.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


def test_shards_of_a_class_with_too_few_examples():
    labels = np.array([0] * 50 + [1] * 3)
    with pytest.raises(ValueError, match="class 1 has 3 examples for 5 clients: lower num_clients"):
        shards(labels, 5, seed=0, classes_per_client=2)


def test_quantity_skews_sizes_and_not_labels():
    even, uneven = ([len(part) for part in quantity(BALANCED, 5, seed=2, alpha=alpha)] for alpha in (1e4, 0.2))
    assert np.std(even) < 20 < 200 < np.std(uneven)
    parts = quantity(BALANCED, 4, seed=1, alpha=2.0)
    for part in parts:
        share = np.bincount(BALANCED[part], minlength=10) / len(part)
        assert abs(share - 0.1).max() < 6 * np.sqrt(0.09 / len(part))


@given(groups=st.lists(st.integers(-3, 8), min_size=1, max_size=40))
def test_natural_is_one_client_per_group(groups):
    parts = natural(np.array(groups))
    check_is_a_partition(parts, len(groups))
    assert [set(np.array(groups)[part].tolist()) for part in parts] == [{group} for group in sorted(set(groups))]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (
            "dirichlet",
            {},
            "name: got the partition 'dirichlet', expected one of dirichlet-client, dirichlet-class",
        ),
        ("iid", {"num_clients": 0}, "num_clients: got 0, expected 1 to 2000, the number of examples"),
        (
            "dirichlet-client",
            {"num_clients": 2001},
            "num_clients: got 2001, expected 1 to 2000, the number of examples",
        ),
        ("iid", {"num_clients": None}, "num_clients: got None, expected a number for the partition 'iid'"),
        ("dirichlet-client", {"alpha": 0.0}, "alpha: got 0.0, expected a finite number > 0"),
        ("dirichlet-class", {"alpha": -1.0}, "alpha: got -1.0, expected a finite number > 0"),
        ("quantity", {"alpha": float("nan")}, "alpha: got nan, expected a finite number > 0"),
        ("quantity", {"alpha": float("inf")}, "alpha: got inf, expected a finite number > 0"),
        (
            "dirichlet-class",
            {"min_size": 401},
            r"min_size: got .*, expected 1 to 400 \(2000 examples over 5 clients\)",
        ),
        ("dirichlet-client", {"min_size": 0}, "min_size: got .*, expected 1 to 400"),
        ("shards", {"classes_per_client": 11}, "classes_per_client: got 11, expected 1 to 10, the number of classes"),
        ("shards", {"classes_per_client": 1}, "got 1 × 5, expected at least 10, the number of classes"),
        ("iid", {"seed": -1}, "seed: got -1, expected a non-negative integer"),
        ("iid", {"labels": np.zeros((3, 2), int)}, r"labels: got .*, expected integers of shape \[N\]"),
        ("iid", {"labels": np.zeros(10)}, "labels: got .*, expected integers"),
        ("natural", {}, "needs a groups column"),
        ("natural", {"groups": np.zeros(3, int)}, "got 3 for 2000 examples, expected one entry per example"),
        (
            "natural",
            {"groups": np.arange(2000) % 7},
            "num_clients: got 5, expected the number of groups, 7, for 'natural'",
        ),
        ("natural", {"groups": np.zeros((2000, 1), int)}, r"groups: got .*, expected shape \[N\]"),
    ],
)
def test_faults_are_named(name, changes, message):
    arguments = {"labels": BALANCED, "num_clients": 5, "seed": 0} | changes
    with pytest.raises(ValueError, match=message) as caught:
        split(name, **arguments)
    assert "\n" not in str(caught.value)


def test_natural_by_name():
    groups = np.arange(2000) % 7
    for num_clients in (7, None):
        parts = split("natural", BALANCED, num_clients, seed=0, groups=groups)
        assert [len(set(groups[part])) for part in parts] == [1] * 7


def test_label_counts_count():
    labels = np.array([0, 2, 2, 1, 0])
    counts = label_counts(labels, [np.array([0, 1]), np.array([2, 3, 4])], 4)
    np.testing.assert_array_equal(counts, [[1, 0, 1, 0], [1, 1, 1, 0]])
