"""Flower's messages and small nodes for tests that have no network; they need `flwr`."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flwr.app import ConfigRecord, Context, Error, Message, Metadata, RecordDict
from samples import LAYERS, START, about, payload, resealed

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.federate import _one_shot as one_shot
from fedfisher_jax.payload import plan
from fedfisher_jax.silos import flower

sys.path.append(str(Path(__file__).parent / "hostile_flower"))
from hostile_flower import task  # noqa: E402


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


def equal(record, params):
    for ours, theirs in zip(jax.tree.leaves(flower.from_record(record, params)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
