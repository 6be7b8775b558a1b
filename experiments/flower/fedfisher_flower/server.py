"""The server: sends the start, merges payloads, writes the global model."""

from pathlib import Path

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
    strategy = flower.FedFisher(
        task.rule,
        task.start,
        layers=task.layers,
        quorum=int(config["quorum"]),
        min_train_nodes=nodes,
        min_available_nodes=nodes,
    )
    result = strategy.start(
        grid, flower.to_record(task.start), num_rounds=int(config["rounds"]), timeout=float(config["timeout"])
    )
    if not result.arrays:
        raise RuntimeError(f"no round had {config['quorum']} payloads: there is no model")
    merged = flower.from_record(result.arrays, task.start)
    model_file.write(Path(str(config["out"])), task.kind, merged, f"flower, {config['rounds']} rounds")
    for number, reasons in strategy.left_out.items():
        print(f"round {number}: left out {len(reasons)} of {nodes}")
