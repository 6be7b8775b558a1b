"""Models of several inputs, and targets that do not count."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.merge.catalogue import named_rule

RNG = np.random.default_rng(0)
TOKENS, MASK = RNG.integers(0, 7, (12, 6)), np.arange(6) < RNG.integers(2, 7, (12, 1))
LABELS = RNG.integers(0, 3, 12)
PARAMS = {"e": jnp.asarray(RNG.normal(size=(7, 4))), "w": jnp.asarray(RNG.normal(size=(4, 3)))}
KEY = jax.random.key(0)


def joined(params, x):
    """The same model with tokens and mask in one array: the reference."""
    tokens, mask = x[..., 0].astype(int), x[..., 1:]
    return (params["e"][tokens] * mask).sum(1) / mask.sum(1) @ params["w"]


def of_dict(params, x):
    return joined(params, jnp.stack([x["tokens"], x["mask"]], -1))


def of_pair(params, x):
    return of_dict(params, {"tokens": x[0], "mask": x[1]})


ONE = np.stack([TOKENS, MASK], -1).astype(float)
WAYS = {"dict": (of_dict, {"tokens": TOKENS, "mask": MASK}), "tuple": (of_pair, (TOKENS, MASK))}


def agree(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_dictionary_or_a_tuple_is_measured_trained_and_evaluated_as_one_array_is(way):
    apply, x = WAYS[way]
    mine, reference = ff.examples(x, LABELS), ff.examples(ONE, LABELS)
    for structure in ("diagonal", "full"):
        found, expected = (
            ff.fisher(f, ff.categorical(), PARAMS, data, structure=structure, batch_size=5)
            for f, data in ((apply, mine), (joined, reference))
        )
        agree(found, expected)
    agree(
        ff.evaluate(apply, ff.categorical(), PARAMS, x, LABELS, batch_size=5),
        ff.evaluate(joined, ff.categorical(), PARAMS, ONE, LABELS),
    )
    parts = [np.arange(5), np.arange(5, 12)]
    training = [ff.LocalTraining(f, ff.categorical(), optax.sgd(0.1), 2, 3) for f in (apply, joined)]
    ours, theirs = (
        ff.federate.train_clients(how, PARAMS, ff.cohort(inputs, LABELS, parts), KEY, strategy="sequential")[0]
        for how, inputs in zip(training, (x, ONE), strict=True)
    )
    agree(ours.params, theirs.params)


def test_layers_are_captured_behind_several_inputs():
    found = ff.capture(of_dict, PARAMS, WAYS["dict"][1])
    assert sorted(layer.weight for layer in found.layers) == [0, 1] and not found.fallback


@pytest.mark.parametrize("way", WAYS)
def test_heads_of_several_inputs_are_those_of_one_array(way):
    def head_of(apply, x):
        rule = ff.merge.recalibrate(apply, ff.categorical())
        sent = rule.measure(ff.Update(None, PARAMS), ff.examples(x, LABELS), KEY)
        file = ff.payload.dumps(sent, ff.payload.About(rule.name, "categorical", ff.payload.fingerprint(PARAMS)))
        return ff.merge_payloads(rule, [ff.payload.loads(file, PARAMS)[0]], PARAMS).params["w"]

    found = head_of(*WAYS[way])
    agree(found, head_of(joined, ONE))
    assert not np.allclose(found, PARAMS["w"])


@pytest.mark.parametrize("way", [*WAYS, "list"])
def test_a_silo_of_several_inputs_has_all_of_its_examples(way):
    x = ONE.tolist() if way == "list" else WAYS[way][1]
    assert ff.silos.silo_cohort(x, LABELS, 0, 10).sizes.tolist() == [12]


@pytest.mark.parametrize("name", ["otfusion", "pfnm", "dense", "pseudo-data"])
def test_rules_that_look_at_one_array_say_so(name):
    rule = named_rule(name, of_dict, ff.categorical())
    with pytest.raises(ValueError, match="got a dict of inputs, expected one array"):
        rule.measure(ff.Update(PARAMS), ff.examples(WAYS["dict"][1], LABELS), KEY)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, "one common number of examples"),
        ({"a": np.zeros((0, 2))}, "at least one example"),
        ((np.zeros((3, 2)), np.zeros(())), "at least one example"),
        ({}, "at least one example"),
    ],
)
def test_inputs_that_do_not_fit_together(x, words):
    with pytest.raises(ValueError, match=words):
        ff.examples(x)
    with pytest.raises(ValueError, match=words):
        ff.cohort(x, np.zeros(3, int), [np.arange(3)])


# ---- targets that do not count


def tagger(params, tokens):
    return jnp.tanh(params["e"][tokens]) @ params["w"]


TAGS = RNG.integers(0, 3, (12, 6))


def tags(fill):
    return np.where(MASK, TAGS, fill)


@pytest.mark.parametrize("fill", [-100, -1])
def test_padded_positions_are_left_out_of_losses_and_accuracies(fill):
    likelihood = ff.categorical(ignore=fill)
    found = ff.evaluate(tagger, likelihood, PARAMS, TOKENS, tags(fill))
    logs = np.asarray(jax.nn.log_softmax(tagger(PARAMS, TOKENS)))
    chosen = np.take_along_axis(logs, TAGS[..., None], -1)[..., 0]
    right = (logs.argmax(-1) == TAGS) & MASK
    assert found.loss == pytest.approx(-(chosen * MASK).sum(1).mean())
    assert found.accuracy == pytest.approx((right.sum(1) / MASK.sum(1)).mean())
    with pytest.raises(ValueError, match="expected 0 to 2 for categorical"):
        ff.evaluate(tagger, ff.categorical(), PARAMS, TOKENS, tags(fill))
    with pytest.raises(ValueError, match="example 0 has no position that counts"):
        ff.evaluate(tagger, likelihood, PARAMS, TOKENS, np.full_like(TAGS, fill))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
def test_padded_positions_are_left_out_of_fishers(structure, kind):
    """As if every example were cut to its length and measured alone."""
    found = ff.fisher(
        tagger, ff.categorical(ignore=-1), PARAMS, ff.examples(TOKENS, tags(-1)), structure=structure, kind=kind
    )
    alone = [
        ff.fishers(
            tagger,
            ff.categorical(),
            PARAMS,
            ff.examples(TOKENS[n : n + 1, :length], TAGS[n : n + 1, :length]),
            structures=(structure,),
            kind=kind,
        )[structure]
        for n, length in enumerate(MASK.sum(1))
    ]
    if structure == "kronecker":  # of a mean of factors, not a mean of products
        agree([jax.tree.leaves(found)], [jax.tree.map(lambda *a: sum(a) / len(a), *map(jax.tree.leaves, alone))])
    else:
        np.testing.assert_allclose(found.to_dense(), sum(f.to_dense() for f in alone) / len(alone), atol=1e-12)


MEASURES = {
    "recalibrate": ff.merge.recalibrate,
    "natural-gradient": ff.merge.natural_gradient,
    "natural-gradient of the loss": partial(ff.merge.natural_gradient, squares=False),
    "regmean": ff.merge.regmean,
    "regmean-kron": ff.merge.regmean_kron,
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MEASURES if name.startswith("natural-gradient")]


@pytest.mark.parametrize("name", ["recalibrate", "regmean", "regmean-kron", *SLOW])
def test_padded_positions_are_left_out_of_what_rules_measure(name):
    """As if the examples, which all end two positions early here, were cut to their length."""
    padded = ff.examples(TOKENS, np.where(np.arange(6) < 4, TAGS, -1))
    cut, sent = ff.examples(TOKENS[:, :4], TAGS[:, :4]), PARAMS
    parts = zip(*(ff.merge.exchanges(MEASURES[name](tagger, ff.categorical(n))) for n in (-1, None)), strict=True)
    for ignoring, plain in parts:
        update = ff.Update(PARAMS if plain.trains else None, sent)
        found, expected = ignoring.measure(update, padded, KEY), plain.measure(update, cut, KEY)
        agree(found, expected)
        sent = ff.merge_payloads(plain, [expected], sent).params


def test_what_is_written_at_padded_positions_changes_no_training():
    trained = []
    for fill in (-1, -100):
        data = ff.examples(TOKENS, tags(fill))
        training = ff.LocalTraining(tagger, ff.categorical(ignore=fill), optax.sgd(0.1), epochs=2, batch_size=5)
        made = ff.train(training, PARAMS, data, KEY)
        trained.append(made.params)
    agree(*trained)


def test_a_class_cannot_be_ignored():
    with pytest.raises(ValueError, match="ignore: got 0, expected a negative number"):
        ff.categorical(ignore=0)
