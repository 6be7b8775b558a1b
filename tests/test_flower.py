"""A live federation's server without a network; test_flower_live.py has the processes."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flwr", reason="a live federation needs pip install 'fedfisher-jax[flower]'")

from flower_messages import asking, diagonal_of, indefinite, nothing, of_task, reply, sent_by, strategy, task  # noqa: E402
from flwr import serverapp  # noqa: E402
from flwr.app import Array, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict  # noqa: E402
from hostile_flower.crafted import CRAFTED, SECRET, carrying  # noqa: E402
from samples import LAYERS, START, about, payload, resealed  # noqa: E402

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax import payload as files  # noqa: E402
from fedfisher_jax.federate import _simulate as simulate  # noqa: E402
from fedfisher_jax.silos import _flower_server, flower  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_arrays_round_trip_and_are_checked():
    record = flower.to_record(START)
    got = flower.from_record(record, START)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(START), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    record["scale"] = Array(np.full(5, np.nan, np.float32))
    with pytest.raises(ValueError, match="arrays: scale: got"):
        flower.from_record(record, START)
    del record["scale"]
    with pytest.raises(ValueError, match="arrays: got"):
        flower.from_record(record, START)


def test_bad_nodes_are_left_out_and_named_and_the_rest_is_merged(caplog):
    good = [reply(10 + silo, carrying(sent_by(silo))) for silo in (2, 0, 1)]
    flipped = sent_by(3)[:-1] + bytes([sent_by(3)[-1] ^ 1])
    bad = {
        9: (carrying(indefinite("kronecker", 0)), "semi-definite"),  # takes no number from node 10
        19: (carrying(indefinite("full", 8)), "another kind of payload"),  # known before it is decoded
        20: (Error(5, SECRET), "it is gone"),
        21: (Error(0, SECRET), "failed"),
        22: (carrying(flipped), "sha256"),
        23: (RecordDict(), "no payload"),
        24: (RecordDict({"arrays": ConfigRecord({"payload": b"x"})}), "no payload"),
        25: (carrying(sent_by(4), "numpy.ndarray"), "no payload"),
        26: (carrying(sent_by(5, start="0" * 64)), "start"),
        27: (carrying(sent_by(6, rule="fedavg")), "rule"),
        28: (carrying(sent_by(7, kind="empirical")), "another kind of payload"),
        29: (carrying(sent_by(1)), "silo: number 1 is that of node 11"),
    }
    made = strategy()
    made.asked = [asking(node) for node in (10, 11, 12, *bad, 30)]
    answers = [reply(node, content, by=1 if node == 20 else None) for node, (content, _) in bad.items()]
    record, metrics = made.aggregate_train(1, [*answers[5:], *good, *answers[:5]])
    reasons = {node: words for node, (_, words) in bad.items()} | {30: "no answer in time"}
    assert set(made.left_out[1]) == set(reasons)
    assert SECRET not in caplog.text and "node 30: no answer" in caplog.text
    for node, words in reasons.items():
        assert f"node {node}: " in made.left_out[1][node] and words in made.left_out[1][node]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(payload("kronecker", silo) for silo in range(3)))
    expected = simulate.merge_clients(made.rule, stacked).params
    for ours, theirs in zip(jax.tree.leaves(flower.from_record(record, START)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert metrics["payloads"] == 3


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_statistics_that_the_servers_rule_cannot_merge_are_left_out_even_where_all_nodes_agree(kind):
    made = flower.FedFisher(ff.fedfisher(nothing, ff.categorical(), structure="diagonal"), START, layers=LAYERS)
    made.start_of_round = START
    structure = "kronecker" if kind == "exact" else "diagonal"
    said = {"rule": "fedfisher-diag", "kind": kind}
    sent = [files.dumps(payload(structure, silo), about(structure, silo, **said)) for silo in range(2)]
    made.asked = [asking(10 + silo) for silo in range(2)]
    assert made.aggregate_train(1, [reply(10 + silo, carrying(data)) for silo, data in enumerate(sent)]) == (None, None)
    held = f"the payload holds {structure} ({kind})"
    for node in (10, 11):
        assert f"node {node}: rule: fedfisher-diag takes " in made.left_out[1][node] and held in made.left_out[1][node]


@pytest.mark.parametrize("nodes", [(10, 11, 12, 13), (13, 12, 11, 10), (10, 13)], ids=["last", "first", "one other"])
@pytest.mark.parametrize("name", [name for name in CRAFTED if name not in ("an exception", "a crash")])
def test_a_crafted_reply_is_left_out_and_named_and_the_rest_is_merged(name, nodes):
    *honest, culprit = nodes
    made, kept = of_task(), {node: diagonal_of(number) for number, node in enumerate(honest)}
    made.asked = [asking(node) for node in nodes]
    sent = [reply(node, carrying(data)) for node, data in kept.items()]
    record, metrics = made.aggregate_train(1, [*sent, reply(culprit, CRAFTED[name](diagonal_of(7)))])
    assert set(made.left_out[1]) == {culprit} and f"node {culprit}: " in made.left_out[1][culprit]
    assert metrics["payloads"] == len(honest)
    alone, _ = of_task().aggregate_train(1, sent)
    for path, array in record.items():
        np.testing.assert_array_equal(array.numpy(), alone[path].numpy())


def test_numbers_that_are_too_large_together_leave_out_the_largest():
    """Each payload alone can be merged: the sum of their Fishers is beyond the type, here one that ends early."""

    def narrow(summary, start):
        merged = task.RULE.solve(summary, start)
        beyond = sum(jnp.sum(leaf > 1.5e32) for leaf in jax.tree.leaves(summary["fisher"]))
        return merged._replace(params=jax.tree.map(lambda leaf: jnp.where(beyond, jnp.inf, leaf), merged.params))

    sent = {10 + silo: resealed(diagonal_of(silo), fisher_of(scale)) for silo, scale in enumerate((1.0, 3e30, 2e30))}
    made = flower.FedFisher(task.RULE._replace(solve=narrow), task.START)
    made.start_of_round = task.START
    _, metrics = made.aggregate_train(1, [reply(node, carrying(data)) for node, data in sent.items()])
    assert set(made.left_out[1]) == {11} and "the largest numbers" in made.left_out[1][11]
    assert metrics["payloads"] == 2


def fisher_of(value):
    def change(header, arrays):
        arrays.update({name: np.full_like(a, value) for name, a in arrays.items() if name.startswith("fisher/")})

    return change


def test_where_no_payload_can_be_merged_the_server_goes_on():
    broken = task.RULE._replace(solve=lambda summary, start: 1 / 0)
    made = flower.FedFisher(broken, task.START)
    made.start_of_round = task.START
    sent = [reply(10 + silo, carrying(diagonal_of(silo))) for silo in range(3)]
    assert made.aggregate_train(1, sent) == (None, None)
    assert set(made.left_out[1]) == {10, 11, 12} and "ZeroDivisionError" in made.left_out[1][10]


def test_a_model_is_handed_over_after_every_round_that_has_one():
    kept = {}
    made = of_task(done=kept.__setitem__)
    record, _ = made.aggregate_train(3, [reply(10, carrying(diagonal_of(0)))])
    made.aggregate_train(4, [])
    assert set(kept) == {3}
    for ours, theirs in zip(
        jax.tree.leaves(kept[3]), jax.tree.leaves(flower.from_record(record, task.START)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


class Grid:
    """Nodes that are connected, one list for every time that the server asks."""

    def __init__(self, *there):
        self.there = list(there)

    def get_node_ids(self):
        return self.there.pop(0) if len(self.there) > 1 else self.there[0]


serverapp.Grid.register(Grid)


def asked_by(made, kind, grid, number=2):
    call = made.configure_train if kind == "train" else made.configure_evaluate
    messages = call(number, flower.to_record(task.START), ConfigRecord(), grid)
    assert all(message.metadata.message_type == kind for message in messages)
    assert all(message.content["config"]["server-round"] == number for message in messages)
    return sorted(message.metadata.dst_node_id for message in messages)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_round_waits_for_its_nodes_and_then_goes_on_with_who_is_there(kind, caplog, monkeypatch):
    def message(content, message_type, dst_node_id):  # Flower's own asks which run this process is
        metadata = Metadata(1, "", 1, dst_node_id, "", "", time.time(), 60.0, message_type)
        return Message(metadata=metadata, content=content)

    monkeypatch.setattr(_flower_server, "Message", message)
    least = {"min_train_nodes": 3, "min_evaluate_nodes": 3, "min_available_nodes": 3, "fraction_evaluate": 1.0}
    assert asked_by(of_task(wait=60.0, **least), kind, Grid([1], [1, 2], [1, 2, 3])) == [1, 2, 3]
    assert "nodes of 3" not in caplog.text
    assert asked_by(of_task(wait=0.01, **least), kind, Grid([1, 2])) == [1, 2]
    assert "round 2: 2 nodes of 3 after 0.01 s" in caplog.text
    assert asked_by(of_task(wait=0.0, **least), kind, Grid([])) == []
    few = of_task(wait=0.0, quorum=3, **least)
    assert asked_by(few, "train", Grid([1, 2])) == [] and few.aggregate_train(2, []) == (None, None)
    half = least | {"min_train_nodes": 1, "min_evaluate_nodes": 1, "fraction_train": 0.5, "fraction_evaluate": 0.5}
    assert len(asked_by(of_task(**half), kind, Grid(list(range(8))))) == 4
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="wait: got"):
            of_task(wait=wrong)


def scores(**values):
    return RecordDict({"metrics": MetricRecord({"num-examples": 10, "loss": 2.0, "accuracy": 0.5} | values)})


def test_bad_scores_are_left_out_and_named_and_the_rest_is_averaged(caplog):
    odd = {
        20: scores(loss=float("nan")),
        21: scores(**{"num-examples": 0}),
        22: scores(**{"num-examples": 2**60}),
        23: scores(loss=[1.0, 2.0]),
        24: scores(more=1.0),
        25: RecordDict(),
        26: RecordDict({"metrics": MetricRecord({"loss": 1.0})}),
        27: RecordDict({"other": MetricRecord({"num-examples": 10})}),
        28: RecordDict({"metrics": ConfigRecord({"num-examples": 10})}),
        29: Error(2, SECRET),
    }
    good = {10: scores(), 11: scores(loss=5.0, accuracy=1.0, **{"num-examples": 20})}
    found = of_task(fraction_evaluate=1.0).aggregate_evaluate(3, [reply(n, c) for n, c in (odd | good).items()])
    assert dict(found) == pytest.approx({"loss": 4.0, "accuracy": 5 / 6})
    for node in odd:
        assert f"round 3: not scored by node {node}: " in caplog.text
    assert SECRET not in caplog.text
    assert of_task(fraction_evaluate=1.0).aggregate_evaluate(3, []) is None


def test_too_few_payloads_leave_the_model_as_it_is():
    assert strategy(quorum=2).aggregate_train(1, [reply(1, carrying(sent_by(0)))]) == (None, None)
    assert strategy().aggregate_train(1, []) == (None, None)
    with pytest.raises(ValueError, match="quorum"):
        strategy(quorum=0)


def test_rounds_have_their_own_keys_and_the_first_those_of_a_run():
    data = [np.asarray(jax.random.key_data(key)) for number in (1, 2, 3) for key in flower.round_keys(4, number)]
    assert len({row.tobytes() for row in data}) == 12
