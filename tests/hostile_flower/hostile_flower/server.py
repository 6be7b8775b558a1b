"""The server: writes the model of every round as soon as it is there, and at the end who was left out and why."""

import json
from pathlib import Path

import jax
import numpy as np
from flwr.app import Context  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]

from fedfisher_jax.privacy import flower as secure
from fedfisher_jax.silos import flower
from hostile_flower import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One federation of three nodes."""
    config, out = context.run_config, Path(str(context.run_config["out"]))

    def done(number: int, params: object) -> None:
        np.savez(out / f"round{number}.npz", *map(np.asarray, jax.tree.leaves(params)))

    options = {"wait": float(config["wait"]), "done": done, "min_train_nodes": 3, "min_available_nodes": 3}
    strategy = flower.FedFisher(task.RULE, task.START, **options)
    if config["secure"]:
        known = {"identities": task.PUBLIC, "threshold": task.THRESHOLD}
        strategy = secure.SecureFedFisher(task.RULE, task.START, **known, **options)
    start = flower.to_record(task.START)
    strategy.start(grid, start, num_rounds=int(config["rounds"]), timeout=float(config["timeout"]))
    (out / "left_out.json").write_text(json.dumps(strategy.left_out))
