"""The settings of a federation over rounds, what its server keeps between them, and what a round tells."""

import dataclasses
from typing import Any, NamedTuple

import optax

from .._doors import require_optimizer
from ..merge import Rule, exchanges
from ..merge._rule import require_rule
from ._local import LocalTraining
from ._variants import Variant

PyTree = Any


class State(NamedTuple):
    """What the server keeps between rounds."""

    params: PyTree
    optimizer: PyTree  # of the server
    round: Any  # rounds done
    key: Any
    common: PyTree = None  # what a variant of local training shares with all clients
    own: PyTree = None  # what it keeps for each registered client: [M, ...]
    carried: PyTree = None  # what the rule keeps, by its `Carry`


class RoundReport(NamedTuple):
    """What one round did.

    Attributes:
        loss: the sampled clients' training loss over their last local epoch, mean over clients, in nats.
        moved: l2 norm of the step from the round's start to its end.
        barrier_loss: Client-Server Barrier, mean over sampled clients of the merged model's loss on the client's data
            minus its own model's (nats per example, lower is better); NaN unless asked for.
        barrier_accuracy: the client's own model's accuracy minus the merged one's (lower is better).
        diagnostics: what the rule's solve says of itself, by name.
    """

    loss: Any
    moved: Any
    barrier_loss: Any
    barrier_accuracy: Any
    diagnostics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Federation:
    """The settings of a federation; the same object between rounds, or it is traced again.

    Attributes:
        training: model, likelihood, optimiser, epochs and batch size of local training (0 epochs: none).
        rule: how a round is merged; one made by `then` is several exchanges in each round.
        sampled: clients in a round, drawn without replacement.
        optimizer: the server's optimiser, whose gradient is the start minus the merged model (FedOpt, arXiv
            2003.00295); None takes the merged model as it is. It is given `clients_length`, √Σ ‖θ_i − θ‖², as well,
            which `clip_to_clients` reads.
        variant: a variant of local training (FedProx, SCAFFOLD, FedDyn); None is plain training.
        barrier: measure the Client-Server Barrier, two more passes over the sampled clients' data.
        lengths: multiples of the server's step to try, as (0.25, 0.5, 1.0, 2.0): the sampled clients send their mean
            loss at each, one number, and the server takes the length with the least over their examples. The
            optimiser's own state is that of the whole step. Empty: the step is taken as it is.

    Raises:
        TypeError: no rule, no local training, or no optimiser.
        ValueError: a length that is negative or not finite.
    """

    training: LocalTraining
    rule: Rule
    sampled: int
    optimizer: optax.GradientTransformation | None = None
    variant: Variant | None = None
    barrier: bool = False
    lengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_rule(self.rule)
        if not isinstance(self.training, LocalTraining):
            raise TypeError(f"training: got {type(self.training).__name__}, expected a LocalTraining")
        if self.optimizer is not None:
            require_optimizer(self.optimizer)
        for length in self.lengths:
            if not 0 <= length < float("inf"):
                raise ValueError(f"lengths: got {length}, expected finite numbers of at least 0")

    @property
    def jit(self) -> bool:
        """Whether every exchange of a round can be compiled."""
        return all(part.jit for part in exchanges(self.rule))
