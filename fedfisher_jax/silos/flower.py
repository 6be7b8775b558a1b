"""A live federation with Flower (`pip install 'fedfisher-jax[flower]'`): payload files as messages, any rule's merge.

`client_app` makes a silo's ClientApp, `FedFisher` is the server's strategy, for one round or several. What nodes send
is checked like a payload file; a node whose payload is refused, that fails or does not answer in time is left out, and
named.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import (  # pyright: ignore[reportMissingImports]
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]

from .. import payload
from .._metrics import as_numbers, evaluate
from .._trees import stack
from ..curvature import Layer
from ..federate import LocalTraining, RunKeys, merge_clients, run_keys
from ..merge import Rule, exchanges
from ..merge._rule import require_taken
from ..payload import Limits, PayloadError
from ._silo import silo_cohort, train_and_measure

PyTree = Any
LOG = logging.getLogger("flwr")
STYPE = "fedfisher.payload"  # how the array that carries a payload is written


class Silo(NamedTuple):
    """A node's part: what it trains, measures and sends.

    Attributes:
        training: model, likelihood and settings of local training.
        rule: what is measured; the server's must take it.
        x: [n, ...] the node's examples.
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


def to_record(params: PyTree) -> ArrayRecord:
    """A parameter tree as Flower's arrays, named by their paths."""
    described = payload.leaves(params)
    arrays = {leaf.path: Array(np.asarray(x)) for leaf, x in zip(described, jax.tree.leaves(params), strict=True)}
    return ArrayRecord(arrays)


def from_record(record: ArrayRecord, like: PyTree) -> PyTree:
    """The inverse of `to_record`.

    Raises:
        ValueError: other names, shapes or types than those of `like`, or numbers that are not finite.
    """
    described = payload.leaves(like)
    if set(record) != {leaf.path for leaf in described}:
        raise ValueError(f"arrays: got {', '.join(record)}, expected {', '.join(leaf.path for leaf in described)}")
    values = []
    for leaf in described:
        value = record[leaf.path].numpy()
        if value.shape != leaf.shape or value.dtype.name != leaf.dtype or not np.isfinite(value).all():
            given = f"{value.dtype.name} {value.shape}"
            raise ValueError(f"arrays: {leaf.path}: got {given}, expected finite {leaf.dtype} {leaf.shape}")
        values.append(jnp.asarray(value))
    return jax.tree.structure(like).unflatten(values)


def round_keys(seed: int, number: int) -> RunKeys:
    """The keys of a round, from 1; those of the first are the keys of `fedfisher run`."""
    keys = run_keys(seed)
    return keys if number == 1 else RunKeys(*(jax.random.fold_in(key, number - 1) for key in keys))


def exchange_of(rule: Rule, number: int) -> tuple[Rule, bool]:
    """The exchange that Flower's round `number`, from 1, is, and whether clients train in it.

    A rule made by `then` takes as many of Flower's rounds as it has parts; clients train in the first of them alone.
    """
    parts = exchanges(rule)
    return parts[(number - 1) % len(parts)], (number - 1) % len(parts) == 0


def client_app(silo_of: Callable[[Context], Silo]) -> ClientApp:
    """A ClientApp that trains, measures and sends a payload, and evaluates the model that it is sent.

    Args:
        silo_of: context → the node's `Silo`; `context.node_config` has what the node was started with.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = silo_of(context)
        start = from_record(message.content.array_records["arrays"], node.like)
        number = message.content.config_records["config"]["server-round"]
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"config: server-round: got {number!r}, expected a number from 1")
        rule, first = exchange_of(node.rule, number)
        mine = silo_cohort(node.x, node.y, node.number, node.training.batch_size)
        training = node.training if first and rule.trains else None
        sent = train_and_measure(training, rule, start, mine, round_keys(node.seed, number))
        about = payload.About(
            rule=rule.name,
            likelihood=node.training.likelihood.name,
            start=payload.fingerprint(start),
            kind=None if sent.kind is None else sent.kind.name,
            silo=node.number,
            compression="none" if node.plan is None else "planned",
        )
        data = payload.dumps(sent, about, None if node.plan is None else node.plan(sent, about))
        carried = ArrayRecord({"payload": Array("uint8", (len(data),), STYPE, data)})
        metrics = MetricRecord({"num-examples": len(node.x), "bits": 8 * len(data)})
        return Message(content=RecordDict({"arrays": carried, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        node = silo_of(context)
        params = from_record(message.content.array_records["arrays"], node.like)
        found = evaluate(
            node.training.apply, node.training.likelihood, params, jnp.asarray(node.x), jnp.asarray(node.y)
        )
        metrics = MetricRecord({"num-examples": len(node.x), **as_numbers(found)})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    return app


class FedFisher(FedAvg):
    """Flower's sampling of nodes, and a merge by one of our rules in place of its average."""

    def __init__(
        self,
        rule: Rule,
        like: PyTree,
        *,
        layers: tuple[Layer, ...] | None = None,
        limits: Limits = Limits(),
        quorum: int = 1,
        fraction_evaluate: float = 0.0,
        **options: Any,
    ) -> None:
        """Make the strategy.

        Args:
            rule: the merge rule: additive ones, Kronecker, any that takes payloads of files.
            like: parameters of the model, or their shapes.
            layers: the model's, from `capture`; payloads' layers must be among them.
            limits: caps on payloads.
            quorum: fewest payloads that are merged; with fewer a round leaves the model as it was.
            fraction_evaluate: share of nodes that evaluate after each round.
            options: options of Flower's FedAvg: fraction_train, min_train_nodes, min_available_nodes …

        Raises:
            ValueError: quorum below 1.
        """
        if quorum < 1:
            raise ValueError(f"quorum: got {quorum}, expected at least 1")
        super().__init__(fraction_evaluate=fraction_evaluate, **options)
        self.rule, self.like, self.layers, self.limits, self.quorum = rule, like, layers, limits, quorum
        self.start_of_round: PyTree = None
        self.asked: list[Metadata] = []  # of this round's messages; sending fills in their identifiers
        self.left_out: dict[int, dict[int, str]] = {}  # round → node → why
        self.diagnostics: dict[int, dict[str, Any]] = {}  # round → of the solve

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As in FedAvg; notes who is asked and what from."""
        self.start_of_round = from_record(arrays, self.like)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.asked = [message.metadata for message in messages]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the payloads of those who answered with a sound one; without a quorum the model stays as it was."""
        rule, _ = exchange_of(self.rule, server_round)
        asked = {metadata.message_id: metadata.dst_node_id for metadata in self.asked}
        left_out = {node: f"node {node}: no answer in time" for node in asked.values()}
        sent: dict[int, tuple[Any, payload.Header]] = {}
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):  # not in order of arrival
            node = asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)  # the server may answer
            left_out.pop(node, None)  # for a node that is gone
            try:
                sent[node] = self._sent(reply, rule, f"node {node}")
            except PayloadError as error:
                left_out[node] = str(error)
        left_out |= _strangers({node: header for node, (_, header) in sent.items()})
        opened: dict[int, tuple[Any, payload.Header]] = {}
        for node, (data, _) in sent.items():  # nothing is decoded before headers are compared
            if node not in left_out:
                try:
                    pair = payload.loads(data, self.start_of_round, **self._checks(f"node {node}"))
                    require_taken(rule, pair[0])
                    opened[node] = pair
                except ValueError as error:
                    left_out[node] = str(error) if isinstance(error, PayloadError) else f"node {node}: {error}"
        left_out |= _doubles({node: header for node, (_, header) in opened.items()})
        self.left_out[server_round] = left_out
        for reason in left_out.values():
            LOG.warning("round %s: left out %s", server_round, reason)
        kept = (pair for node, pair in opened.items() if node not in left_out)
        found = sorted(kept, key=lambda pair: pair[1].about.silo)
        if len(found) < self.quorum:
            LOG.warning("round %s: %s payloads, fewer than %s: no merge", server_round, len(found), self.quorum)
            return None, None
        stacked = stack([sent for sent, _ in found])
        try:
            merged = merge_clients(rule, stacked, self.start_of_round)
        except ValueError as error:
            LOG.warning("round %s: %s: no merge", server_round, error)
            return None, None
        if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(merged.params)):
            LOG.warning("round %s: the merged model is not finite: no merge", server_round)
            return None, None
        self.diagnostics[server_round] = merged.diagnostics
        metrics = MetricRecord({"payloads": len(found), "bits": sum(header.bits for _, header in found)})
        for name, value in merged.diagnostics.items():
            if jnp.ndim(value) == 0:
                metrics[name] = float(value)
        return to_record(merged.params), metrics

    def summary(self) -> None:
        """Log the settings."""
        LOG.info("\t├──> Rule: %s, quorum %s", self.rule.name, self.quorum)
        super().summary()

    def _checks(self, who: str) -> dict[str, Any]:
        return {"layers": self.layers, "limits": self.limits, "file": who}

    def _sent(self, reply: Message, rule: Rule, who: str) -> tuple[bytes, payload.Header]:
        """A message's payload file, and what it says of itself."""
        if not reply.has_content():
            reason = reply.error.reason if reply.has_error() else None
            raise PayloadError(f"{who}: {' '.join((reason or 'failed').split())[-300:]}")
        carried = reply.content.array_records.get("arrays", ArrayRecord()).get("payload")
        if carried is None or carried.stype != STYPE:
            raise PayloadError(f"{who}: no payload in its message: expected an array of type {STYPE!r}")
        header = payload.header_of(carried.data, self.start_of_round, **self._checks(who))
        if header.about.rule != rule.name:
            raise PayloadError(f"{who}: rule: measured for {header.about.rule[:40]!r}, merged by {rule.name}")
        return carried.data, header


def _strangers(headers: dict[int, payload.Header]) -> dict[int, str]:
    """Nodes that cannot be merged with the others, and why: another kind of payload."""
    kinds = {
        node: (header.about.likelihood, header.about.kind, header.structure, header.static, header.fisher_dtype)
        for node, header in headers.items()
    }
    usual = Counter(kinds.values()).most_common(1)[0][0] if kinds else None
    return {node: f"node {node}: another kind of payload than most" for node in kinds if kinds[node] != usual}


def _doubles(headers: dict[int, payload.Header]) -> dict[int, str]:
    """Nodes whose silo's number is taken."""
    found, numbers = {}, {}
    for node, header in headers.items():
        first = numbers.setdefault(header.about.silo, node)
        if first != node:
            found[node] = f"node {node}: silo: number {header.about.silo} is that of node {first}, too"
    return found
