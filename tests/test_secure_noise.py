"""Noise for every example that is divided among the silos of a secure sum by mail."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

from samples import resealed  # noqa: E402
from scipy import stats  # noqa: E402
from test_secure_mail import SILOS, STAYED, command, documented, exchange, folders, refused  # noqa: E402

from fedfisher_jax import payload  # noqa: E402
from fedfisher_jax.cli import _secure_server as server  # noqa: E402
from fedfisher_jax.merge import _heads as heads  # noqa: E402
from fedfisher_jax.merge._one_by_one import merge_sums  # noqa: E402
from fedfisher_jax.payload import PayloadError  # noqa: E402
from fedfisher_jax.payload import _files_of_a_merge as files_of  # noqa: E402
from fedfisher_jax.privacy import _integer_noise as integer_noise  # noqa: E402
from fedfisher_jax.privacy import _secure_letters as letters  # noqa: E402
from fedfisher_jax.privacy import _secure_steps as steps  # noqa: E402
from fedfisher_jax.privacy import example_noise  # noqa: E402
from fedfisher_jax.silos import _model_file as model_file  # noqa: E402

EXAMPLES, SHARERS = 12, 3
PROMISE = example_noise.promise(4.0, 1e-5, clip_features=0.5, trust="distributed", sharers=SHARERS)
ASKED = "--epsilon", 4, "--unit", "example", "--clip-features", 0.5, "--trust", "distributed"


def measure(folder, number, scale=1.0, sharers=SHARERS):
    """A silo's payload, of examples of its own."""
    draw = np.random.default_rng(number)
    x, y = scale * draw.normal(size=(EXAMPLES, 6)), draw.integers(0, 3, EXAMPLES)
    np.savez(folder / "mine.npz", x=x.astype(np.float32), y=y)
    out, start = folder / f"p{number}.safetensors", folder / "start.safetensors"
    given = "--data", folder / "mine.npz", "--start", start, "--out", out, "--silo", number, "--rule", "recalibrate"
    return command("measure", *given, "--unscaled", *ASKED, "--sharers", sharers)


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    """The folders of five silos of equal data after a sum that one of them left before masking, and the report."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3, "--out", path)
    root = folders(tmp_path_factory.mktemp("noisy"), path)
    assert "it has no noise yet" in measure(root / "1", 1)
    sent = (root / "1" / "p1.safetensors").read_bytes()
    for number in range(2, SILOS + 1):
        own = resealed(sent, lambda header, _: header.update(silo=number))  # noqa: B023
        (root / str(number) / f"p{number}.safetensors").write_bytes(own)
    seeds = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:  # of the noise alone; keys and masks are random
        patch.setattr(steps, "os", SimpleNamespace(urandom=lambda size: bytes([next(seeds)]) * size))
        return root, exchange(root, patch, "heart, first sum")[1]


def test_the_sum_has_the_noise_of_those_who_stayed_and_tells_it(summed, monkeypatch):
    (root, report), seen = summed, []
    monkeypatch.chdir(root / "0")
    keep = lambda rule, sums, *rest: seen.append(sums.high) or merge_sums(rule, sums, *rest)  # noqa: E731
    monkeypatch.setattr(server, "merge_sums", keep)
    command(*documented("merge", 0))
    got, like = seen[0]["moments"], model_file.read("start.safetensors").params
    sent = [payload.read(root / str(n) / f"p{n}.safetensors", like)[0].statistics for n in STAYED]
    noise = {
        name: getattr(got, name) - sum(EXAMPLES * np.asarray(getattr(one, name), np.float64) for one in sent)
        for name in ("second", "cross", "totals")
    }
    np.testing.assert_array_equal(got.second, got.second.T)
    wanted = np.asarray(example_noise.deviations(PROMISE)) * np.sqrt(len(STAYED) / SHARERS)
    said = np.sqrt(got.variances)
    assert (said > wanted).all()  # rounding counts, and is little
    np.testing.assert_allclose(said, wanted, rtol=1e-4)
    off = noise["second"][np.triu_indices(len(got.second), 1)] * np.sqrt(2)
    for found, std in ((np.diag(noise["second"]), wanted[0]), (off, wanted[0]), (noise["cross"], wanted[1])):
        square = ((found / std) ** 2).sum()
        assert 1e-6 < stats.chi2.cdf(square, found.size) < 1 - 1e-6
        assert abs(found.mean()) < 5 * std / np.sqrt(found.size)
    three, five = (stats.chi2.cdf(((off / wanted[0]) ** 2).sum() * len(STAYED) / n, off.size) for n in (3, 5))
    assert three > 1 - 1e-3 and five < 0.02  # the noise of as many silos would have been seen
    told = report["every_example"]
    assert (told["epsilon"], told["sharers"], told["silos_with_noise"]) == (4.0, SHARERS, len(STAYED))
    assert 3.0 < told["epsilon_if_all_keep_theirs"] < 3.6
    np.testing.assert_allclose([told["noise"][name] for name in noise], said)
    ridge = heads.RIDGE * max(np.trace(got.second), 0) / len(got.second)
    ridge += heads.ADASSP * heads.noise_ridge(got.second, wanted[0] ** 2)
    assert report["diagnostics"]["ridge"] == pytest.approx(ridge, rel=1e-3)
    assert report["examples"] == EXAMPLES * len(STAYED)


def test_masked_again_the_noise_is_the_same_and_of_other_noise_nothing_is_told(summed, monkeypatch, tmp_path, capsys):
    root, _ = summed
    monkeypatch.chdir(shutil.copytree(root / "3", tmp_path / "3"))
    theirs = re.search("fingerprint: (.*)", command(*documented("share", 3)))[1]
    words = {"THEIRS": theirs, "masked3.safetensors": "again.safetensors"}
    command(*documented("mask", 3, **words))
    assert Path("again.safetensors").read_bytes() == Path("masked3.safetensors").read_bytes()
    state = Path("secure.state").read_bytes()
    Path("secure.state").write_bytes(resealed(state, lambda header, _: header.update(noise="ab" * 32)))
    refused("values: client 3 has answered to others before", capsys, *documented("mask", 3, **words))
    Path("secure.state").write_bytes(state)
    shutil.copy(root / "2" / "p2.safetensors", "p3.safetensors")
    other = resealed(Path("p3.safetensors").read_bytes(), lambda header, _: header["privacy"].update(sharers=2))
    Path("p3.safetensors").write_bytes(other)
    refused("p3.safetensors is not what this silo announced", capsys, *documented("mask", 3, **words))


def test_what_is_announced_does_not_depend_on_the_data(summed, monkeypatch, tmp_path):
    root, _ = summed
    shutil.copy(root / "2" / "start.safetensors", tmp_path)
    measure(tmp_path, 2, scale=1e-3)
    sent = [payload.read(folder / "p2.safetensors")[0].statistics.second for folder in (root / "2", tmp_path)]
    assert np.abs(sent[0]).max() > 1e3 * np.abs(sent[1]).max()
    monkeypatch.chdir(tmp_path)
    command(*documented("join", 2, **{"heart, first sum": "another"}))
    said = [letters.read(folder / "keys2.safetensors").announced for folder in (root / "2", tmp_path)]
    assert said[0].scales == said[1].scales and said[0].template == said[1].template


def test_such_a_file_goes_nowhere_else(summed, monkeypatch, tmp_path, capsys):
    root, _ = summed
    monkeypatch.chdir(shutil.copytree(root / "1", tmp_path / "1"))
    for step in ("merge", "fold"):
        refused("so only fedfisher secure may take it", capsys, step, "p1.safetensors")
    assert "fedfisher secure alone" in " ".join(command("inspect", "p1.safetensors").split())
    with pytest.raises(PayloadError, match="so only fedfisher secure may take it"):
        files_of.opened(Path("p1.safetensors").read_bytes(), "node 1")  # what Flower's server reads replies by
    measure(Path(), 1, sharers=4)
    refused("threshold: got 3, and the noise is divided among 4", capsys, *documented("join", 1, **{"secure.state": 0}))


def test_scales_that_no_silo_can_have_are_refused(summed):
    """A silo in league with the server could else announce numbers beside which those of others round to nothing."""
    root, _ = summed
    sent, _ = payload.read(root / "2" / "p2.safetensors")
    like = {"moments": sent.statistics, "weight": np.asarray(float(EXAMPLES))}
    said = letters.read(root / "2" / "keys2.safetensors").announced.scales
    share = integer_noise.share_of(PROMISE, [said] * 4, 4, like)
    assert min(variance for variance in share.variances if variance) > 2**80 and share.variances[-1] == 0
    for place, exponent in ((0, 900), (1, 60), (2, 1024), (3, 60), (3, 1024)):
        lie = [*said[:place], exponent, *said[place + 1 :]]
        with pytest.raises(ValueError, match="that no silo of this promise can have"):
            integer_noise.share_of(PROMISE, [said, lie, said], 3, like)
    with pytest.raises(ValueError, match="steps of the sum, expected at least"):
        integer_noise.share_of(PROMISE, [said, [50, *said[1:]], said], 3, like)


def test_silos_of_other_promises_are_refused(summed, monkeypatch, tmp_path, capsys):
    root, _ = summed
    monkeypatch.chdir(shutil.copytree(root / "2", tmp_path / "2"))
    letter = Path("keys1.safetensors").read_bytes()
    for change, words in (
        (lambda said: said.update(privacy=None), "keys2.safetensors: privacy: another promise than in keys1"),
        (lambda said: said["privacy"].update(sharers=2), "privacy: another promise"),
        (lambda said: said["privacy"].update(epsilon=1.0), "noise multiplier of 1.08"),
        (lambda said: said["privacy"].update(epsilon="1"), "expected a promise"),
    ):
        other = resealed(letter, lambda header, _: change(header["template"]))  # noqa: B023
        Path("keys1.safetensors").write_bytes(other)
        refused(words, capsys, *documented("share", 2))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--trust", "distributed"), "trust: needs epsilon"),
        (("--epsilon", 1, "--sharers", 3), "sharers: needs unit example"),
        (("--epsilon", 1, "--unit", "example", "--sharers", 3), "trust, sharers: got 'local', 3"),
        ((*ASKED, "--budget", 1), "budget: with noise inside a secure sum files are exact"),
        (("--rule", "fedavg", *ASKED), "trust: fedavg adds its noise while it trains"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(more, words, summed, monkeypatch, capsys):
    monkeypatch.chdir(summed[0] / "1")
    rule = () if "--rule" in more else ("--rule", "recalibrate")
    refused(words, capsys, "measure", "--data", "mine.npz", *rule, *more)
