"""A node: honest, or in round r with the r-th crafted reply, or asleep in one round, to be killed in it.

With a folder it is part of secure sums, and may fail in one of their steps.
"""

import time
from pathlib import Path
from typing import Any

from flwr.app import Context, Message  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from fedfisher_jax.privacy import flower as secure
from fedfisher_jax.silos import flower
from hostile_flower import task
from hostile_flower.crafted import CRAFTED, SECRET


def silo_of(context: Context) -> flower.Silo:
    """This node's part, or an error that quotes what nobody may learn."""
    if context.node_config.get("fails"):
        raise FileNotFoundError(SECRET)
    number = int(context.node_config["partition-id"])
    return flower.Silo(task.TRAINING, task.RULE, *task.examples_of(number), number, task.START, 4)


def part_of(context: Context) -> secure.SecureSilo:
    """This node's part in secure sums."""
    folder = Path(str(context.node_config["folder"]))
    identity = task.IDENTITIES[int(context.node_config["partition-id"])]
    return secure.SecureSilo(silo_of(context), identity, task.PUBLIC, folder, task.THRESHOLD)


app = ClientApp()
honest, hidden = flower.client_app(silo_of), secure.client_app(part_of)


def later(step: str) -> Any:
    """A later step of a secure sum, in which this node may fail."""

    @app.query(step)
    def answer(message: Message, context: Context) -> Message:
        if context.node_config.get("fails-in") == step:
            raise FileNotFoundError(SECRET)
        return hidden(message, context)

    return answer


share, mask, reveal = map(later, ("share", "mask", "reveal"))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer as this node does in this round."""
    number = int(message.content.config_records["config"]["server-round"])
    if number == context.node_config.get("asleep-in"):
        time.sleep(3600)
    if context.node_config.get("folder"):
        return hidden(message, context)
    reply = honest(message, context)
    if context.node_config.get("hostile"):
        crafted = list(CRAFTED.values())[number - 1]
        return Message(content=crafted(reply.content["arrays"]["payload"].data), reply_to=message)
    return reply
