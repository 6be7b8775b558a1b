"""`fedfisher run` over rounds, as a user runs it: the library's numbers, and the same ones after an interruption."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax import data
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.cli import _rounds, _servers
from fedfisher_jax.cli._local_training import optimizer, rate
from fedfisher_jax.cli._settings import RunSettings
from fedfisher_jax.federate import fedprox, rounds, run_keys
from fedfisher_jax.merge import catalogue

QUICK = ("run", "--epochs", "1", "--clients", "4", "--alpha", "1.0", "--strategy", "sequential")
ROUNDS = (*QUICK, "--rounds", "3", "--sampled", "2", "--rules", "fedavg", "fedfish")


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def result(out):
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("rounds")
    command(*ROUNDS, "--local", "fedprox", "--strength", "0.1", "--barrier", "--out", out)
    return out


@pytest.mark.slow
def test_it_gives_the_librarys_numbers(whole):
    found = result(whole)
    assert found["complete"] and set(found["rules"]) == {"fedavg", "fedfish"}
    dataset, key = data.load("digits"), run_keys(0)
    network = ff.models.build("mlp", (8, 8, 1), 10)
    training = ff.LocalTraining(network.apply, ff.categorical(), optax.sgd(0.01, 0.9), 1, 64)
    everyone = ff.cohort(
        dataset.train_x, dataset.train_y, data.split("dirichlet-client", dataset.train_y, 4, seed=0, alpha=1.0)
    )
    federation = ff.Federation(training, ff.fedfish(network.apply, ff.categorical()), 2, variant=fedprox(0.1))
    state = rounds.init(federation, network.init(key.init), 4, key.train)
    for line in found["rules"]["fedfish"]["rounds"]:
        state, _ = rounds.step(federation, state, everyone, strategy="sequential")
        scores = ff.evaluate(network.apply, ff.categorical(), state.params, dataset.test_x, jnp.asarray(dataset.test_y))
        assert line["test_loss"] == pytest.approx(float(scores.loss), rel=1e-4)
        assert line["barrier_loss"] is not None and line["test_loss"] != line["loss"]
    assert found["rules"]["fedfish"]["bits_up"] == 2 * found["rules"]["fedavg"]["bits_up"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_files(whole, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the second rule's second round: one line that says how to go on, and then the same numbers."""
    same = (*ROUNDS, "--local", "fedprox", "--strength", "0.1", "--barrier", "--out", tmp_path)
    real, calls = _rounds._scores, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(_rounds, "_scores", interrupted)
        command(*same)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 130 and "every finished round of fedfish is kept" in said and "same command" in said
    assert not result(tmp_path)["complete"] and set(result(tmp_path)["rules"]) == {"fedavg"}
    command(*same)
    assert result(tmp_path)["rules"] == result(whole)["rules"]
    for name in ("fedavg", "fedfish"):
        for file in (f"rounds/rules/{name}/rounds.jsonl", f"models/{name}.safetensors"):
            assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()


def test_its_models_can_be_evaluated(whole, capsys):
    command("evaluate", whole / "models" / "fedfish.safetensors", "--data", "digits")
    said = float(capsys.readouterr().out.split("accuracy")[1].split()[0])
    assert said == pytest.approx(result(whole)["rules"]["fedfish"]["accuracy"], abs=1e-4)


@pytest.mark.slow
def test_warm_up_personalisation_and_a_servers_optimiser(tmp_path):
    out, more = tmp_path / "out", ("--warm-up", "fedavg", "--warm-up-rounds", "1", "--personalise", "1", "--pooled")
    more += (
        "--rules",
        "fedavg",
        "fedfish",
        "fipa@last,memory",
        "--server-optimizer",
        "server-adam",
        "--server-clip",
        "0.3",
        "--lengths",
        "0.5",
        "1",
    )
    command(*ROUNDS, *more, "--out", out)
    rules = result(out)["rules"]
    first = [rule["rounds"][0] for rule in rules.values()]
    assert first[0] == first[1] == first[2] and first[0]["round"] == 1
    told = [line["diagnostics"] for line in rules["fipa@last,memory"]["rounds"][1:]]
    assert told[0]["past_dropped_trace"] >= 0 and 0 < told[0]["joint_rank"] <= told[1]["joint_rank"]
    assert [line["round"] for line in rules["fedfish"]["rounds"]] == [1, 2, 3]
    tried = [line["diagnostics"]["line_search"] for rule in rules.values() for line in rule["rounds"]]
    assert all(one["length"] == (0.5, 1.0)[np.argmin(one["losses"])] for one in tried)
    assert rules["fedavg"]["bits_up"] == result(out)["fedavg_bits"] + 2 * 64  # losses, of float64 here
    assert rules["fedavg"]["rounds"][1]["loss"] == rules["fedfish"]["rounds"][1]["loss"]  # by the same clients
    assert rules["fedavg"]["rounds"][1] != rules["fedfish"]["rounds"][1]
    assert np.shape(rules["fedfish"]["personalised"]["accuracy"]) == (4,)
    assert result(out)["references"]["pooled"]["accuracy"] > 0.1
    command(*ROUNDS, "--rounds", "2", "--out", out, "--overwrite")
    assert [len(rule["rounds"]) for rule in result(out)["rules"].values()] == [2, 2]


@pytest.mark.slow
def test_clients_are_held_out_and_rules_have_servers_of_their_own(tmp_path):
    """By hand: 300 examples over 6 clients, 2 of them held out, who fine-tune on one half of theirs."""
    names = "fedavg,server-optimizer=none", "fedavg"
    flags = "--examples 300 --clients 6 --held-out 0.3 --personalise 2 --personalise-learning-rate 0.02 --shots 5"
    server = "--server-optimizer sgd --server-learning-rate 0.5 --schedule cosine_decay_schedule,decay_steps=20"
    command(*ROUNDS[:-3], *flags.split(), *server.split(), "--rules", *names, "--seed", "7", "--out", tmp_path)
    plain, half = (result(tmp_path)["rules"][name] for name in names)
    assert plain["rounds"][0]["moved"] == pytest.approx(2 * half["rounds"][0]["moved"], rel=1e-5)

    dataset, rng = data.load("digits"), np.random.default_rng(7)
    drawn = rng.permutation(len(dataset.train_y))[:300]
    split = data.split("dirichlet-client", dataset.train_y[drawn], 6, seed=7, alpha=1.0)
    parts = [drawn[split[place]] for place in rng.permutation(6)]
    halves = [np.array_split(rng.permutation(part), 2) for part in parts[4:]]
    cohorts = [ff.cohort(dataset.train_x, dataset.train_y, [pair[side] for pair in halves]) for side in (0, 1)]
    network, key = ff.models.build("mlp", (8, 8, 1), 10), run_keys(7)
    falling = optax.cosine_decay_schedule
    training = ff.LocalTraining(network.apply, ff.categorical(), optax.sgd(falling(0.01, 20), 0.9), 1, 64)
    federation = ff.Federation(training, ff.fedavg(network.apply, ff.categorical()), 2)
    state = rounds.init(federation, network.init(key.init), 4, key.train)
    everyone = ff.cohort(dataset.train_x, dataset.train_y, parts[:4])
    for _ in range(3):
        state, _ = rounds.step(federation, state, everyone, strategy="sequential")
    scores = ff.evaluate(network.apply, ff.categorical(), state.params, dataset.test_x, jnp.asarray(dataset.test_y))
    assert plain["loss"] == pytest.approx(float(scores.loss), rel=1e-4)
    tuning = ff.LocalTraining(network.apply, ff.categorical(), optax.sgd(falling(0.02, 20), 0.9), 2, 64)
    for name, shots in (("personalised", None), ("personalised_few", 5)):
        found = ff.personalise(tuning, state.params, *cohorts, key.measure, shots=shots, strategy="sequential")
        np.testing.assert_allclose(plain[name]["loss"], found.loss, rtol=1e-4)
        np.testing.assert_allclose(plain[name]["loss_before"], found.loss_before, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampled", "2"], "rounds: got 1, which is one shot, expected at least 2 with sampled"),
        (["--rounds", "2", "--sampled", "9"], "sampled: got 9"),
        (["--rounds", "2", "--sampled", "2", "--participation", "0.5"], "got both"),
        (["--rounds", "2", "--local", "fedprox"], "strength: got none"),
        (["--rounds", "2", "--strength", "1"], "strength: got 1.0"),
        (["--rounds", "2", "--local", "scaffold", "--optimizer", "adam"], "optimizer: got adam"),
        (["--optimizer", "scale_by_adam"], "optimizer: got 'scale_by_adam'"),
        (["--rounds", "2", "--server-optimizer", "os"], "server_optimizer: got 'os'"),
        (["--rounds", "2", "--warm-up", "fedavg"], "expected both or neither"),
        (["--rounds", "2", "--warm-up", "fedavg", "--warm-up-rounds", "2"], "expected some left"),
        (["--rounds", "2", "--rules", "fedavg+pfnm"], "makes another network"),
        (["--rounds", "2", "--server-learning-rate", "0.1"], "server_learning_rate"),
        (["--rounds", "2", "--server-schedule", "cosine_decay_schedule,decay_steps=9"], "server_schedule"),
        (["--schedule", "cosine"], "schedule: got 'cosine', expected one of optax: cosine_decay_schedule"),
        (["--schedule", "cosine_decay_schedule"], "needs decay_steps, as in"),
        (["--schedule", "cosine_decay_schedule,steps=9"], "got 'steps', expected one of init_value"),
        (["--schedule", "cosine_decay_schedule,decay_steps=x"], "decay_steps: got 'x'"),
        (
            ["--rounds", "2", "--local", "scaffold", "--schedule", "exponential_decay,transition_steps=1,decay_rate=1"],
            "steps of one",
        ),
        (["--rules", "fedfisher-kfac,dampin=1"], "got the option 'dampin', expected one of batch_size, damping"),
        (["--rounds", "2", "--server-momentum", "0.1"], "server_momentum: got 0.1"),
        (["--rounds", "2", "--server-clip", "0"], "server_clip: got 0.0"),
        (["--lengths", "0.5", "1"], "expected at least 2 with lengths"),
        (["--rounds", "2", "--lengths", "1", "-0.5"], "lengths: got -0.5, expected a number of at least 0"),
        (["--rounds", "2", "--lengths", "1", "1"], "lengths: got 1.0 1.0, expected numbers that differ"),
        (["--examples", "99999"], "examples: got 99999, expected at most 1442, as digits has"),
        (["--held-out", "0.2"], "expected at least 2 with held_out"),
        (["--rounds", "2", "--held-out", "0.2", "--shots", "3"], "held_out, shots: expected --personalise with it"),
        (["--rounds", "2", "--held-out", "0.95", "--personalise", "1"], "held_out: got 0.95 of 5 clients"),
        (
            ["--rounds", "2", "--held-out", "0.2", "--personalise", "1", "--sampled", "5"],
            "sampled: got 5, expected 1 to 4",
        ),
        (["--rules", "fedavg,server-clip=1"], "expected at least 2 with fedavg,server-clip=1, server_clip"),
        (
            ["--rounds", "2", "--rules", "fedavg,server-rate=1"],
            "'server_rate', expected one of server_optimizer, server_l",
        ),
        (["--rounds", "2", "--rules", "fedavg,server-clip=x"], "server_clip: got 'x', expected a number"),
        (["--rounds", "2", "--rules", "fedavg,server-clip=-1"], "server_clip: got -1.0, expected a positive number"),
        (["--rounds", "2", "--rules", "fedavg,server-learning-rate=1"], "expected a --server-optimizer with it"),
        (
            ["--rounds", "2", "--rules", "fedfish,server-clip=1+fedavg,server-clip=2"],
            "got server_clip twice, expected one server",
        ),
        (["--rounds", "2", "--rules", "fipa@first"], "expected one or some that fit of last, memory"),
        (["--rounds", "2", "--rules", "fipa@paper,public"], "expected one or some that fit of last, memory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_do_not_go_together(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command("run", "--out", tmp_path, *arguments)
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_server_of_a_rule_is_one_object_for_the_same_words():
    flags = RunSettings(server_optimizer="sgd", server_learning_rate=0.25, server_momentum=0.5, seed=3)
    own = _servers.server_of(flags, "fedavg,server-learning-rate=0.1")
    step, _ = own.update(jnp.ones(1), own.init(jnp.zeros(1)))
    assert float(step[0]) == pytest.approx(-0.1)
    assert own is _servers.server_of(
        RunSettings(), "fedavg,server-optimizer=sgd,server-learning-rate=0.1,server-momentum=0.5"
    )
    assert _servers.server_of(flags, "fedfish,server-optimizer=none,scale=mean") is None
    composed = "fedavg,server-clip=1+recalibrate,ridge=2,server-learning-rate=1@fc1"
    assert _servers.without_server(composed) == "fedavg+recalibrate,ridge=2@fc1"
    assert _servers.server_words(composed) == {"server_clip": "1", "server_learning_rate": "1"}


def test_optimisers_by_name():
    for name in ("adam", "adamw", "rmsprop", "yogi", "lion", "sgd"):
        made = optimizer("optimizer", name, 0.1)
        steps, _ = made.update(jnp.ones(2), made.init(jnp.zeros(2)), jnp.zeros(2))
        assert float(steps[0]) < 0


def test_schedules_by_name():
    assert rate("schedule", 0.5, None) == 0.5
    falls = rate("schedule", 0.5, "cosine_decay_schedule,decay_steps=10")
    assert float(falls(0)) == 0.5 and float(falls(5)) == pytest.approx(0.25) and float(falls(10)) == 0
    warms = rate("schedule", 0.5, "warmup_constant_schedule,warmup_steps=4")
    assert [float(warms(n)) for n in (0, 2, 4, 9)] == pytest.approx([0, 0.25, 0.5, 0.5])
    made = optimizer("optimizer", "sgd", falls, 0.0)
    state = made.init(jnp.zeros(1))
    for wanted in (0.5, falls(1)):
        step, state = made.update(jnp.ones(1), state)
        assert float(step[0]) == pytest.approx(-float(wanted))


@pytest.mark.slow
def test_what_the_catalogue_says_of_rules():
    """Which rules have a form in files is what the files say; those that change the network say so."""
    from fedfisher_jax._examples import Examples
    from fedfisher_jax.curvature import capture
    from fedfisher_jax.federate._one_shot import offers
    from fedfisher_jax.merge import Update
    from fedfisher_jax.payload import _structures as structures

    network, likelihood = ff.models.build("mlp", (8, 8, 1), 10, hidden=(24,)), ff.categorical()
    start = network.init(jax.random.key(0))
    training = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.1), 1, 32)
    offered = offers(network.init, training, capture(network.apply, start, jnp.zeros((1, 8, 8, 1))), 0)
    few = Examples(jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, int), jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))
    for name, entry in catalogue.RULES.items():
        rule = catalogue.named_rule(name, network.apply, likelihood, offers=offered)
        payload = jax.eval_shape(rule.measure, Update(start, start, start, 1), few, jax.random.key(0))
        try:
            structures.name_of(payload.statistics)
            found = True
        except ValueError:
            found = False
        assert (name, found) == (name, entry.files) and entry.says and not entry.says.endswith(".")


def test_version_and_list(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command("--version")
    assert capsys.readouterr().out == f"fedfisher {ff.__version__}\n"
    command("list")
    printed = capsys.readouterr().out
    assert "feddyn" in printed and all(name in printed for name in catalogue.RULES) and "…" not in printed
