"""A node of a live federation: Flower's ClientApp that trains, measures and sends payload files, see `flower`."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import (  # pyright: ignore[reportMissingImports]
    Array,
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from .. import payload
from .._metrics import as_numbers, evaluate
from .._trees import arrays, count_rows
from ..federate import LocalTraining, RunKeys, run_keys
from ..merge import Payload, Rule, exchanges
from ..merge._sent import model_of, sent_like
from ._silo import silo_cohort, train_and_measure

PyTree = Any
LOG = logging.getLogger("flwr")
STYPE = "fedfisher.payload"  # how the array that carries a payload is written


class Silo(NamedTuple):
    """A node's part: what it trains, measures and sends.

    Attributes:
        training: model, likelihood and settings of local training.
        rule: what is measured; the server's must take it.
        x: [n, ...] the node's examples: an array, or a dictionary or tuple of arrays.
        y: [n, ...].
        number: the silo's own, different ones in a federation; random draws depend on it.
        like: parameters of the model, or their shapes: the tree to train.
        seed: seed of all rounds, the same for all nodes.
        plan: (payload, about) → how its entries are encoded; None sends them as they are.
    """

    training: LocalTraining
    rule: Rule
    x: Any
    y: Any
    number: int
    like: PyTree
    seed: int = 0
    plan: Callable[[Any, payload.About], payload.Plan] | None = None


class Region(NamedTuple):
    """A node that answers for silos of its own, where the server takes regions.

    Attributes:
        like: parameters of the model, or their shapes.
        folded: (start, Flower's round from 1) → the bytes of a region file (`fedfisher fold`) of its silos' payloads,
            which were measured from that start.
    """

    like: PyTree
    folded: Callable[[PyTree, int], bytes]


def to_record(params: PyTree) -> ArrayRecord:
    """Write a parameter tree as Flower's arrays, named by their paths."""
    described = payload.leaves(params)
    arrays = {leaf.path: Array(np.asarray(x)) for leaf, x in zip(described, jax.tree.leaves(params), strict=True)}
    return ArrayRecord(arrays)


def from_record(record: ArrayRecord, like: PyTree) -> PyTree:
    """Read what `to_record` wrote: parameters like these, or what a rule gives between its exchanges.

    Raises:
        ValueError: other names, shapes or types than those of `like`, or numbers that are not finite.
    """
    found = {name: array.numpy() for name, array in record.items()}
    like = sent_like(found, like)
    described = payload.leaves(like)
    if set(record) != {leaf.path for leaf in described}:
        raise ValueError(f"arrays: got {', '.join(record)}, expected {', '.join(leaf.path for leaf in described)}")
    values = []
    for leaf in described:
        value = found[leaf.path]
        if value.shape != leaf.shape or value.dtype.name != leaf.dtype or not np.isfinite(value).all():
            given = f"{value.dtype.name} {value.shape}"
            raise ValueError(f"arrays: {leaf.path}: got {given}, expected finite {leaf.dtype} {leaf.shape}")
        values.append(jnp.asarray(value))
    return jax.tree.structure(like).unflatten(values)


def round_keys(seed: int, number: int) -> RunKeys:
    """Make the keys of a round, from 1; those of the first are the keys of `fedfisher run`."""
    keys = run_keys(seed)
    return keys if number == 1 else RunKeys(*(jax.random.fold_in(key, number - 1) for key in keys))


def exchange_of(rule: Rule, number: int) -> tuple[Rule, bool]:
    """Tell which exchange Flower's round `number`, from 1, is, and whether clients train in it.

    A rule made by `then` takes as many of Flower's rounds as it has parts; clients train in the first of them alone.
    """
    parts = exchanges(rule)
    return parts[(number - 1) % len(parts)], (number - 1) % len(parts) == 0


def client_app(silo_of: Callable[[Context], Silo | Region]) -> ClientApp:
    """Make a ClientApp that trains, measures and sends a payload, and evaluates the model that it is sent.

    What fails in it is told by the node's own log; the server is told the error's class.

    Args:
        silo_of: context → the node's `Silo`, or `Region`; `context.node_config` has what the node was started with.
    """
    app = ClientApp()

    @app.train()
    @keeping_its_errors
    def train(message: Message, context: Context) -> Message:
        node = silo_of(context)
        start, number = start_of(message, node.like), round_of(message)
        data = node.folded(start, number) if isinstance(node, Region) else _trained(node, start, number)
        told = {} if isinstance(node, Region) else {"num-examples": count_rows("x", arrays("x", node.x))}
        return answered(message, data, told)

    @app.evaluate()
    @keeping_its_errors
    def score(message: Message, context: Context) -> Message:
        node = silo_of(context)
        if isinstance(node, Region):
            raise ValueError("region: a node that answers for silos has no examples here to evaluate on")
        params, x = model_of(start_of(message, node.like)), arrays("x", node.x)
        found = evaluate(node.training.apply, node.training.likelihood, params, x, jnp.asarray(node.y))
        metrics = MetricRecord({"num-examples": count_rows("x", x), **as_numbers(found)})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start_of(message: Message, like: PyTree) -> PyTree:
    """Read what a message asks to train from, as `from_record` does."""
    return from_record(message.content.array_records["arrays"], like)


def round_of(message: Message) -> int:
    """Read Flower's round of a message.

    Raises:
        ValueError: it is none.
    """
    number = message.content.config_records["config"]["server-round"]
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"config: server-round: got {number!r}, expected a number from 1")
    return number


def answered(message: Message, data: bytes, numbers: dict[str, int]) -> Message:
    """Answer with the bytes of a payload, or of whatever the server reads in its place."""
    carried = ArrayRecord({"payload": Array("uint8", (len(data),), STYPE, data)})
    metrics = MetricRecord({**numbers, "bits": 8 * len(data)})
    return Message(content=RecordDict({"arrays": carried, "metrics": metrics}), reply_to=message)


def _trained(node: Silo, start: PyTree, number: int) -> bytes:
    """The payload file of a silo that trains and measures in Flower's round `number`."""
    rule, first = exchange_of(node.rule, number)
    sent = trained(node, rule, start, number, first)
    about = about_of(node, rule, start, sent)
    return payload.dumps(sent, about, None if node.plan is None else node.plan(sent, about))


def trained(node: Silo, rule: Rule, start: PyTree, number: int, first: bool) -> Payload:
    """Train, if this exchange is the first of its rule, and measure."""
    mine = silo_cohort(node.x, node.y, node.number, node.training.batch_size)
    training = node.training if first and rule.trains else None
    return train_and_measure(training, rule, start, mine, round_keys(node.seed, number))


def about_of(node: Silo, rule: Rule, start: PyTree, sent: Payload) -> payload.About:
    """Write what a payload file of this node says of itself."""
    return payload.About(
        rule=rule.name,
        likelihood=node.training.likelihood.name,
        start=payload.fingerprint(start),
        kind=None if sent.kind is None else sent.kind.name,
        silo=node.number,
        compression="none" if node.plan is None else "planned",
    )


def keeping_its_errors(answer: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """Log what fails here, at the node; the server is told the error's class alone, no paths and no values."""

    @functools.wraps(answer)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return answer(message, context)
        except Exception as error:
            LOG.exception("this node failed")
            raise RuntimeError(f"the node failed ({type(error).__name__}); its own log says why") from None

    return guarded
