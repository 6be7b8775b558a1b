"""Flower's messages, node and strategy without a network; test_flower_live.py has the processes."""

import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import LAYERS, START, about, payload, resealed

flwr = pytest.importorskip("flwr", reason="a live federation needs pip install 'fedfisher-jax[flower]'")

from flwr import serverapp  # noqa: E402
from flwr.app import (  # noqa: E402
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax import payload as files  # noqa: E402
from fedfisher_jax.federate import _one_shot as one_shot  # noqa: E402
from fedfisher_jax.federate import _simulate as simulate  # noqa: E402
from fedfisher_jax.merge import _one_by_one as one_by_one  # noqa: E402
from fedfisher_jax.payload import _container as container  # noqa: E402
from fedfisher_jax.payload import _products_file as products_file  # noqa: E402
from fedfisher_jax.payload import _region as region  # noqa: E402
from fedfisher_jax.payload import plan  # noqa: E402
from fedfisher_jax.silos import _flower_server, flower  # noqa: E402
from fedfisher_jax.solve._passes import objective_by_passes  # noqa: E402
from fedfisher_jax.solve._products import recompressed  # noqa: E402

APP = Path(__file__).parent / "hostile_flower"
sys.path.append(str(APP))
from hostile_flower import task  # noqa: E402
from hostile_flower.crafted import CRAFTED, SECRET, carrying  # noqa: E402

ROOT, BIN, NODES, EPOCHS = Path(__file__).parent.parent, Path(sys.executable).parent, 5, 2
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def nothing(params, x):
    return x


def reply(node, content, by=None):
    """A node's answer, as Flower's grid hands it to a strategy; `by` the server where the node is gone."""
    whence = Metadata(1, "", by or node, 1, f"to {node}", "", time.time(), 60.0, "train")
    named = {"error": content} if isinstance(content, Error) else {"content": content}
    return Message(metadata=whence, **named)


def asking(node):
    return Metadata(1, f"to {node}", 1, node, "", "", time.time(), 60.0, "train")


def strategy(**options):
    made = flower.FedFisher(ff.fedfisher(nothing, ff.categorical()), START, layers=LAYERS, **options)
    made.start_of_round = START
    return made


def sent_by(silo, **changes):
    return files.dumps(payload("kronecker", silo), about("kronecker", silo, **changes))


def indefinite(structure, silo):
    """A file whose first matrix is no Fisher information, which only decoding finds."""

    def change(header, arrays):
        name = next(name for name in arrays if plan.is_matrix(structure, name))
        arrays[name] = -arrays[name]

    return resealed(files.dumps(payload(structure, silo), about(structure, silo, rule="fedfisher-kfac")), change)


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


def diagonal_of(silo, **changes):
    """An honest payload file of the app in tests/hostile_flower."""
    number = ff.Payload(jnp.asarray(40.0), jax.tree.map(lambda leaf: leaf + 0.1 * silo, task.START))
    square = ff.Diagonal(jax.tree.map(lambda leaf: 0.5 + leaf**2, number.params))
    told = {"rule": task.RULE.name, "likelihood": "categorical", "silo": silo, "kind": "exact"} | changes
    return files.dumps(number._replace(statistics=square), files.About(start=files.fingerprint(task.START), **told))


def of_task(**options):
    made = flower.FedFisher(task.RULE, task.START, **options)
    made.start_of_round = task.START
    return made


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


def region_of(rule, start, sent, rank=None):
    """The region file that `fedfisher fold` writes of these payload files, cut to `rank` products where one is told."""
    opened = [files.loads(data, start) for data in sent]
    payloads, silos = [one for one, _ in opened], [region.Silo(header, "0" * 64) for _, header in opened]
    stored = [container.unpack(data, files.Limits(), "payload") for data in sent]
    if rank is not None:
        passes = one_by_one.passes_of(rule, lambda: payloads, start)
        clients = sum(float(one.weight) for one in payloads), objective_by_passes(passes), passes
        return products_file.packed(recompressed([], clients, rank), stored[0][0], rule.name, silos, False)
    if rule.combine == "stack":
        return region.pack_stack(stored, rule.name, False)
    sums = None
    for one in payloads:
        sums = one_by_one.add_payload(rule, sums, one, start)
    return region.pack_sums(sums, stored[0][0], rule.name, silos, False)


def equal(record, params):
    for ours, theirs in zip(jax.tree.leaves(flower.from_record(record, params)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_region_answers_for_its_silos_where_regions_are_taken():
    """The merge is that of the silos' own files to the bit; who says to be another's silo takes nothing from it."""
    own = [diagonal_of(silo) for silo in range(5)]
    north, greedy = region_of(task.RULE, task.START, own[:3]), region_of(task.RULE, task.START, own[3:])
    broken = resealed(greedy, lambda header, arrays: arrays.update({"high/weight": np.asarray(1.0)}))
    answers = {8: greedy, 9: broken, 10: north, 11: own[3]}
    made = of_task(regions=True)
    made.asked = [asking(node) for node in answers]
    record, metrics = made.aggregate_train(1, [reply(node, carrying(data)) for node, data in answers.items()])
    assert set(made.left_out[1]) == {8, 9}
    assert "silo: number 3 is that of node 11" in made.left_out[1][8] and "high/weight: got" in made.left_out[1][9]
    payloads = [files.loads(data, task.START)[0] for data in own[:4]]
    equal(record, one_by_one.merge_one_by_one(task.RULE, payloads, task.START).params)
    assert dict(metrics)["payloads"] == 4 and dict(metrics)["bits"] == 8 * (len(north) + len(own[3]))
    plain = of_task()
    assert plain.aggregate_train(1, [reply(10, carrying(north)), reply(11, carrying(own[3]))])[1]["payloads"] == 1
    assert "node 10: holds a region of 3 silos" in plain.left_out[1][10]


def test_a_region_of_payloads_or_of_products_is_merged_with_a_silo():
    own = [sent_by(silo) for silo in range(3)]
    payloads = [payload("kronecker", silo) for silo in range(3)]
    made = strategy(regions=True)
    record, _ = made.aggregate_train(
        1, [reply(10, carrying(region_of(made.rule, START, own[1:]))), reply(11, carrying(own[0]))]
    )
    expected = simulate.merge_clients(made.rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *payloads)).params
    equal(record, expected)
    cut = region_of(made.rule, START, own[1:], rank=2)  # as many products as silos: nothing is lost
    record, _ = made.aggregate_train(2, [reply(10, carrying(cut)), reply(11, carrying(own[0]))])
    ours = flower.from_record(record, START)
    gap, moved = (
        np.sqrt(sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)))
        for pair in ((ours, expected), (expected, START))
    )
    assert gap < 1e-3 * moved
    adds = strategy(regions=True)
    adds.rule = adds.rule._replace(passes=False)
    assert adds.aggregate_train(1, [reply(10, carrying(cut))]) == (None, None)
    assert "which fedfisher-kfac does not fold into" in adds.left_out[1][10]


def test_a_node_that_answers_for_silos_sends_their_region_and_evaluates_nothing(caplog):
    asked = []
    node = flower.Region(task.START, lambda start, number: asked.append(number) or b"region")
    found = answer(node, "train", number=3)
    assert found["arrays"]["payload"].data == b"region" and asked == [3] and dict(found["metrics"]) == {"bits": 48}
    with pytest.raises(RuntimeError, match="the node failed"):
        answer(node, "evaluate")
    assert "no examples here to evaluate on" in caplog.text


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
    np.testing.assert_array_equal(data[1], jax.random.key_data(one_shot.run_keys(4).train))


def small_silo(encoders=None):
    """A node with 40 examples of a small network."""
    draw, likelihood = np.random.default_rng(0), ff.categorical()
    network = ff.models.build("mlp", (6,), 3)
    start = network.init(one_shot.run_keys(4).init)
    x, y = jnp.asarray(draw.normal(size=(40, 6)), jnp.float32), jnp.asarray(draw.integers(0, 3, 40))
    rule = ff.fedfisher(network.apply, likelihood, structure="diagonal")
    train = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.1), 1, 8)
    return flower.Silo(train, rule, x, y, 7, start, 4, encoders)


def answer(node, kind, number=2, arrays=None):
    """What a ClientApp answers to a message of this kind, without a network."""
    content = {
        "arrays": flower.to_record(node.like) if arrays is None else arrays,
        "config": ConfigRecord({"server-round": number}),
    }
    asked = Message(metadata=Metadata(1, "x", 1, 3, "", "", time.time(), 60.0, kind), content=RecordDict(content))
    return flower.client_app(lambda context: node)(asked, Context(1, 3, {}, RecordDict(), {})).content


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
