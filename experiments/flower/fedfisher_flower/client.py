"""A node: trains on its own digits, measures, sends one payload."""

from functools import partial

from flwr.app import Context  # pyright: ignore[reportMissingImports]

from fedfisher_flower.task import task_of
from fedfisher_jax.payload import plan
from fedfisher_jax.silos import flower


def silo_of(context: Context) -> flower.Silo:
    """This node's part; its number is that of the partition that it was started with."""
    task, number = task_of(context.run_config), int(context.node_config["partition-id"])
    rows, budget = task.parts[number], float(context.run_config["budget"])
    x, y = task.dataset.train_x[rows], task.dataset.train_y[rows]
    chosen = partial(plan.fit, budget=budget) if budget else None
    return flower.Silo(task.training, task.rule, x, y, number, task.start, int(context.run_config["seed"]), chosen)


app = flower.client_app(silo_of)
