"""The server of a live secure sum: Flower's strategy that carries letters and unmasks their sum, see `flower`."""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flwr.app import (  # pyright: ignore[reportMissingImports]
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    RecordDict,
)
from flwr.serverapp import Grid  # pyright: ignore[reportMissingImports]

from ..merge import Rule, exchanges
from ..merge._one_by_one import require_adding
from ..silos._flower_node import STYPE, exchange_of, to_record
from ..silos._flower_server import FedFisher, sent_of
from ..silos._merge_replies import Outcome
from ._live_sum import Agreement, merge_live
from ._secure_letters import agreed_by
from ._secure_total import Total

PyTree = Any
LOG = logging.getLogger("flwr")


class SecureFedFisher(FedFisher):
    """A strategy that learns the sum of the nodes' payloads, and no payload."""

    def __init__(
        self,
        rule: Rule,
        like: PyTree,
        *,
        identities: tuple[bytes, ...],
        threshold: int | None = None,
        patience: float = 300.0,
        **options: Any,
    ) -> None:
        """Make the strategy.

        Args:
            rule: one that adds, or several such exchanges.
            like: parameters of the model, or their shapes.
            identities: the public keys of all silos, as the nodes have them.
            threshold: how many nodes must stay, as the nodes have it.
            patience: seconds that each of the three steps after training waits for answers.
            options: what `FedFisher` takes.

        Raises:
            ValueError: a rule that stacks payloads; regions or evaluation by nodes; a threshold that is no majority.
        """
        for part in exchanges(rule):
            require_adding(part)
        if options.get("regions") or options.get("fraction_evaluate"):
            told = {name: options[name] for name in ("regions", "fraction_evaluate") if options.get(name)}
            raise ValueError(f"options: got {told}, expected neither: regions have no identity, and scores are no sums")
        agreed_by("any", identities, threshold)
        super().__init__(rule, like, **options)
        self.identities, self.threshold, self.patience = identities, threshold, patience
        self.grid: Any = None
        self.totals: dict[int, Total] = {}  # round → the sum, and what is promised about every example in it

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As in `FedFisher`; later letters go by the same grid."""
        self.grid = grid
        return super().configure_train(server_round, arrays, config, grid)

    def merge_sent(self, server_round: int, sent: Mapping[int, bytes]) -> tuple[Outcome, int]:
        """Carry the letters of one sum, and merge it; where there is none the model stays as it was."""
        rule, _ = exchange_of(self.rule, server_round)
        ending, start = f", round {server_round}", self.start_of_round
        known = Agreement(self.identities, self.threshold, ending, rule, start, self.layers, self.limits, self.quorum)

        def ask(
            step: str, nodes: Collection[int], given: Mapping[int, bytes], stayed: list[int]
        ) -> tuple[dict[int, bytes], dict[int, str]]:
            config = ConfigRecord({"server-round": server_round, "stayed": stayed})
            carried = {str(node): Array("uint8", (len(data),), STYPE, data) for node, data in given.items()}
            content = RecordDict({"config": config, "letters": ArrayRecord(carried)})
            if step == "mask":  # what a node adds may depend on what it was sent
                content["arrays"] = to_record(start)
            messages = [Message(content=content, message_type=f"query.{step}", dst_node_id=node) for node in nodes]
            replies = self.grid.send_and_receive(messages, timeout=self.patience)
            return sent_of([message.metadata for message in messages], replies)

        found = merge_live(known, sent, ask)
        if found.total is None:
            LOG.warning("round %s: no sum: %s", server_round, found.why)
        else:
            self.totals[server_round] = found.total
        return found.outcome, found.bits
