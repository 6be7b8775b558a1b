"""A node of a live federation without a network: what it answers to Flower's messages."""

import dataclasses
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flwr", reason="a live federation needs pip install 'fedfisher-jax[flower]'")

from flower_messages import answer, asking, reply, small_silo  # noqa: E402
from flwr.app import ArrayRecord, Context, Message, Metadata, RecordDict  # noqa: E402
from hostile_flower.crafted import SECRET, carrying  # noqa: E402

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax import payload as files  # noqa: E402
from fedfisher_jax.payload import plan  # noqa: E402
from fedfisher_jax.silos import flower  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_node_trains_with_the_keys_of_its_round_and_number():
    node, key = small_silo(), flower.round_keys(4, 2)
    sent = answer(node, "train")
    got, header = files.loads(sent["arrays"]["payload"].data, node.like)
    data = ff.examples(node.x, node.y)
    trained = ff.train(node.training, node.like, data, jax.random.fold_in(key.train, 7)).params
    expected = node.rule.measure(ff.Update(trained, node.like), data, jax.random.fold_in(key.measure, 7))
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert header.about.silo == 7 and header.about.rule == "fedfisher-diag" and header.about.kind == "exact"
    assert dict(sent["metrics"]) == {"num-examples": 40, "bits": header.bits}


def test_a_node_compresses_by_its_plan():
    whole = answer(small_silo(), "train")["metrics"]["bits"]
    node = small_silo(partial(plan.fit, budget=1.0))
    size = sum(leaf.size for leaf in jax.tree.leaves(node.like))
    found = answer(node, "train")
    assert found["metrics"]["bits"] <= 32 * size < whole
    header = files.loads(found["arrays"]["payload"].data, node.like)[1]
    assert header.about.compression == "planned" and header.bits == found["metrics"]["bits"]


def test_a_second_exchange_trains_nothing_and_sends_moments_alone():
    node = small_silo()
    part = ff.merge.recalibrate(node.training.apply, node.training.likelihood)
    node = node._replace(rule=ff.then(ff.fedavg(node.training.apply, node.training.likelihood), part))
    found = answer(node, "train")["arrays"]["payload"].data
    got, header = files.loads(found, node.like)
    assert got.params is None and header.structure == "moments" and header.about.kind == "recalibrate"
    made = flower.FedFisher(node.rule, node.like)
    made.start_of_round, made.asked = node.like, [asking(5)]
    record, metrics = made.aggregate_train(2, [reply(5, carrying(found))])
    data = ff.examples(node.x, node.y)
    expected = ff.merge_payloads(part, [part.measure(ff.Update(None, node.like), data, jax.random.key(0))], node.like)
    merged = flower.from_record(record, node.like)
    for ours, theirs in zip(jax.tree.leaves(merged), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert metrics["features"] == 32


def test_a_step_of_two_exchanges_is_that_of_memory():
    node, seen = small_silo(), []
    rule = ff.merge.natural_gradient(node.training.apply, node.training.likelihood)
    node = node._replace(rule=rule)
    made = flower.FedFisher(rule, node.like, done=lambda number, params: seen.append(params))
    arrays, sent, data = flower.to_record(node.like), node.like, ff.examples(node.x, node.y)
    for number, part in enumerate(ff.merge.exchanges(rule), start=1):
        found = answer(node, "train", number, arrays)["arrays"]["payload"].data
        made.start_of_round, made.asked = flower.from_record(arrays, node.like), [asking(5)]
        arrays, _ = made.aggregate_train(number, [reply(5, carrying(found))])
        sent = ff.merge_payloads(part, [part.measure(ff.Update(None, sent), data, jax.random.key(0))], sent).params
        got = flower.from_record(arrays, node.like)
        assert jax.tree.structure(got) == jax.tree.structure(sent)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(sent), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
        assert set(answer(node, "evaluate", number, arrays)["metrics"]) >= {"accuracy", "loss"}
    assert [jax.tree.structure(one) for one in seen] == [jax.tree.structure(node.like)] * 2  # models alone
    with pytest.raises(RuntimeError, match="ValueError"):  # the first exchange was left out: no directions
        answer(node, "train", 2)


def test_a_node_evaluates_what_it_is_sent():
    node = small_silo()
    found = answer(node, "evaluate")["metrics"]
    logits = np.asarray(node.training.apply(node.like, node.x), np.float64)
    assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == node.y))
    log_sum = np.log(np.exp(logits).sum(1))
    assert found["loss"] == pytest.approx(np.mean(log_sum - logits[np.arange(40), node.y]), rel=1e-5)
    assert found["num-examples"] == 40


def test_a_node_of_several_inputs_counts_its_examples():
    node = small_silo()
    apply = lambda params, x: node.training.apply(params, jnp.concatenate([x["a"], x["b"]], axis=1))  # noqa: E731
    x = {"a": np.asarray(node.x[:, :2]), "b": np.asarray(node.x[:, 2:])}
    training = dataclasses.replace(node.training, apply=apply)
    several = node._replace(x=x, training=training, rule=ff.fedavg(apply, node.training.likelihood))
    assert answer(several, "train")["metrics"]["num-examples"] == 40
    assert dict(answer(several, "evaluate")["metrics"]) == pytest.approx(dict(answer(node, "evaluate")["metrics"]))


@pytest.mark.parametrize(("changes", "words"), [({"number": 0}, "server-round"), ({"arrays": ArrayRecord()}, "arrays")])
def test_a_node_refuses_what_it_cannot_train(changes, words, caplog):
    with pytest.raises(RuntimeError, match=r"the node failed \(ValueError\)"):
        answer(small_silo(), "train", **changes)
    assert words in caplog.text


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_what_a_node_fails_with_stays_there(kind, caplog):
    def secret(context):
        raise FileNotFoundError(SECRET)

    asked = Message(metadata=Metadata(1, "x", 1, 3, "", "", time.time(), 60.0, kind), content=RecordDict())
    with pytest.raises(RuntimeError, match=r"^the node failed \(FileNotFoundError\); its own log says why$") as raised:
        flower.client_app(secret)(asked, Context(1, 3, {}, RecordDict(), {}))
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert SECRET in caplog.text
