"""Rules of several exchanges by the silos' commands: what is sent between them is a file, the result that of memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import opened, resealed

import fedfisher_jax as ff
from fedfisher_jax import payload
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.merge import Draws, exchanges, natural_gradient, pseudo_data
from fedfisher_jax.payload import PayloadError
from fedfisher_jax.silos import _model_file as model_file

SILOS, SHAPE, CLASSES = 3, 6, 3
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(50, SHAPE)).astype(np.float32)
Y = DRAW.integers(0, CLASSES, 50)
PARTS = np.array_split(np.arange(50), [11, 23])
RULE = "natural-gradient"
pytestmark = pytest.mark.slow


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three silos' data, a start, and both exchanges of a step by files, then of another one."""
    here = tmp_path_factory.mktemp("exchanges")
    command("init", "--model", "mlp", "--input-shape", SHAPE, "--outputs", CLASSES, "--out", here / "0.safetensors")
    for number, rows in enumerate(PARTS):
        np.savez(here / f"silo{number}.npz", x=X[rows], y=Y[rows])
    for exchange in range(4):
        begin, out = here / f"{exchange}.safetensors", here / f"{exchange + 1}.safetensors"
        sent = [measured(here, number, begin, here / f"sent{exchange}-{number}.safetensors") for number in range(SILOS)]
        more = ["--rule", f"{RULE},steps=2"] if exchange == 1 else []  # another step is to come
        command("merge", *sent, "--start", begin, "--out", out, *more)
    return here


def measured(here, number, begin, out, *more):
    mine = ["--data", here / f"silo{number}.npz", "--silo", number, "--start", begin, "--rule", RULE, "--out", out]
    command("measure", *mine, *more)
    return out


def payloads(here, exchange):
    return [here / f"sent{exchange}-{number}.safetensors" for number in range(SILOS)]


def in_memory(here):
    """What is sent after each exchange of two steps, from what the files hold before it."""
    network, clients = (
        model_file.read(here / "0.safetensors").network,
        [ff.examples(X[rows], Y[rows]) for rows in PARTS],
    )
    for number, part in enumerate(exchanges(natural_gradient(network.apply, ff.categorical(), steps=2))):
        sent = model_file.read(here / f"{number}.safetensors").sent
        made = [part.measure(ff.Update(None, sent), one, jax.random.key(0)) for one in clients]
        yield ff.merge_payloads(part, made, sent).params


def near(ours, theirs, far=1e-4):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=far * np.abs(b).max())


def test_two_steps_by_files_are_those_of_memory(folder):
    for exchange, expected in enumerate(in_memory(folder), start=1):
        found = model_file.read(folder / f"{exchange}.safetensors")
        near(found.sent, expected, 1e-3 if exchange % 2 else 1e-4)  # directions magnify float32's rounding, by 1 / λ
    first = model_file.read(folder / "0.safetensors")
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found.params, first.params)
    assert found.between is None and min(jax.tree.leaves(moved)) > 1e-3
    report = json.loads((folder / "1.json").read_text())
    assert report["rule"] == RULE and report["kind"] == "least squares" and report["diagnostics"]["loss"] > 0


def test_what_is_sent_between_exchanges_is_a_model_too(folder, capsys):
    """It is scored as the model in it, and other rules refuse it."""
    first, half = (model_file.read(folder / f"{n}.safetensors") for n in (0, 1))
    assert half.fingerprint == payload.fingerprint(half.sent) != first.fingerprint
    near(half.params, first.params, 0)
    again = folder / "again.safetensors"
    model_file.write(again, half.kind, half.sent, "a copy", None, ("a", "b", "c"))
    copied = model_file.read(again)
    near(copied.sent, half.sent, 0)
    assert copied.classes == ("a", "b", "c")
    for rule, words in (
        ("recalibrate", "start: got a model within steps of natural-gradient, which recalibrate does not take"),
        ("fedavg+natural-gradient", "rule: got fedavg+natural-gradient, which is 3 exchanges, expected one of them"),
    ):
        mine = ["--data", folder / "silo0.npz", "--start", folder / "1.safetensors", "--rule", rule]
        with pytest.raises(SystemExit):
            command("measure", *mine, "--out", folder / "none.safetensors")
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):  # measured at the model before
        command(
            "merge", *payloads(folder, 0), "--start", folder / "1.safetensors", "--out", folder / "none.safetensors"
        )
    assert "start: made from another starting model" in capsys.readouterr().err
    assert not (folder / "none.safetensors").exists()


def test_damaged_files_between_exchanges_are_refused(folder):
    data = (folder / "1.safetensors").read_bytes()

    def without(header, arrays):
        del arrays["masks"]

    def flat(header, arrays):
        arrays["masks"] = arrays["masks"].ravel()

    def fewer(header, arrays):
        name = next(name for name in reversed(arrays) if name.startswith("directions/"))
        arrays[name] = arrays[name][:1]

    def infinite(header, arrays):
        arrays["masks"] = arrays["masks"] + np.float32(np.inf)

    def counted(header, arrays):
        arrays["masks"] = arrays["masks"].astype(np.uint8)

    for change in (without, flat, fewer, infinite, counted):
        (folder / "bad.safetensors").write_bytes(resealed(data, change))
        with pytest.raises(PayloadError, match=r"bad\.safetensors: "):
            model_file.read(folder / "bad.safetensors")


@pytest.mark.parametrize("exchange", [0, 1])
def test_a_region_of_silos_stands_for_them_to_the_bit(exchange, folder, tmp_path):
    begin = ["--start", folder / f"{exchange}.safetensors"]
    first, *others = payloads(folder, exchange)
    command("fold", *others, *begin, "--out", tmp_path / "region.safetensors")
    command("merge", first, tmp_path / "region.safetensors", *begin, "--out", tmp_path / "merged.safetensors")
    command("merge", *payloads(folder, exchange), *begin, "--out", tmp_path / "all.safetensors")
    near(*(model_file.read(tmp_path / f"{name}.safetensors").sent for name in ("merged", "all")), 0)


@pytest.mark.parametrize("exchange", [0, 1])
def test_payloads_of_steps_are_checked(exchange, folder):
    like = model_file.read(folder / f"{exchange}.safetensors")
    data = payloads(folder, exchange)[0].read_bytes()
    got, header = payload.loads(data, like.params, start=like.fingerprint)
    assert payload.dumps(got, header.about) == data and got.params is None
    payload.loads(data)  # without the start, as `inspect` reads it
    small = payload.dumps(got, header.about, payload.plan.fit(got, header.about, 2.0 if exchange else 3.0))
    near(payload.loads(small, like.params, start=like.fingerprint)[0], got, 0.02)
    _, arrays = opened(data)
    matrix = next(name for name in arrays if payload.plan.is_matrix(header.structure, name))

    def indefinite(header, arrays):
        arrays[matrix] = -arrays[matrix]

    def odd(header, arrays):
        header["static"] = {"directions": True} if exchange else {"layers": 3}

    for change in (indefinite, odd):
        with pytest.raises(PayloadError):
            payload.loads(resealed(data, change), like.params, start=like.fingerprint)


def test_noise_for_steps_is_about_examples(folder, tmp_path, capsys):
    """A silo's own is refused; one about examples is in the file, of which the next step is made."""
    with pytest.raises(SystemExit):
        measured(folder, 0, folder / "0.safetensors", tmp_path / "noisy.safetensors", "--epsilon", "3")
    assert "no noise is defined for Gradient" in capsys.readouterr().err
    more = ["--epsilon", "3", "--unit", "example", "--clip-gradients", "0.5"]
    measured(folder, 0, folder / "0.safetensors", tmp_path / "noisy.safetensors", *more)
    like = model_file.read(folder / "0.safetensors")
    got, header = payload.read(tmp_path / "noisy.safetensors", like.params, start=like.fingerprint)
    assert (
        header.about.privacy["unit"] == "one example, replaced by another" and header.about.privacy["trust"] == "local"
    )
    assert all(np.linalg.eigvalsh(np.asarray(a, np.float64)).min() > 0 for a in got.statistics.fisher.inputs)


def test_pseudo_data_by_files_is_that_of_memory(folder, tmp_path, capsys):
    start = model_file.read(folder / "0.safetensors")
    rule, sent = pseudo_data(start.network.apply, ff.categorical(), draws=Draws(steps=20)), []
    files = [tmp_path / f"{number}.safetensors" for number in range(SILOS)]
    for number, rows in enumerate(PARTS):
        model = jax.tree.map(lambda leaf, n=number: leaf * (1 + 0.1 * n), start.params)
        sent.append(rule.measure(ff.Update(model, start.params), ff.examples(X[rows], Y[rows]), jax.random.key(0)))
        said = payload.About(rule.name, "categorical", start.fingerprint, sent[-1].kind.name, silo=number)
        payload.write(files[number], sent[-1], said)
    begin = ["--start", folder / "0.safetensors", "--out", tmp_path / "merged.safetensors"]
    command("merge", *files, *begin, "--rule", "pseudo-data,steps=20")
    near(model_file.read(tmp_path / "merged.safetensors").params, ff.merge_payloads(rule, sent, start.params).params)
    for options, words in (
        ("pseudo-data,coefficients=4", "coefficients: got 4, expected at least the inputs' 6"),
        ("fedfisher-kfac", "the payload holds ClassMoments"),
    ):
        with pytest.raises(SystemExit):
            command("merge", *files, *begin, "--rule", options)
        assert words in capsys.readouterr().err

    def other(header, arrays):
        header["static"]["example"] = [[5], "float32"]

    files[0].write_bytes(resealed(files[0].read_bytes(), other))
    with pytest.raises(SystemExit):
        command("merge", files[0], *begin)
    assert "payloads: got examples (5,) of float32, which the model does not take" in capsys.readouterr().err
