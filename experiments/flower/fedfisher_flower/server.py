"""The server: sends the start, merges payloads, writes the global model of every round."""

from pathlib import Path
from typing import Any

from flwr.app import Context  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]

from fedfisher_flower.task import task_of
from fedfisher_jax.silos import _model_file as model_file
from fedfisher_jax.silos import flower

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One federation."""
    config = context.run_config
    task, nodes = task_of(config), int(config["nodes"])

    def write(number: int, params: Any) -> None:
        """Write the model of a round, so that no later round can lose it."""
        model_file.write(Path(str(config["out"])), task.kind, params, f"flower, {number} rounds")

    strategy = flower.FedFisher(
        task.rule,
        task.start,
        layers=task.layers,
        quorum=int(config["quorum"]),
        min_train_nodes=nodes,
        min_available_nodes=nodes,
        wait=float(config["wait"]),
        done=write,
    )
    result = strategy.start(
        grid, flower.to_record(task.start), num_rounds=int(config["rounds"]), timeout=float(config["timeout"])
    )
    if not result.arrays:
        raise RuntimeError(f"no round had {config['quorum']} payloads: there is no model")
    for number, reasons in strategy.left_out.items():
        print(f"round {number}: left out {len(reasons)} of {nodes}")
