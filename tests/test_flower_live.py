"""Live federations: Flower's own SuperLink and SuperNodes as processes on loopback, and its simulation."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

flwr = pytest.importorskip("flwr", reason="a live federation needs pip install 'fedfisher-jax[flower]'")


import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax.federate import _one_shot as one_shot  # noqa: E402
from fedfisher_jax.federate import _simulate as simulate  # noqa: E402
from fedfisher_jax.merge import catalogue  # noqa: E402
from fedfisher_jax.silos import _model_file as model_file  # noqa: E402
from fedfisher_jax.silos import flower  # noqa: E402

APP = Path(__file__).parent / "hostile_flower"
sys.path.append(str(APP))
from hostile_flower import task  # noqa: E402
from hostile_flower.crafted import CRAFTED, SECRET  # noqa: E402

ROOT, BIN, NODES, EPOCHS = Path(__file__).parent.parent, Path(sys.executable).parent, 5, 2
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def in_memory(rounds=1, rule="fedfisher-kfac", nodes=range(NODES)):
    """The same federation by the library's own loop; `nodes` are those whose payloads arrive."""
    dataset = ff.data.load("digits")
    network, likelihood = ff.models.build("mlp", dataset.train_x.shape[1:], 10), ff.categorical()
    train = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.01, 0.9), EPOCHS, 64)
    parts = ff.data.split("dirichlet-client", dataset.train_y, NODES, seed=0, alpha=0.1)
    who = ff.cohort(dataset.train_x, dataset.train_y, parts).sample(np.array(list(nodes)))
    params = network.init(one_shot.run_keys(0).init)
    offers = {"captured": ff.capture(network.apply, params, dataset.train_x)}
    built = catalogue.named_rule(rule, network.apply, likelihood, offers=offers)
    for number in range(1, rounds + 1):
        key = flower.round_keys(0, number)
        trained, _ = simulate.train_clients(train, params, who, key.train, strategy="threads")
        sent, _ = simulate.measure_clients(
            built.measure, ff.Update(trained.params, params), who, key.measure, strategy="threads"
        )
        params = simulate.merge_clients(built, sent).params
    return params


def require_equal(path, expected):
    for ours, theirs in zip(jax.tree.leaves(model_file.read(path).params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def wait_for(condition, seconds, what):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} within {seconds} s"
        time.sleep(0.2)


def configured(folder):
    """The environment of Flower's commands: nothing is sent home or written outside the folder; float64 as here."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    more = {"FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "JAX_ENABLE_X64": "1", "PATH": path}
    return os.environ | more


def app(folder, config):
    """Arguments of flwr that run the example of experiments/flower."""
    values = {"epochs": EPOCHS, "nodes": NODES, "timeout": 400, "out": f"'{folder}/global.safetensors'"} | config
    return running(ROOT / "experiments" / "flower", values)


def running(code, config):
    words = " ".join(f"{key}={value}" for key, value in config.items())
    return ["run", code, "here", "--stream", "-c", words]


def hostile(folder, config):
    """Arguments of flwr that run the app of tests/hostile_flower."""
    return running(APP, {"out": f"'{folder}'"} | config)


def log_of(folder, name):
    return (folder / f"{name}.log").read_text()


@contextlib.contextmanager
def federation(folder, nodes=NODES, link_options=(), run_options=(), code=app, node_config=None):
    """SuperLink and SuperNodes as processes; yields a function that starts the app, and the nodes."""
    ports = free_ports(nodes + 1)
    link = f"127.0.0.1:{ports[0]}"
    connection = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{link}"\ninsecure = true\n'
    (folder / "config.toml").write_text(connection)
    environment, running = configured(folder), []

    def start(name, *call):
        with (folder / f"{name}.log").open("w") as log:
            whole = [str(BIN / call[0]), *map(str, call[1:])]
            output = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            running.append(subprocess.Popen(whole, cwd=folder, env=environment, **output))
        return running[-1]

    def run(**config):
        return start("run", "flwr", *code(folder, config), *run_options)

    try:
        here = ["--insecure", "--host", "127.0.0.1", "--port", ports[0], "--disable-runtime-dependency-installation"]
        start("link", "flower-superlink", *here, *link_options)
        wait_for(lambda: "Uvicorn running" in log_of(folder, "link"), 60, "the SuperLink answers")
        served = ["--insecure", "--superlink", link, "--host", "127.0.0.1"]
        supernodes = []
        for number in range(nodes):
            own = f"partition-id={number} {(node_config or {}).get(number, '')}".strip()
            here = ["--port", ports[number + 1], "--node-config", own]
            supernodes.append(start(f"node{number}", "flower-supernode", *served, *here))
        yield run, supernodes
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"---- {log.name}\n{log.read_text()[-3000:]}")
        raise
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@pytest.mark.slow
def test_nodes_on_loopback_make_the_model_of_memory_and_one_killed_in_mid_round_spoils_nothing(tmp_path):
    """Two rounds of K-FAC, and then one of a rule that adds, whose fifth node is killed when it has been asked."""
    out, asked = tmp_path / "global.safetensors", "Receiving: train message"
    with federation(tmp_path) as (run, nodes):
        assert run(rounds=2).wait(timeout=560) == 0
        require_equal(out, in_memory(rounds=2))
        out.unlink()
        assert log_of(tmp_path, "node4").count(asked) == 2
        again = run(rule="'fisher-merge'")
        wait_for(lambda: log_of(tmp_path, "node4").count(asked) == 3, 300, "node 4 is asked to train")
        os.killpg(nodes[4].pid, signal.SIGKILL)
        assert again.wait(timeout=560) == 0
        assert "round 1: left out 1 of 5" in log_of(tmp_path, "run")
    require_equal(out, in_memory(rule="fisher-merge", nodes=range(4)))


def honest_rounds(kept):
    """The models of a federation of the app in tests/hostile_flower, merged of the nodes `kept` of each round."""
    params, models = task.START, []
    for number, nodes in enumerate(kept, start=1):
        x, y = (jnp.concatenate(part) for part in zip(*map(task.examples_of, range(3)), strict=True))
        who = ff.cohort(x, y, np.split(np.arange(120), 3)).sample(np.array(nodes))
        key = flower.round_keys(4, number)
        trained, _ = simulate.train_clients(task.TRAINING, params, who, key.train, strategy="threads")
        update = ff.Update(trained.params, params)
        sent, _ = simulate.measure_clients(task.RULE.measure, update, who, key.measure, strategy="threads")
        params = simulate.merge_clients(task.RULE, sent, params).params
        models.append(params)
    return models


def require_rounds(folder, kept):
    for number, params in enumerate(honest_rounds(kept), start=1):
        with np.load(folder / f"round{number}.npz") as found:
            for ours, theirs in zip(found.values(), jax.tree.leaves(params), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_hostile_node_on_loopback_changes_no_round(tmp_path):
    """Node 2 answers with every crafted reply in turn; the models are those of the two others."""
    with federation(tmp_path, 3, code=hostile, node_config={2: "hostile=true"}) as (run, _):
        assert run(rounds=len(CRAFTED), timeout=300.0, wait=60.0).wait(timeout=3600) == 0
        left_out = json.loads((tmp_path / "left_out.json").read_text())
        for number, name in enumerate(CRAFTED, start=1):
            assert len(left_out[str(number)]) == 1, name
        assert len({node for nodes in left_out.values() for node in nodes}) == 1
        require_rounds(tmp_path, [[0, 1]] * len(CRAFTED))
        for log in ("run", "link", "node0", "node1"):
            assert SECRET not in log_of(tmp_path, log)


@pytest.mark.slow
def test_a_node_killed_in_each_round_on_loopback_stops_none(tmp_path):
    """Node 2 dies in round 1 and node 1 in round 2; round 3 is node 0's alone, and every model is written at once."""
    asleep = {2: "asleep-in=1", 1: "asleep-in=2"}
    with federation(tmp_path, 3, code=hostile, node_config=asleep) as (run, nodes):
        federated = run(rounds=3, timeout=300.0, wait=10.0)
        for number, victim in ((1, 2), (2, 1)):
            wait_for(
                lambda n=number, v=victim: log_of(tmp_path, f"node{v}").count("Receiving: train message") == n,
                400,
                f"node {victim} is asked in round {number}",
            )
            assert (tmp_path / f"round{number - 1}.npz").exists() == (number > 1)
            os.killpg(nodes[victim].pid, signal.SIGKILL)
        assert federated.wait(timeout=900) == 0
        require_rounds(tmp_path, [[0, 1], [0], [0]])
        left_out = json.loads((tmp_path / "left_out.json").read_text())
        # In round 2 the node that died in round 1 is left out as well, unless Flower knows by then that it is gone.
        assert len(left_out["1"]) == 1 and len(set(left_out["2"]) - set(left_out["1"])) == 1


@pytest.mark.slow
def test_a_secure_sum_on_loopback_is_that_of_those_who_stayed(tmp_path):
    """Two rounds of three nodes, of which node 2 is lost after it sealed its shares: its mask is taken out again."""
    folders = {number: tmp_path / f"silo{number}" for number in range(3)}
    for folder in folders.values():
        folder.mkdir()
    own = {number: f'folder="{folder}"' for number, folder in folders.items()}
    own[2] += ' fails-in="mask"'
    with federation(tmp_path, 3, code=hostile, node_config=own) as (run, _):
        assert run(rounds=2, timeout=300.0, wait=60.0, secure="true").wait(timeout=900) == 0
        require_rounds(tmp_path, [[0, 1]] * 2)
        left_out = json.loads((tmp_path / "left_out.json").read_text())
        assert all("its app" in why and why.endswith("(mask)") for one in left_out.values() for why in one.values())
        assert [len(one) for one in left_out.values()] == [1, 1]
    assert [len(list(folder.glob("*.state"))) for folder in folders.values()] == [2, 2, 2]
    assert [len(list(folder.glob("*.safetensors"))) for folder in folders.values()] == [0, 0, 2]  # kept until revealed


@pytest.mark.slow
def test_flowers_simulation_makes_the_model_of_memory(tmp_path):
    pytest.importorskip("ray", reason="Flower's simulation needs pip install 'flwr[simulation]'")
    size = ["--federation-config", f"num-supernodes={NODES} client-resources-num-cpus=1"]
    with federation(tmp_path, nodes=0, link_options=["--simulation"], run_options=size) as (run, _):
        assert run().wait(timeout=560) == 0
        require_equal(tmp_path / "global.safetensors", in_memory())
