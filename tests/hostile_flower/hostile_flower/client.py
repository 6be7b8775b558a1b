"""A node: honest, or in round r with the r-th crafted reply, or asleep in one round, to be killed in it."""

import time

from flwr.app import Context, Message  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from fedfisher_jax.silos import flower
from hostile_flower import task
from hostile_flower.crafted import CRAFTED, SECRET


def silo_of(context: Context) -> flower.Silo:
    """This node's part, or an error that quotes what nobody may learn."""
    if context.node_config.get("fails"):
        raise FileNotFoundError(SECRET)
    number = int(context.node_config["partition-id"])
    return flower.Silo(task.TRAINING, task.RULE, *task.examples_of(number), number, task.START, 4)


app = ClientApp()
honest = flower.client_app(silo_of)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer as this node does in this round."""
    number = int(message.content.config_records["config"]["server-round"])
    if number == context.node_config.get("asleep-in"):
        time.sleep(3600)
    reply = honest(message, context)
    if context.node_config.get("hostile"):
        crafted = list(CRAFTED.values())[number - 1]
        return Message(content=crafted(reply.content["arrays"]["payload"].data), reply_to=message)
    return reply
