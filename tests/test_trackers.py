"""Experiment trackers, each where it is installed: what was told is read back from its files."""

import glob
import importlib.util
import json
import sqlite3
import struct

import pytest

from fedfisher_jax.report import trackers

RECORDS = [
    {"kind": "round", "name": "fedavg", "round": n, "accuracy": 0.25 * n, "diagnostics": {"iterations": n}, "say": None}
    for n in (1, 2)
]


def need(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def told(name, folder):
    with trackers.TRACKERS[name](folder, {"alpha": 0.1}) as on_record:
        for record in RECORDS:
            on_record(record)


def test_event_files_of_tensorboard(tmp_path):
    need("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    told("tensorboard", tmp_path)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), []
    while data:  # length, its checksum, an event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [
            (value.tag, event.step, value.simple_value) for value in event.summary.value if not value.HasField("tensor")
        ]
        data = data[16 + length :]
    assert found == [
        ("fedavg/accuracy", 1, 0.25),
        ("fedavg/diagnostics/iterations", 1, 1.0),
        ("fedavg/accuracy", 2, 0.5),
        ("fedavg/diagnostics/iterations", 2, 2.0),
    ]


def test_wandb_offline(tmp_path):
    need("wandb")
    import wandb

    told("wandb", tmp_path)
    wandb.teardown()  # its own process writes the file to the end
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert data.count(b"fedavg/accuracy") >= 2 and b"0.25" in data and b"alpha" in data


def test_the_store_of_mlflow(tmp_path):
    need("mlflow")
    need("sqlalchemy")
    from mlflow import MlflowClient

    told("mlflow", tmp_path)
    told("mlflow", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("fedfisher").experiment_id])
    assert len(runs) == 2 and runs[0].data.params == {"alpha": "0.1"} and runs[0].info.status == "FINISHED"
    history = client.get_metric_history(runs[0].info.run_id, "fedavg/accuracy")
    assert [(one.step, one.value) for one in history] == [(1, 0.25), (2, 0.5)]


def test_the_store_of_trackio(tmp_path):
    need("trackio")
    told("trackio", tmp_path)
    (file,) = glob.glob(f"{tmp_path}/fedfisher*.db")
    rows = sqlite3.connect(file).execute("select step, metrics from metrics order by step").fetchall()
    found = {step: score for step, values in rows if (score := json.loads(values).get("fedavg/accuracy"))}
    assert found == {1: 0.25, 2: 0.5}


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ImportError, match=r"track: wandb needs more: pip install 'fedfisher-jax\[wandb\]'"):
        with trackers.wandb("."):
            pass
