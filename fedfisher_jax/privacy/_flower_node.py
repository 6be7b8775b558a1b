"""A node of a live secure sum: what it trains and measures stays in its folder, and letters leave, see `flower`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from .. import _files, payload
from .._examples import examples
from ..merge._one_by_one import add_payload, require_adding
from ..merge._sent import model_of
from ..payload import Limits
from ..payload import _container as container
from ..silos._flower_node import (
    Silo,
    about_of,
    answered,
    exchange_of,
    keeping_its_errors,
    round_keys,
    round_of,
    start_of,
    trained,
)
from . import _secure_letters as letters
from . import _secure_state as states
from . import _secure_steps as steps
from ._secure_letters import Letter, agreed_by
from .example_noise import Promise, clipped, exact

PyTree = Any


class SecureSilo(NamedTuple):
    """A node's part in secure sums.

    Attributes:
        silo: what it trains and measures, by a rule that adds; without a plan, since masks need exact numbers.
        identity: the private key of this silo, which signs what it joins with.
        identities: the public keys of all silos, 32 bytes each, in one order everywhere; that order numbers them.
        folder: where its payloads and its secrets lie: never copied, nor restored from a backup.
        threshold: how many must stay to the end, more than half; by default two thirds. The server's is the same.
        promised: noise for every example, divided among silos (`example_noise.promise` with trust "distributed"). Of
            as many sums as it has `releases` this node is a part, and then of no other in this folder.
    """

    silo: Silo
    identity: Ed25519PrivateKey
    identities: tuple[bytes, ...]
    folder: Path
    threshold: int | None = None
    promised: Promise | None = None


class Sum(NamedTuple):
    """One sum at one node."""

    name: str
    number: int  # Flower's round
    state: Path
    payload: Path


def client_app(silo_of: Callable[[Context], SecureSilo]) -> ClientApp:
    """Make a ClientApp of whose payloads the server sees the sum alone. It evaluates nothing: scores are no sums.

    Args:
        silo_of: context → the node's part.
    """
    app = ClientApp()

    @app.train()
    @keeping_its_errors
    def join(message: Message, context: Context) -> Message:
        node = silo_of(context)
        start, here = start_of(message, node.silo.like), _sum_of(node, message, context)
        public = node.identity.public_key().public_bytes_raw()
        if public not in node.identities:
            raise ValueError("identities: expected the public key of this silo's identity among them")
        agreed = agreed_by(here.name, node.identities, node.threshold)
        with _files.only_writer(node.folder):
            states.require_new(here.state)
            _require_releases(node)
            _files.write_atomically(here.payload, _measured(node, here, start), mode=0o600)
            number = node.identities.index(public) + 1
            state, letter = steps.join(_own(node, here, start), number, here.name, agreed, node.identity)
            states.save(here.state, state)
        return answered(message, letters.dumps(letter), {})

    def later(step: Callable[[SecureSilo, Sum, states.State, Message], tuple[states.State, Letter]]) -> Any:
        @keeping_its_errors
        def answer(message: Message, context: Context) -> Message:
            node = silo_of(context)
            here = _sum_of(node, message, context)
            with _files.only_writer(node.folder):
                state, letter = step(node, here, states.load(here.state), message)
                states.save(here.state, state)
            return answered(message, letters.dumps(letter), {})

        return answer

    app.query("share")(later(lambda node, here, state, message: steps.share(state, _given(message, letters.KEYS))))
    app.query("mask")(later(_mask))
    app.query("reveal")(later(_reveal))

    return app


def _mask(node: SecureSilo, here: Sum, state: states.State, message: Message) -> tuple[states.State, Letter]:
    own = _own(node, here, start_of(message, node.silo.like))
    return steps.mask(state, _given(message, letters.SHARES), own, here.payload.name)


def _reveal(node: SecureSilo, here: Sum, state: states.State, message: Message) -> tuple[states.State, Letter]:
    found = steps.reveal(state, frozenset(message.content.config_records["config"]["stayed"]))
    here.payload.unlink(missing_ok=True)  # a silo that has revealed masks nothing more in this sum
    return found


def _sum_of(node: SecureSilo, message: Message, context: Context) -> Sum:
    """The sum that a message is about: one for every round of every run."""
    number = round_of(message)
    name = f"run {context.run_id}, round {number}"
    return Sum(name, number, node.folder / f"{name}.state", node.folder / f"{name}.safetensors")


def _measured(node: SecureSilo, here: Sum, start: PyTree) -> bytes:
    """The payload file, which has no noise yet where it is divided."""
    silo, (rule, first) = node.silo, exchange_of(node.silo.rule, here.number)
    require_adding(rule)
    if silo.plan is not None:
        raise ValueError("plan: got one, expected none: masks need exact numbers")
    if node.promised is None:
        sent = trained(silo, rule, start, here.number, first)
        return payload.dumps(sent, about_of(silo, rule, start, sent))
    key = round_keys(silo.seed, here.number).measure
    sent = exact(clipped(rule, node.promised), start, examples(silo.x, silo.y), key)
    about = about_of(silo, rule, start, sent)
    return payload.dumps(sent, dataclasses.replace(about, privacy=node.promised._asdict()))


def _own(node: SecureSilo, here: Sum, start: PyTree) -> steps.Own:
    data, told = container.read_bytes(here.payload, Limits()), payload.fingerprint(start)
    sent, header = payload.loads(data, model_of(start), file=here.payload.name, start=told)
    template, _ = container.unpack(data, Limits(), here.payload.name)
    rule, _ = exchange_of(node.silo.rule, here.number)
    return steps.own_of(add_payload(rule, None, sent._replace(kind=None), start), template, header, here.payload.name)


def _require_releases(node: SecureSilo) -> None:
    """Refuse more sums than noise was promised for; one that failed counts, for silos may have revealed."""
    promised, joined = node.promised, len(list(node.folder.glob("*.state")))
    if promised is None:
        return
    if promised.trust != "distributed":
        raise ValueError(
            f"promised: got trust {promised.trust!r}, expected distributed: a secure sum's noise is divided"
        )
    if joined >= promised.releases:
        raise ValueError(f"promised: for {promised.releases} sums, and this folder is of {joined} already")


def _given(message: Message, holds: str) -> list[Letter]:
    """The letters that a message carries."""
    carried = message.content.array_records["letters"]
    return [letters.loads(array.data, f"the letter of node {name}", holds) for name, array in carried.items()]
