"""Secure sums by mail: silos in folders of their own, a post that carries files, and the commands of docs/silos.md."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from samples import opened, resealed  # noqa: E402
from scipy import stats  # noqa: E402

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax import payload  # noqa: E402
from fedfisher_jax.cli import _cli as cli  # noqa: E402
from fedfisher_jax.cli import _secure_server as server  # noqa: E402
from fedfisher_jax.merge import catalogue  # noqa: E402
from fedfisher_jax.merge._one_by_one import merge_sums  # noqa: E402
from fedfisher_jax.privacy import _secure_letters as letters  # noqa: E402
from fedfisher_jax.silos import _model_file as model_file  # noqa: E402

SILOS, NEVER_MASKS, NEVER_REVEALS = 5, 4, 5
DOCS = (Path(__file__).parent.parent / "docs" / "silos.md").read_text()
LINES = {step: line for line, step in re.findall(r"^    (fedfisher secure (\w+).*)$", DOCS, re.M)}


def command(*arguments):
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.main([str(argument) for argument in arguments])
    return printed.getvalue()


def documented(step, silo, **changes):
    """A line of the documentation as this silo says it."""
    words = shlex.split(LINES[step], comments=True)[1:]
    words = [re.sub(r"^(p|keys|shares|masked|revealed)2\.", rf"\g<1>{silo}.", word) for word in words]
    words = [changes.get(word, word) for word in words]
    return [name for word in words for name in (sorted(map(str, Path().glob(word))) if "?" in word else [word])]


def folders(root, start):
    for number in range(SILOS + 1):  # 0 is the server's
        (root / str(number)).mkdir(parents=True)
        shutil.copy(start, root / str(number) / "start.safetensors")
    return root


def post(root, name, to):
    for number in to:
        for file in root.glob(f"[1-9]/{name}[1-9].safetensors"):
            if file.parent.name != str(number):
                shutil.copy(file, root / str(number))


def exchange(root, monkeypatch, name):
    """One sum by the documented commands; every silo is a folder, and one drops out before and one after masking."""

    def at(number, step, **changes):
        monkeypatch.chdir(root / str(number))
        return command(*documented(step, number, **{"heart, first sum": name} | changes))

    everybody = range(1, SILOS + 1)
    for number in everybody:
        at(number, "join")
    post(root, "keys", range(SILOS + 1))
    told = {number: re.search("fingerprint: (.*)", at(number, "share"))[1] for number in everybody}
    assert len(set(told.values())) == 1
    post(root, "shares", everybody)
    for number in everybody:
        if number != NEVER_MASKS:
            at(number, "mask", THEIRS=told[number % SILOS + 1])
    post(root, "masked", [0])
    for number in everybody:
        if number not in (NEVER_MASKS, NEVER_REVEALS):
            at(number, "reveal")
    post(root, "revealed", [0])
    at(0, "merge")
    return model_file.read("global.safetensors"), json.loads(Path("global.json").read_text())


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3, "--out", path)
    return path


def write(root, rule_name, start, moved):
    """Payload files of all silos, of models that differ and of unequal numbers of examples."""
    rule = catalogue.named_rule(rule_name, start.network.apply, ff.categorical())
    draw, examples = np.random.default_rng(1), []
    for number in range(1, SILOS + 1):
        x, y = draw.normal(size=(9 + number, 6)).astype(np.float32), draw.integers(0, 3, 9 + number)
        noise = lambda leaf: jnp.asarray(moved * draw.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
        model = jax.tree.map(lambda leaf: leaf + noise(leaf), start.params)  # noqa: B023
        sent = rule.measure(ff.Update(model, start.params), ff.examples(x, y), jax.random.key(0))
        kind = None if sent.kind is None else sent.kind.name
        said = payload.About(rule_name, "categorical", start.fingerprint, kind, silo=number, name=f"silo {number}")
        payload.write(root / str(number) / f"p{number}.safetensors", sent, said)
        examples.append(len(y))
    return rule, examples


def plain(root, start_path, *numbers):
    """The merge of these silos' payload files, in the clear."""
    out = root / "plain.safetensors"
    files = [root / str(n) / f"p{n}.safetensors" for n in numbers]
    command("merge", *files, "--start", start_path, "--out", out)
    return model_file.read(out)


def require_near(ours, theirs, far):
    for a, b in zip(jax.tree.leaves(ours.sent), jax.tree.leaves(theirs.sent), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=far * np.abs(b).max())


STAYED = [1, 2, 3, 5]


@pytest.fixture(scope="module")
def recalibrated(start, tmp_path_factory):
    """Two sums, FedAvg and then the last layer at its model, and what the plain merges are."""
    with pytest.MonkeyPatch.context() as patch:
        first = folders(tmp_path_factory.mktemp("first"), start)
        _, examples = write(first, "fedavg", model_file.read(start), 0.1)
        averaged, report = exchange(first, patch, "heart, first sum")
        second = folders(tmp_path_factory.mktemp("second"), first / "0" / "global.safetensors")
        write(second, "recalibrate", averaged, 0.0)
        better, _ = exchange(second, patch, "heart, second sum")
    return first, second, averaged, better, report, examples


@pytest.mark.slow
def test_a_recalibrated_merge_by_mail_is_the_plain_one_of_those_who_stayed(recalibrated, start, tmp_path):
    first, second, averaged, better, report, examples = recalibrated
    assert report["contributors"] == STAYED and report["dropped_out"] == [NEVER_MASKS]
    assert report["revealed"] == [1, 2, 3] and report["threshold"] == 3
    assert report["examples"] == sum(examples) - examples[NEVER_MASKS - 1]
    require_near(averaged, plain(first, start, *STAYED), np.finfo(np.float32).eps)
    require_near(better, plain(second, first / "0" / "global.safetensors", *STAYED), 1e-4)
    with pytest.raises(AssertionError):
        require_near(averaged, plain(first, start, 1, 2, 3), 1e-4)


def test_the_sum_is_within_half_a_step_for_every_silo(recalibrated, start, monkeypatch):
    first, seen = recalibrated[0], []
    monkeypatch.chdir(first / "0")
    monkeypatch.setattr(
        server, "merge_sums", lambda rule, sums, *rest: seen.append(sums) or merge_sums(rule, sums, *rest)
    )
    command(*documented("merge", 0))
    like = model_file.read(start).params
    sent = {n: payload.read(first / str(n) / f"p{n}.safetensors", like)[0] for n in range(1, SILOS + 1)}
    for place, got in enumerate(jax.tree.leaves(seen[0].high["params"])):
        each = {n: np.float32(one.weight) * np.asarray(jax.tree.leaves(one.params)[place]) for n, one in sent.items()}
        want = sum(each[n].astype(np.float64) for n in STAYED)
        largest = max(np.abs(one).max() for one in each.values())
        step = 2.0 ** (np.floor(np.log2(largest)) + 1 - 60)
        assert np.abs(got - want).max() <= len(STAYED) * step / 2 + 2.0**-52 * np.abs(want).max()


def test_a_silo_answers_one_list_also_after_it_was_killed(recalibrated, monkeypatch, tmp_path, capsys):
    first = recalibrated[0]
    shutil.copytree(first / "2", tmp_path / "2")
    monkeypatch.chdir(tmp_path / "2")
    before = Path("revealed2.safetensors").read_bytes()
    command(*documented("reveal", 2))
    assert Path("revealed2.safetensors").read_bytes() == before  # the same question, the same answer
    for other in ([1, 2, 3], [1, 2, 3, 4, 5]):
        refused("stayed: client 2 has answered to others before", capsys, "secure", "reveal", "--stayed", *other)
    refused("without this silo", capsys, "secure", "reveal", "--stayed", 1, 3, 4)

    shutil.copytree(first / "5", tmp_path / "5")  # has masked, and is killed when it reveals: the state was written
    monkeypatch.chdir(tmp_path / "5")
    with monkeypatch.context() as patch:
        patch.setattr(letters, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            command(*documented("reveal", 5))
    assert not Path("revealed5.safetensors").exists()
    refused("stayed: client 5 has answered to others before", capsys, "secure", "reveal", "--stayed", 1, 2, 5)
    assert Path("secure.state").stat().st_mode & 0o077 == 0
    refused("secure.state is there already", capsys, *documented("join", 5))


def refused(words, capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command(*arguments)
    said = capsys.readouterr().err
    assert left.value.code == 2 and words in said and said.count("\n") == 1, said


def test_a_server_that_tells_stories_is_refused(recalibrated, monkeypatch, tmp_path, capsys):
    first = recalibrated[0]
    shutil.copytree(first / "3", tmp_path / "3")
    monkeypatch.chdir(tmp_path / "3")
    theirs = re.search("fingerprint: (.*)", command(*documented("share", 3)))[1]
    letter = Path("keys1.safetensors").read_bytes()
    louder = resealed(letter, lambda header, _: header["scales"].__setitem__(0, 900))  # others' numbers round to zero
    Path("keys1.safetensors").write_bytes(louder)
    refused("keys: client 3 has answered to others before", capsys, *documented("share", 3))
    Path("keys1.safetensors").write_bytes(letter)
    mask = {"THEIRS": theirs, "masked3.safetensors": "again.safetensors"}
    command(*documented("mask", 3, **mask))
    assert Path("again.safetensors").read_bytes() == Path("masked3.safetensors").read_bytes()
    refused(
        "fingerprint: theirs is another one", capsys, *documented("mask", 3, **mask | {"THEIRS": "ab" + theirs[2:]})
    )
    swapped = resealed(Path("shares1.safetensors").read_bytes(), lambda header, _: header.update(silo=2))
    Path("shares2.safetensors").write_bytes(swapped)
    refused("the message of client 2 was changed", capsys, *documented("mask", 3, **mask))
    Path("shares2.safetensors").unlink()
    refused("second letters of silos [2] are missing", capsys, *documented("mask", 3, **mask))
    monkeypatch.chdir(shutil.copytree(first / "0", tmp_path / "0"))
    Path("masked1.safetensors").unlink()
    refused("is for the sum of silos [1, 2, 3, 5], here are [2, 3, 5]", capsys, *documented("merge", 0))


def test_the_servers_files_are_uniform_numbers_and_what_is_announced(recalibrated):
    first, second = recalibrated[:2]
    for folder in (first, second):
        words = [letters.read(folder / "0" / f"masked{n}.safetensors").words for n in STAYED]
        assert least(np.concatenate(words)) > 1e-6 and least(words[0] - words[1]) > 1e-6
    encoded = np.asarray(1e6 * np.random.default_rng(0).normal(size=4000)).astype(np.int64).view(np.uint64)
    assert least(encoded) < 1e-12  # the test can fail
    files = {name: [opened((first / "0" / f"{name}{n}.safetensors").read_bytes()) for n in (1, 2, 3)] for name in KINDS}
    for name, found in files.items():
        for header, arrays in found:
            assert set(header) - COMMON == set(KINDS[name]) and set(arrays) == (
                {"masked"} if name == "masked" else set()
            )
    for header, _ in files["keys"]:
        assert header["template"]["examples"] == 1 and header["template"]["name"] == ""
        assert all(isinstance(scale, int) for scale in header["scales"])
        assert header["signature"] == ""  # by mail silos compare the fingerprint


COMMON = {"format", "holds", "library", "silo", "round", "silos", "threshold", "sha256"}
KINDS = {
    "keys": ("keys", "template", "scales", "signature"),
    "masked": ("story",),
    "revealed": ("story", "stayed", "seeds", "maskings"),
}


def least(words):
    """The smallest p-value of tests that uint64 words are uniform, byte by byte, bit by bit, and as numbers."""
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).sum(0)
    return min(
        stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue,
        stats.kstest(words / 2.0**64, "uniform").pvalue,
        64 * min(stats.binomtest(int(count), len(words)).pvalue for count in bits),
    )


SLOW = [pytest.param(rule, marks=pytest.mark.slow) for rule in ("regmean-kron", "natural-gradient")]


@pytest.mark.parametrize("rule", ["fisher-merge", *SLOW])
def test_every_rule_that_adds(rule, start, tmp_path, monkeypatch):
    root = folders(tmp_path, start)
    write(root, rule, model_file.read(start), 0.1)
    merged, _ = exchange(root, monkeypatch, "heart, first sum")
    require_near(merged, plain(root, start, *STAYED), 1e-3)


def test_a_region_is_one_member_of_a_sum(start, tmp_path, monkeypatch, capsys):
    """A region of silos 1 to 3, and silos 4 and 5, whose numbers in the sum are 1 to 3; nobody drops out."""
    root = folders(tmp_path, start)
    write(root, "fedavg", model_file.read(start), 0.1)
    region = root / "1" / "region.safetensors"
    own = {1: region, 2: root / "4" / "p4.safetensors", 3: root / "5" / "p5.safetensors"}
    three = [root / str(n) / f"p{n}.safetensors" for n in (1, 2, 3)]
    command("fold", *three, "--start", start, "--out", region)

    def at(number, step, *arguments):
        monkeypatch.chdir(root / str(number))
        return command("secure", step, *arguments)

    joining = "--round", "heart", "--silos", 3
    with pytest.raises(SystemExit):
        at(1, "join", region, *joining)
    assert "is a region, which has none, expected --number" in " ".join(capsys.readouterr().err.split())
    for number, path in own.items():
        at(number, "join", path, *joining, "--number", number, "--out", f"keys{number}.safetensors")
    post(root, "keys", range(4))
    letter = lambda name, number: f"{name}{number}.safetensors"  # noqa: E731
    all_of = lambda name, number: [root / str(number) / letter(name, n) for n in own]  # noqa: E731
    told = [at(n, "share", *all_of("keys", n), "--out", letter("shares", n)) for n in own]
    post(root, "shares", own)
    theirs = re.search("fingerprint: (.*)", told[0])[1]
    for n, path in own.items():
        given = "--payload", path, "--fingerprint", theirs, "--out", letter("masked", n)
        at(n, "mask", *all_of("shares", n), *given)
        at(n, "reveal", "--stayed", *own, "--out", letter("revealed", n))
    for name in ("masked", "revealed"):
        post(root, name, [0])
    at(0, "merge", *(path for name in ("keys", "masked", "revealed") for path in all_of(name, 0)))
    require_near(model_file.read(root / "0" / "global.safetensors"), plain(root, start, 1, 2, 3, 4, 5), 1e-6)
    assert json.loads((root / "0" / "global.json").read_text())["examples"] == sum(range(10, 15))
