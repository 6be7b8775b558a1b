"""Nodes of a live federation that answer for silos of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flwr", reason="a live federation needs pip install 'fedfisher-jax[flower]'")

from flower_messages import answer, asking, diagonal_of, equal, of_task, reply, sent_by, strategy, task  # noqa: E402
from hostile_flower.crafted import carrying  # noqa: E402
from samples import START, payload, resealed  # noqa: E402

from fedfisher_jax import payload as files  # noqa: E402
from fedfisher_jax.federate import _simulate as simulate  # noqa: E402
from fedfisher_jax.merge import _one_by_one as one_by_one  # noqa: E402
from fedfisher_jax.payload import _container as container  # noqa: E402
from fedfisher_jax.payload import _products_file as products_file  # noqa: E402
from fedfisher_jax.payload import _region as region  # noqa: E402
from fedfisher_jax.silos import flower  # noqa: E402
from fedfisher_jax.solve._passes import objective_by_passes  # noqa: E402
from fedfisher_jax.solve._products import recompressed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def region_of(rule, start, sent, rank=None, lifted=""):
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
    return region.pack_sums(sums, stored[0][0], rule.name, silos, False, lifted)


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


def test_a_region_by_other_options_is_left_out():
    """Where contributions depend on options, sums of others do not add up."""
    said = f"{task.RULE.name},option=1"
    own = [diagonal_of(silo) for silo in range(2)]
    sent = {8: region_of(task.RULE, task.START, own[:1], lifted=said), 9: region_of(task.RULE, task.START, own[1:])}
    for regions, kept, words in ((True, 9, f"holds a sum by {said}, merged by "), (said, 8, f"merged by {said} (reg")):
        made = of_task(regions=regions)
        made.asked = [asking(node) for node in sent]
        _, metrics = made.aggregate_train(1, [reply(node, carrying(data)) for node, data in sent.items()])
        assert dict(metrics)["payloads"] == 1 and set(made.left_out[1]) == {8, 9} - {kept}
        assert words in made.left_out[1][17 - kept]


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
