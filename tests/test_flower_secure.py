"""Secure sums in a live federation without a network: nodes' ClientApps and the server's strategy."""

import time

import jax
import numpy as np
import pytest

pytest.importorskip("flwr", reason="a live federation needs pip install 'fedfisher-jax[flower]'")
pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from flower_messages import task  # noqa: E402
from flwr import serverapp  # noqa: E402
from flwr.app import ConfigRecord, Context, Error, Message, Metadata, RecordDict  # noqa: E402

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax import payload as files  # noqa: E402
from fedfisher_jax.privacy import _flower_server, example_noise  # noqa: E402
from fedfisher_jax.privacy import flower as secure  # noqa: E402
from fedfisher_jax.silos import _flower_server as plain_server  # noqa: E402
from fedfisher_jax.silos import flower  # noqa: E402

NODES, THRESHOLD, RUN = 5, 3, 7
IDENTITIES = [Ed25519PrivateKey.generate() for _ in range(NODES)]
PUBLIC = tuple(one.public_key().public_bytes_raw() for one in IDENTITIES)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Nodes:
    """Five nodes in this process; each may be silent in steps, and all that the server hears is kept."""

    def __init__(self, folder, rule, silent=(), promised=None):
        self.silent, self.heard, self.parts = set(silent), [], {}
        for number in range(NODES):
            own = folder / str(number)
            own.mkdir()
            silo = flower.Silo(task.TRAINING, rule, *task.examples_of(number), number, task.START, 4)
            part = secure.SecureSilo(silo, IDENTITIES[number], PUBLIC, own, THRESHOLD, promised)
            self.parts[number + 1] = part
        self.app = secure.client_app(lambda context: self.parts[context.node_id])

    def get_node_ids(self):
        return list(self.parts)

    def answer(self, message):
        node = message.metadata.dst_node_id
        return self.app(message, Context(RUN, node, {}, RecordDict(), {}))

    def send_and_receive(self, messages, timeout=None):
        replies = []
        for message in messages:
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if (kind, node) in self.silent:
                continue
            whence = Metadata(RUN, "", node, 1, message.metadata.message_id, "", time.time(), 60.0, kind)
            try:
                content = {"content": self.answer(message).content}
                self.heard.append((kind, node, content["content"]))
            except RuntimeError:
                content = {"error": Error(2, "failed")}
            replies.append(Message(metadata=whence, **content))
        return replies


serverapp.Grid.register(Nodes)


@pytest.fixture(autouse=True)
def messages(monkeypatch):
    """Flower's own message asks which run this process is, and its grid numbers it."""
    numbers = iter(range(10**6))

    def message(content, message_type, dst_node_id):
        metadata = Metadata(RUN, f"m{next(numbers)}", 1, dst_node_id, "", "", time.time(), 60.0, message_type)
        return Message(metadata=metadata, content=content)

    for module in (_flower_server, plain_server):
        monkeypatch.setattr(module, "Message", message)


def one_round(made, nodes, number=1, start=task.START):
    """A round of Flower's loop: the model and the metrics, or nothing."""
    asked = made.configure_train(number, flower.to_record(start), ConfigRecord(), nodes)
    merged, metrics = made.aggregate_train(number, nodes.send_and_receive(asked))
    return (None if merged is None else flower.from_record(merged, task.START)), metrics


def strategy(rule):
    return secure.SecureFedFisher(
        rule, task.START, identities=PUBLIC, threshold=THRESHOLD, min_train_nodes=NODES, wait=0.0
    )


def test_a_secure_recalibrated_average_is_the_plain_one_of_those_who_stayed(tmp_path):
    """One node is lost before it masks in the first sum, another one before it reveals in the second."""
    parts = ff.fedavg(task.NETWORK.apply, task.LIKELIHOOD), ff.merge.recalibrate(task.NETWORK.apply, task.LIKELIHOOD)
    rule, model = ff.then(*parts), task.START
    nodes, made = Nodes(tmp_path, rule), strategy(rule)
    lost = ("query.mask", 4), ("query.reveal", 2)
    for number, (part, stayed) in enumerate(zip(parts, ((1, 2, 3, 5), (1, 2, 3, 4, 5)), strict=True), start=1):
        nodes.silent = {lost[number - 1]}
        got, metrics = one_round(made, nodes, number, model)
        payloads = [plain(nodes.parts[node].silo, model, number) for node in stayed]
        model = ff.merge_payloads(part, payloads, model).params
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(model), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert metrics["payloads"] == len(stayed) and made.totals[number].examples == 40 * len(stayed)
    assert made.left_out == {1: {4: "node 4: no answer in time (mask)"}, 2: {2: "node 2: no answer in time (reveal)"}}
    for kind, _, content in nodes.heard:
        data = content["arrays"]["payload"].data
        assert set(content["metrics"]) == {"bits"} and b"secure sum" in data
        with pytest.raises(files.PayloadError):
            files.loads(data)
    assert {kind for kind, *_ in nodes.heard} == {"train", "query.share", "query.mask", "query.reveal"}


def plain(silo, start, number):
    """The payload that a node without secure sums sends."""
    content = RecordDict({"arrays": flower.to_record(start), "config": ConfigRecord({"server-round": number})})
    asked = Message(metadata=Metadata(RUN, "x", 1, 3, "", "", time.time(), 60.0, "train"), content=content)
    sent = flower.client_app(lambda context: silo)(asked, Context(RUN, 3, {}, RecordDict(), {})).content
    return files.loads(sent["arrays"]["payload"].data, start, start=files.fingerprint(start))[0]


def test_noise_is_divided_among_the_nodes_and_promised_for_one_sum(tmp_path):
    rule = ff.merge.recalibrate(task.NETWORK.apply, task.LIKELIHOOD)
    asked = {"clip_features": 0.5, "trust": "distributed", "sharers": THRESHOLD}
    promised = example_noise.promise(4.0, 1e-5, **asked)
    nodes = Nodes(tmp_path, rule, silent={("query.mask", 4)}, promised=promised)
    made = strategy(rule)
    assert one_round(made, nodes)[0] is not None
    told = made.totals[1].every_example
    assert (told["epsilon"], told["sharers"], told["silos_with_noise"]) == (4.0, THRESHOLD, 4)
    wanted = np.asarray(example_noise.deviations(promised)) * np.sqrt(4 / THRESHOLD)
    np.testing.assert_allclose(list(told["noise"].values()), wanted, rtol=1e-3)
    exact = 0.0
    for node in (1, 2, 3, 5):
        silo = nodes.parts[node].silo
        data = ff.examples(silo.x, silo.y)
        sent = example_noise.exact(example_noise.clipped(rule, promised), task.START, data, jax.random.key(0))
        exact = exact + 40 * np.asarray(sent.statistics.cross, np.float64)
    noise = np.asarray(made.totals[1].sums.high["moments"].cross) - exact
    assert 0.3 * wanted[1] < np.sqrt(np.mean(noise**2)) < 3 * wanted[1]  # 12 numbers: a chance of 1e-6 and less
    assert one_round(made, nodes, 2) == (None, None) and 2 not in made.totals  # every node refuses a second sum
    assert set(made.left_out[2]) == set(nodes.parts)


def test_a_node_answers_to_one_story_also_after_it_was_restarted(tmp_path, caplog):
    rule = ff.fedavg(task.NETWORK.apply, task.LIKELIHOOD)
    nodes = Nodes(tmp_path, rule)
    assert one_round(strategy(rule), nodes)[0] is not None
    content = {"arrays": flower.to_record(task.START), "config": ConfigRecord({"server-round": 1, "stayed": [1, 2, 3]})}
    for kind, words in (("train", "is there already"), ("query.reveal", "client 1 has answered to others before")):
        asked = Message(metadata=Metadata(RUN, "x", 1, 1, "", "", time.time(), 60.0, kind), content=RecordDict(content))
        with pytest.raises(RuntimeError, match="the node failed"):
            nodes.answer(asked)
        assert words in caplog.text


def test_what_has_no_secure_sum_is_refused_before_any_round():
    with pytest.raises(ValueError, match="stacks payloads"):
        strategy(ff.fedfisher(task.NETWORK.apply, task.LIKELIHOOD))
    rule = ff.fedavg(task.NETWORK.apply, task.LIKELIHOOD)
    for options in ({"regions": True}, {"fraction_evaluate": 0.5}):
        with pytest.raises(ValueError, match="expected neither"):
            secure.SecureFedFisher(rule, task.START, identities=PUBLIC, **options)
    with pytest.raises(ValueError, match="threshold: got 2 of 5"):
        secure.SecureFedFisher(rule, task.START, identities=PUBLIC, threshold=2)
