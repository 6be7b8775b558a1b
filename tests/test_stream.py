"""Folding in groups: the same sum whatever the strategy, group or interruption; two hosts as one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.federate._fold_clients import fold_clients
from fedfisher_jax.federate._private import Private

HERE = Path(__file__).parent
CLIENTS = jnp.asarray(np.random.default_rng(0).normal(size=(11, 4)))
SHARED = jnp.arange(1.0, 5.0)


def contribution(shared, client):
    return {"sum": jnp.sin(shared * client), "weight": jnp.ones(())}


@pytest.fixture(scope="module")
def expected():
    each = jax.vmap(lambda client: contribution(SHARED, client))(CLIENTS)
    return {"add": jax.tree.map(lambda leaf: leaf.sum(0), each), "stack": each}


@pytest.mark.parametrize("combine", ["add", "stack"])
@pytest.mark.parametrize("group", [1, 4, 11, 100])
@pytest.mark.parametrize("strategy", ["sequential", "threads", "vectorised", "devices"])
def test_any_grouping(expected, strategy, group, combine):
    result, report = fold_clients(contribution, SHARED, CLIENTS, combine=combine, group=group, strategy=strategy)
    chex.assert_trees_all_close(result, expected[combine], rtol=1e-12)
    assert report.strategy == strategy


@pytest.mark.parametrize("combine", ["add", "stack"])
def test_resumes_to_the_same_bits(tmp_path, combine):
    whole, _ = fold_clients(contribution, SHARED, CLIENTS, combine=combine, group=2)
    path, ran = tmp_path / "fold.npz", []

    def stop_in_the_third(number):
        ran.append(number)
        if len(ran) == 3:
            raise KeyboardInterrupt

    arguments = {"combine": combine, "group": 2, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        fold_clients(contribution, SHARED, CLIENTS, **arguments, done=stop_in_the_third)
    again = []
    resumed, _ = fold_clients(contribution, SHARED, CLIENTS, **arguments, done=again.append)
    assert sum(ran) == 6 and sum(again) == 5
    chex.assert_trees_all_equal(resumed, whole)


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    """A process killed in group 3 of 10 leaves a checkpoint from which another one gets the same bits."""
    script = f"""
import os, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {str(HERE)!r})
from test_stream import CLIENTS, SHARED, contribution
from fedfisher_jax import fold_clients
clients = jnp.concatenate([CLIENTS, CLIENTS])[:20]
groups = []
def done(number):
    groups.append(number)
    if sys.argv[2] == "kill" and len(groups) == 3:
        os.kill(os.getpid(), 9)
result, _ = fold_clients(contribution, SHARED, clients, combine="add", group=2, checkpoint=sys.argv[1], done=done)
np.save(sys.argv[1] + ".npy", result["sum"])
print(len(groups))
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def start(name, how):
        command = [sys.executable, "-c", script, str(tmp_path / name), how]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert start("a.npz", "kill").returncode == -9
    second, whole = start("a.npz", "go"), start("b.npz", "go")
    assert second.stdout.strip() == "7", second.stderr
    assert whole.stdout.strip() == "10", whole.stderr
    assert np.array_equal(np.load(tmp_path / "a.npz.npy"), np.load(tmp_path / "b.npz.npy"))


def test_checkpoint_of_another_run(tmp_path):
    path = tmp_path / "fold.npz"
    fold_clients(contribution, SHARED, CLIENTS, combine="add", group=4, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to other clients, another training or another grouping"):
        fold_clients(contribution, SHARED, CLIENTS[::-1], combine="add", group=4, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to other clients"):  # another start, seed or data set
        fold_clients(contribution, SHARED + 1, CLIENTS, combine="add", group=4, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to other clients"):  # another result
        fold_clients(wider, SHARED, CLIENTS, combine="add", group=4, checkpoint=path)
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="checkpoint"):
        fold_clients(contribution, SHARED, CLIENTS, combine="add", group=4, checkpoint=path)


def wider(shared, client):
    return {"sum": jnp.tile(jnp.sin(shared * client), 2), "weight": jnp.ones(())}


@pytest.mark.parametrize("combine", ["add", "stack"])
def test_narrow_types_are_resumed(tmp_path, combine):
    narrow, arguments = CLIENTS.astype(jnp.bfloat16), {"combine": combine, "checkpoint": tmp_path / "fold.npz"}
    first, again = (fold_clients(contribution, SHARED.astype(jnp.bfloat16), narrow, **arguments)[0] for _ in range(2))
    assert again["sum"].dtype == (jnp.float32 if combine == "add" else jnp.bfloat16)  # sums of many lose in 16 bits
    chex.assert_trees_all_equal(first, again)


def test_what_cannot_work_is_refused_before_any_client_runs(tmp_path):
    ran = []
    options = {"combine": "add", "done": ran.append}
    with pytest.raises(ValueError, match="checkpoint: .*no folder .*nowhere"):
        fold_clients(contribution, SHARED, CLIENTS, checkpoint=tmp_path / "nowhere" / "fold.npz", **options)
    with pytest.raises(ValueError, match="clients: got leaves for 5 and for 11 clients"):
        fold_clients(lambda s, c: c[0], SHARED, (CLIENTS, CLIENTS[:5]), **options)
    assert not ran


@pytest.mark.parametrize("arguments", [{"combine": "mix"}, {"combine": "add", "group": 0}])
def test_refusals(arguments):
    with pytest.raises(ValueError, match=next(reversed(arguments))):
        fold_clients(contribution, SHARED, CLIENTS, **arguments)


TWO_HOSTS = f"""
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"127.0.0.1:{{sys.argv[1]}}", num_processes=2, process_id=int(sys.argv[2]))
sys.path.insert(0, {str(HERE)!r})
from test_stream import contribution
from fedfisher_jax import fold_clients, map_clients
clients, shared = np.random.default_rng(0).normal(size=(11, 4)), np.arange(1.0, 5.0)
assert jax.process_count() == 2 and jax.device_count() == 4
each = [contribution(shared, client) for client in clients]
total, report = fold_clients(contribution, shared, clients, combine="add", group=6)
assert report.strategy == "devices" and report.workers == 4
np.testing.assert_allclose(total["sum"], sum(e["sum"] for e in each), rtol=1e-12)
mapped, _ = map_clients(contribution, shared, clients)
np.testing.assert_allclose(mapped["sum"], np.stack([e["sum"] for e in each]), rtol=1e-12)
print("same")
"""


@pytest.mark.slow
def test_two_hosts_are_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = devices.environment(2)
    command = [sys.executable, "-c", TWO_HOSTS, port]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    hosts = [subprocess.Popen([*command, str(number)], **pipes) for number in range(2)]
    for host in hosts:
        out, error = host.communicate(timeout=300)
        assert out.strip().endswith("same"), error


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    apply, start = (lambda w, x: x @ w), jnp.zeros((3, 2))
    who = ff.cohort(np.eye(3), np.array([0, 1, 0]), [np.array([0]), np.array([1, 2])])

    def train(rate=0.1, epochs=1, **more):
        how = ff.LocalTraining(apply, ff.categorical(), optax.sgd(rate), epochs, 2, **more)
        return ff.federate.train_clients(how, start, who, jax.random.key(0), checkpoint=tmp_path / "trained.npz")[
            0
        ].params

    first = train()
    np.testing.assert_array_equal(train(), first)
    for other in ({"rate": 1.0}, {"epochs": 2}, {"private": Private(1.0, 0.5, 2)}):
        with pytest.raises(ValueError, match="belongs to other clients, another training"):
            train(**other)
