"""The server of a live federation: Flower's strategy with a merge by one of our rules, see `flower`."""

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flwr.app import (  # pyright: ignore[reportMissingImports]
    ArrayRecord,
    ConfigRecord,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]

from ..curvature import Layer
from ..merge import Rule
from ..merge._sent import model_of
from ..payload import Limits, PayloadError
from ._flower_node import STYPE, exchange_of, from_record, to_record
from ._merge_replies import Outcome, merge_replies

PyTree = Any
LOG = logging.getLogger("flwr")
ERRORS = {2: "its app failed", 5: "it is gone", 8: "its app crashed"}  # Flower's codes; reasons may quote private data


class FedFisher(FedAvg):
    """Flower's options of sampling, and a merge by one of our rules in place of its average."""

    def __init__(
        self,
        rule: Rule,
        like: PyTree,
        *,
        layers: tuple[Layer, ...] | None = None,
        limits: Limits = Limits(),
        quorum: int = 1,
        wait: float = 300.0,
        done: Callable[[int, PyTree], None] | None = None,
        fraction_evaluate: float = 0.0,
        regions: bool | str = False,
        **options: Any,
    ) -> None:
        """Make the strategy.

        Args:
            rule: the merge rule: additive ones, Kronecker, any that takes payloads of files.
            like: parameters of the model, or their shapes.
            layers: the model's, from `capture`; payloads' layers must be among them.
            limits: caps on payloads.
            quorum: fewest nodes whose payloads are merged; with fewer a round leaves the model as it was.
            wait: seconds that a round waits for `min_available_nodes`; then it goes on with the nodes that are there,
                or, where they are fewer than the quorum, is left out. The wait for answers is `timeout` of `start`.
            done: (round, parameters) → nothing, called after every round that changed the model: it writes the model,
                say, so that no later round can lose it.
            fraction_evaluate: share of nodes that evaluate after each round.
            regions: whether a node may send a region (`fedfisher fold`), and so answer for several silos; it takes no
                number from a silo that answers itself. Where contributions depend on the rule's options, the rule
                with these, as the region says it: "regmean,off_diagonal=0.1".
            options: options of Flower's FedAvg: fraction_train, min_train_nodes, min_available_nodes …

        Raises:
            ValueError: quorum below 1, or a wait that is no time.
        """
        if quorum < 1:
            raise ValueError(f"quorum: got {quorum}, expected at least 1")
        if not 0 <= wait < math.inf:
            raise ValueError(f"wait: got {wait}, expected seconds from 0")
        super().__init__(fraction_evaluate=fraction_evaluate, **options)
        self.rule, self.like, self.layers, self.limits, self.quorum = rule, like, layers, limits, quorum
        self.wait, self.done, self.regions = wait, done, regions
        self.start_of_round: PyTree = None
        self.asked: list[Metadata] = []  # of this round's messages; sending fills in their identifiers
        self.left_out: dict[int, dict[int, str]] = {}  # round → node → why
        self.diagnostics: dict[int, dict[str, Any]] = {}  # round → of the solve

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes that are there within `wait`; notes who is asked and what from."""
        self.start_of_round = from_record(arrays, self.like)
        least = self.fraction_train, self.min_train_nodes
        messages = self._messages("train", server_round, RecordDict({"arrays": arrays, "config": config}), grid, *least)
        self.asked = [message.metadata for message in messages]
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes that are there within `wait`."""
        least = self.fraction_evaluate, self.min_evaluate_nodes
        return self._messages("evaluate", server_round, RecordDict({"arrays": arrays, "config": config}), grid, *least)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the payloads of those who answered with a sound one; without a quorum the model stays as it was."""
        sent, left_out = sent_of(self.asked, replies)
        (merged, headers, refused), bits = self.merge_sent(server_round, sent)
        self.left_out[server_round] = left_out | refused
        for reason in self.left_out[server_round].values():
            LOG.warning("round %s: left out %s", server_round, reason)
        if merged is None:
            LOG.warning("round %s: fewer payloads than %s can be merged: no merge", server_round, self.quorum)
            return None, None
        self.diagnostics[server_round] = merged.diagnostics
        metrics = MetricRecord({"payloads": sum(map(len, headers.values())), "bits": bits})
        for name, value in merged.diagnostics.items():
            if jnp.ndim(value) == 0:
                metrics[name] = float(value)
        if self.done is not None:
            self.done(server_round, model_of(merged.params))
        return to_record(merged.params), metrics

    def merge_sent(self, server_round: int, sent: Mapping[int, bytes]) -> tuple[Outcome, int]:
        """Merge what nodes sent, by node; with the bits of what was merged."""
        rule, _ = exchange_of(self.rule, server_round)
        how = {"layers": self.layers, "limits": self.limits, "quorum": self.quorum, "regions": self.regions}
        outcome = merge_replies(rule, self.start_of_round, sent, **how)
        return outcome, sum(8 * len(sent[node]) for node in outcome.headers)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As in FedAvg, of the nodes whose scores are finite numbers of the usual names."""
        sound: dict[int, RecordDict] = {}
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            try:
                sound[node] = _scores_of(reply, self.weighted_by_key)
            except Exception as error:  # whatever it is that a node sent
                words = str(error) if isinstance(error, PayloadError) else f"no scores ({type(error).__name__})"
                LOG.warning("round %s: not scored by node %s: %s", server_round, node, words)
        names = [frozenset(content["metrics"]) for content in sound.values()]
        usual = max(names, key=names.count, default=None)
        for node in [node for node, content in sound.items() if frozenset(content["metrics"]) != usual]:
            LOG.warning("round %s: not scored by node %s: other scores than most", server_round, node)
            del sound[node]
        return self.evaluate_metrics_aggr_fn(list(sound.values()), self.weighted_by_key) if sound else None

    def summary(self) -> None:
        """Log the settings."""
        LOG.info("\t├──> Rule: %s, quorum %s, waiting at most %s s", self.rule.name, self.quorum, self.wait)
        super().summary()

    def _messages(
        self, kind: str, server_round: int, content: RecordDict, grid: Grid, fraction: float, least: int
    ) -> list[Message]:
        """Messages to a sample of the nodes that are there when enough of them are, or when the wait is over."""
        if fraction == 0:
            return []
        wanted, until = max(self.min_available_nodes, least), time.monotonic() + self.wait
        while len(there := sorted(grid.get_node_ids())) < wanted and time.monotonic() < until:
            time.sleep(min(1.0, max(0.0, until - time.monotonic())))
        if len(there) < wanted:
            LOG.warning("round %s: %s nodes of %s after %s s", server_round, len(there), wanted, self.wait)
        if kind == "train" and len(there) < self.quorum:
            return []
        content.config_records["config"]["server-round"] = server_round
        chosen = random.sample(there, min(len(there), max(int(len(there) * fraction), least)))
        return [Message(content=content, message_type=kind, dst_node_id=node) for node in chosen]


def sent_of(messages: Iterable[Metadata], replies: Iterable[Message]) -> tuple[dict[int, bytes], dict[int, str]]:
    """Find what each node that was asked sent, by node, and why nothing came of the others."""
    asked = {metadata.message_id: metadata.dst_node_id for metadata in messages}
    left_out = {node: f"node {node}: no answer in time" for node in asked.values()}
    sent: dict[int, bytes] = {}
    for reply in replies:
        node = asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)  # the server may answer
        left_out.pop(node, None)  # for a node that is gone
        try:
            sent[node] = _payload_of(reply)
        except Exception as error:  # whatever it is that a node sent
            words = str(error) if isinstance(error, PayloadError) else f"no message ({type(error).__name__})"
            left_out[node] = f"node {node}: {words}"
    return sent, left_out


def _payload_of(reply: Message) -> bytes:
    """The bytes of a message's payload file.

    Raises:
        PayloadError: it carries none.
    """
    _require_content(reply)
    carried = reply.content.array_records.get("arrays", ArrayRecord()).get("payload")
    if carried is None or carried.stype != STYPE:
        raise PayloadError(f"no payload in its message: expected an array of type {STYPE!r}")
    return carried.data


def _scores_of(reply: Message, weight: str) -> RecordDict:
    """A message's scores, finite numbers, by the number of examples that they are a mean over.

    Raises:
        PayloadError: it carries none.
    """
    _require_content(reply)
    scores = reply.content.metric_records.get("metrics", MetricRecord())
    finite = all(isinstance(value, int | float) and math.isfinite(value) for value in scores.values())
    if not finite or not 0 < scores.get(weight, 0) < 2**53:
        raise PayloadError(f"its scores are no finite numbers, or its {weight} is none")
    return RecordDict({"metrics": scores})


def _require_content(reply: Message) -> None:
    if not reply.has_content():
        code = reply.error.code if reply.has_error() else 0
        raise PayloadError(f"{ERRORS.get(code, 'failed')} (Flower's error {code})")
