"""Rounds go on where they were stopped, in a folder that is theirs."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest
import small_rounds
from small_rounds import FEDAVG, KFAC, LIKELIHOOD, NETWORK, TRAIN, begun, plan_of

import fedfisher_jax as ff
from fedfisher_jax._files import only_writer
from fedfisher_jax.federate import _checkpoints as resume
from fedfisher_jax.federate import _variants as variants
from fedfisher_jax.federate import rounds
from fedfisher_jax.federate._private import Private

problem = pytest.fixture(scope="module")(small_rounds.problem)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sequential", "vectorised"])
def test_one_program_tells_of_a_model_that_diverged_and_nothing_of_it_is_kept(problem, strategy, tmp_path):
    _, who = problem
    far = dataclasses.replace(TRAIN, optimizer=optax.sgd(1e200))
    plan = dataclasses.replace(plan_of(FEDAVG), training=far)
    state = begun(problem, plan)
    _, metrics = rounds.step(plan, state, who, strategy=strategy)
    assert np.isinf(metrics.loss) and not np.isfinite(metrics.moved)
    with pytest.raises(ValueError, match="round 1: NaN or infinity after a round's training"):
        resume.run_rounds(plan, state, who, 2, tmp_path, strategy=strategy)
    assert not resume.read_lines(tmp_path / "rounds.jsonl")
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_parameters(problem, tmp_path):
    """A process is killed in round 7 of 10; another one goes on; the result is that of an undisturbed run."""
    worker = Path(__file__).with_name("rounds_worker.py")

    def launch(folder, kill):
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, str(worker), str(folder), str(kill)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert launch(tmp_path / "killed", 7).returncode == -signal.SIGKILL
    assert len(resume.read_lines(tmp_path / "killed" / "rounds.jsonl")) == 6
    resumed, whole = launch(tmp_path / "killed", 0), launch(tmp_path / "whole", 0)
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    assert resumed.stdout == whole.stdout != ""
    lines = [resume.read_lines(tmp_path / name / "rounds.jsonl") for name in ("killed", "whole")]
    assert lines[0] == lines[1] and [line["round"] for line in lines[0]] == list(range(1, 11))


def test_rounds_go_on_from_a_state_that_has_some_behind_it(problem, tmp_path):
    """A warm-up in a folder of its own, and the rest in another, are the rounds of one run."""
    _, who = problem
    plan = plan_of(FEDAVG)
    state = begun(problem, plan)
    run = lambda state, count, name: resume.run_rounds(plan, state, who, count, tmp_path / name, strategy="sequential")  # noqa: E731
    whole, lines = run(state, 3, "whole")
    warm, first = run(state, 1, "warm")
    for count in (2, 3, 3):  # the rest is interrupted after a round, and then begun once more where it is done
        rest, others = run(warm, count, "rest")
    assert [*first, *others] == lines and int(rest.round) == 3
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)


def test_too_few_rounds_are_refused(problem, tmp_path):
    _, who = problem
    plan = plan_of(FEDAVG)
    state = begun(problem, plan)
    resume.run_rounds(plan, state, who, 2, tmp_path, strategy="sequential")
    with pytest.raises(ValueError, match="rounds: got 1"):
        resume.run_rounds(plan, state, who, 1, tmp_path, strategy="sequential")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0], lines[1][:9], lines[2]], "line 2: got .*expected an object with round"),
        (lambda lines: [lines[0], "{}", lines[2]], "line 2: got"),
        (lambda lines: [lines[0], lines[2]], "line 2: got round 3, expected 2"),
        (lambda lines: [lines[0].replace('"round": 1', '"round": "1"'), *lines[1:]], "line 1: got round 1"),
    ],
)
def test_a_damaged_line_of_rounds_is_named_before_a_round_is_run(change, words, problem, tmp_path):
    _, who = problem
    plan = plan_of(FEDAVG)
    state = begun(problem, plan)
    resume.run_rounds(plan, state, who, 3, tmp_path, strategy="sequential")
    log = tmp_path / "rounds.jsonl"
    log.write_text("\n".join(change(log.read_text().splitlines())) + "\n")
    with pytest.raises(ValueError, match=rf"rounds\.jsonl: {words}"):
        resume.run_rounds(plan, state, who, 4, tmp_path, strategy="sequential")


@pytest.mark.parametrize("text", ["{", "[1]", "3", ""])
def test_a_damaged_note_of_whose_folder_it_is(text, problem, tmp_path):
    _, who = problem
    plan = plan_of(FEDAVG)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        resume.run_rounds(plan, begun(problem, plan), who, 1, tmp_path)


def test_a_folder_of_another_run_is_refused_with_what_differs(problem, tmp_path):
    _, who = problem
    plan = plan_of(FEDAVG)
    run = lambda plan, who, seed: resume.run_rounds(  # noqa: E731
        plan, begun(problem, plan, seed=seed), who, 2, tmp_path, strategy="sequential"
    )
    first, _ = run(plan, who, 1)
    again, _ = run(plan, who, 1)
    chex.assert_trees_all_equal(again.params, first.params)
    faster = dataclasses.replace(plan, training=dataclasses.replace(TRAIN, optimizer=optax.sgd(50.0)))
    more = dataclasses.replace(plan, training=dataclasses.replace(TRAIN, epochs=5))
    others = dataclasses.replace(who, x=who.x + 1)
    private = dataclasses.replace(plan, training=dataclasses.replace(TRAIN, private=Private(1.0, 0.5, 40)))
    for other, words in (
        ((private, who, 1), "private None there, Private.*noise=0.5"),
        ((dataclasses.replace(plan, barrier=True), who, 1), "barrier False there, True here"),
        ((plan, who, 2), "key "),
        ((faster, who, 1), "optimizer "),
        ((more, who, 1), "epochs 2 there, 5 here"),
        ((plan, others, 1), "data "),
        ((dataclasses.replace(plan, variant=variants.fedprox(0.5)), who, 1), "variant none there"),
        ((plan_of(KFAC), who, 1), "rule fedavg there, fedfisher-kfac here"),
    ):
        with pytest.raises(ValueError, match=f"holds another run: .*{words}"):
            run(*other)
    with only_writer(tmp_path), pytest.raises(ValueError, match="another run is writing"):
        run(plan, who, 1)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (KFAC, ff.fedfisher(NETWORK.apply, LIKELIHOOD, solver=ff.conjugate_gradients(damping=9.0)), "rule's settings"),
        (KFAC, ff.fedfisher(NETWORK.apply, LIKELIHOOD, kind="monte_carlo", samples=3), "rule's settings"),
        (KFAC, ff.fedfisher(NETWORK.apply, LIKELIHOOD), None),
    ],
    ids=["another solver", "another Fisher", "the same"],
)
def test_rules_of_one_name_are_told_apart_by_their_settings(one, other, words, problem, tmp_path):
    """Those that were made twice alike are the same rule."""
    run = lambda rule: resume.run_rounds(  # noqa: E731
        plan_of(rule), begun(problem, plan_of(rule)), problem[1], 1, tmp_path, strategy="sequential"
    )
    first, _ = run(one)
    if words:
        with pytest.raises(ValueError, match=words):
            run(other)
    else:
        chex.assert_trees_all_equal(run(other)[0].params, first.params)


def test_a_folder_that_cannot_be_written_is_refused_before_a_round(problem, tmp_path):
    plan, file = plan_of(FEDAVG), tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="folder: cannot write to .*inside"):
        resume.run_rounds(plan, begun(problem, plan), problem[1], 1, file / "inside")


@pytest.mark.slow
def test_rounds_of_optimisers_that_need_the_loss_are_kept_apart_too(problem, tmp_path):
    _, who = problem
    newton = dataclasses.replace(TRAIN, optimizer=optax.lbfgs(memory_size=2))
    plan = dataclasses.replace(plan_of(FEDAVG), training=newton)
    state = begun(problem, plan)
    resume.run_rounds(plan, state, who, 1, tmp_path, strategy="sequential")
    strong, weak = (dataclasses.replace(plan_of(FEDAVG), variant=variants.fedprox(mu)) for mu in (0.5, 0.1))
    resume.run_rounds(strong, state, who, 1, tmp_path / "prox", strategy="sequential")
    with pytest.raises(ValueError, match="variant "):
        resume.run_rounds(weak, state, who, 1, tmp_path / "prox", strategy="sequential")


def test_settings_of_every_part_of_a_rule_make_a_run_what_it_is(problem):
    _, who = problem
    state = begun(problem, plan_of(FEDAVG))

    def identity(rule):
        return resume._identity(plan_of(rule), state, who, None)["the rule's settings"]

    apply = NETWORK.apply
    heads = [ff.then(FEDAVG, ff.merge.recalibrate(apply, LIKELIHOOD, ridge=ridge)) for ridge in (1e-4, 1e-4, 10.0)]
    pasts = [ff.fipa(apply, LIKELIHOOD, past=ff.merge.PastFishers(rho=rho)) for rho in (5.0, 5.0, 0.1)]
    loops = [ff.fedfisher(apply, LIKELIHOOD, solver=ff.paper_loop(optax.sgd(rate))) for rate in (0.1, 0.1, 0.001)]
    for first, same, other in (heads, pasts, loops):
        assert identity(first) == identity(same) != identity(other)


def test_a_run_whose_first_round_failed_may_change(problem, tmp_path):
    _, who = problem
    plan = plan_of(FEDAVG)
    far = dataclasses.replace(plan, training=dataclasses.replace(TRAIN, optimizer=optax.sgd(1e200)))
    with pytest.raises(ValueError, match="lower the learning rate"):
        resume.run_rounds(far, begun(problem, far), who, 2, tmp_path, strategy="sequential")
    _, lines = resume.run_rounds(plan, begun(problem, plan), who, 1, tmp_path, strategy="sequential")
    assert len(lines) == 1
    with pytest.raises(ValueError, match="holds another run: .*optimizer"):
        resume.run_rounds(far, begun(problem, far), who, 2, tmp_path, strategy="sequential")


def test_lines_that_a_checkpoint_has_and_its_folder_lacks_are_missed_at_once(problem, tmp_path):
    _, who = problem
    plan = plan_of(FEDAVG)
    resume.run_rounds(plan, begun(problem, plan), who, 2, tmp_path, strategy="sequential")
    (tmp_path / "rounds.jsonl").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"rounds\.jsonl: got 0 lines, expected 2"):
            resume.run_rounds(plan, begun(problem, plan), who, 3, tmp_path, strategy="sequential")


@pytest.mark.parametrize("damage", [lambda path: path.write_text("garbage"), lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(damage, problem, tmp_path):
    _, who = problem
    plan = plan_of(FEDAVG)
    resume.run_rounds(plan, begun(problem, plan), who, 2, tmp_path, strategy="sequential")
    for path in (tmp_path / "checkpoints" / "2").rglob("*"):
        if path.is_file():
            damage(path)
    with pytest.raises(ValueError, match=r"folder: .*checkpoints/2 cannot be read .*go on from the checkpoint before"):
        resume.run_rounds(plan, begun(problem, plan), who, 3, tmp_path, strategy="sequential")
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    _, lines = resume.run_rounds(plan, begun(problem, plan), who, 3, tmp_path, strategy="sequential")
    assert [line["round"] for line in lines] == [1, 2, 3]
