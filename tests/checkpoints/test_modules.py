"""`fedfisher measure --model torch:module:function` and `merge`: a user's own modules, and state dicts."""

import hashlib
import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedfisher_jax import payload
from fedfisher_jax.cli import main
from fedfisher_jax.torch import from_module, load, make

SOURCE = """
import torch

class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(7, 4)
        self.inner = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids, shift):
        return self.head(torch.relu(self.inner(self.table(ids) + shift[..., None])))

class Odd(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        return torch.special.airy_ai(super().forward(x))

def network():
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

def tied():
    torch.manual_seed(0)
    return Tied().bfloat16()

def line():
    torch.manual_seed(0)
    return torch.nn.Linear(2, 1)

def fails():
    raise OSError("no such file of mine")

odd, empty, number = Odd, torch.nn.ReLU, lambda: 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a user's file, in which commands run."""
    (tmp_path / "their_modules.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def command(words, *more):
    main([*words.split(), *more])


def refused(capsys, words, *more):
    with pytest.raises(SystemExit):
        command(words, *more)
    said = capsys.readouterr().err
    assert "bug" not in said and said.count("\n") == 1
    return said


def tuned(name, number):
    module = make(f"their_modules:{name}")
    torch.manual_seed(10 + number)
    for value in module.parameters():
        value.data.add_(0.3 * torch.randn_like(value))
    return module


def data(number, path):
    random = np.random.default_rng(number)
    np.savez(path, x=random.normal(size=(6, 4)).astype(np.float32), y=np.arange(6) % 3)


@pytest.mark.slow
def test_two_silos_checkpoints_become_a_state_dict_that_loads(here, capsys):
    first, second = tuned("network", 0), tuned("network", 1)
    second[1].running_mean.add_(1)
    save_file(first.state_dict(), "first.safetensors")
    wrapped = {f"module.{name}": value for name, value in second.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, "second.pt")
    torch.save(make("their_modules:network").state_dict(), "base.bin")
    data(0, "0.npz")
    rows = ["a,b,c,d,kind", *(f"{n},{n % 2},1,{-n},{n % 3}" for n in range(3))]
    (here / "1.csv").write_text("\n".join(rows))
    for number, more in enumerate(
        (
            "--data 0.npz --checkpoint first.safetensors --start base.bin",
            "--data 1.csv --label kind --checkpoint second.pt",
        )
    ):
        words = (
            f"measure --model torch:their_modules:network --rule fisher-merge --silo {number} --out {number}.payload"
        )
        command(f"{words} {more}")
    said = capsys.readouterr().out
    assert (
        "the start is the module as torch:their_modules:network makes it" in said
        and "layers hold 68.25% of 63 parameters" in said
    )
    assert said.count("  7.94% ['1.weight']: ") == 2 and said.count("  7.94% ['1.running_var']: ") == 2
    command("merge 0.payload 1.payload --model torch:their_modules:network --base base.bin --out merged.pt")
    command("merge 0.payload 1.payload --model torch:their_modules:network --out merged.safetensors")
    state, again = torch.load("merged.pt", weights_only=True), load_file("merged.safetensors")
    assert set(state) == set(again) and all(torch.equal(state[name], again[name]) for name in state)
    module = make("their_modules:network")
    module.load_state_dict(state)
    a, b = (payload.read(f"{number}.payload")[0] for number in range(2))
    for name, value in a.params.items():
        assert np.array_equal(value, first.state_dict()[name]) and np.array_equal(
            b.params[name], second.state_dict()[name]
        )
        f, g = (n * np.asarray(sent.statistics.values[name]) for n, sent in ((6, a), (3, b)))
        known = f + g > 0
        average = (6 * value + 3 * b.params[name]) / 9
        expected = np.where(known, (f * value + g * b.params[name]) / np.where(known, f + g, 1), average)
        np.testing.assert_allclose(module.state_dict()[name], expected, atol=1e-5, err_msg=name)
    assert torch.allclose(module[1].running_mean, torch.full((5,), 1 / 3))
    record = json.loads((here / "merged.json").read_text())
    assert record["sha256"] == hashlib.sha256((here / "merged.safetensors").read_bytes()).hexdigest()
    assert [one["examples"] for one in record["contributors"]] == [6, 3] and record["rule"] == "fisher-merge"


@pytest.mark.slow
def test_one_silo_alone_gives_its_checkpoint_bit_for_bit_with_tied_weights_in_their_own_type(here):
    module = tuned("tied", 0)
    state = {name: value for name, value in module.state_dict().items() if name != "head.weight"}
    save_file(state, "mine.safetensors")  # as save_model writes it: of tied names the first
    random = np.random.default_rng(0)
    ids, shift = random.integers(0, 7, (3, 5)), np.ones((3, 5), np.float32)
    labels = np.where(np.arange(5) < 4, ids, -100)
    np.savez("rows.npz", ids=ids, shift=shift, labels=labels)
    words = (
        "measure --model torch:their_modules:tied --data rows.npz --checkpoint mine.safetensors --rule fedfisher-kfac"
    )
    command(f"{words} --where ^inner|^table --out 0.payload")
    for out in ("merged.bin", "merged.safetensors"):
        command(f"merge 0.payload --model torch:their_modules:tied --out {out}")
        merged = torch.load(out, weights_only=True) if out.endswith("bin") else load_file(out)
        expected = module.state_dict()
        assert set(merged) == set(expected) and merged["head.weight"].dtype == torch.bfloat16
        assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_numbers_are_fitted_where_that_is_asked_for(here, capsys):
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.savez("rows.npz", x=x, y=x.sum(1))
    words = "measure --model torch:their_modules:line --data rows.npz --rule fisher-merge"
    assert "got float32, expected integers for categorical" in refused(capsys, words)
    command(f"{words} --likelihood gaussian")
    sent, about = payload.read("payload.safetensors")
    assert about.about.likelihood == "gaussian"
    np.testing.assert_allclose(sent.statistics.values["weight"], (x**2).mean(0, keepdims=True), rtol=1e-5)


def test_what_does_not_work_is_refused_in_one_line(here, capsys):
    data(0, "rows.npz")
    measure = "measure --data rows.npz --rule fedavg --model torch:their_modules:"
    for name, words in (
        ("none", "cannot import 'their_modules:none': AttributeError"),
        ("number", "their_modules:number() returned int, expected a torch.nn.Module"),
        ("empty", "their_modules:empty() has no parameters"),
        ("fails", "their_modules:fails() failed: OSError: no such file of mine"),
        ("odd", "airy_ai"),
        ("line", "rows.npz: the model cannot take them"),
        ("network --start gone.pt", "there is no file gone.pt"),
        ("network --checkpoint gone.pt", "there is no file gone.pt"),
        ("network --length 3", "length: torch:their_modules:network is only measured"),
        ("network --epochs 3", "epochs: torch:their_modules:network is only measured"),
        ("network --out rows.npz", "would write over"),
        ("network --where ^9", "where"),
    ):
        assert words in refused(capsys, measure + name)
    assert "expected it with --model hf:FOLDER or torch:" in refused(
        capsys, "measure --data rows.npz --likelihood gaussian"
    )
    command(f"{measure}network --out 0.payload")
    merge = "merge 0.payload --model torch:their_modules:"
    assert "is no parameter of the base" in refused(capsys, f"{merge}line")
    torch.save(tuned("network", 3).state_dict(), "other.pt")
    assert "start" in refused(capsys, f"{merge}network --base other.pt --out merged.pt")
    assert "without: with a model of PyTorch" in refused(capsys, f"{merge}network --without 0")
    (here / "merged.json").write_text("{}")
    assert "which is no report" in refused(capsys, f"{merge}network --out merged.pt")
    assert "expected it with --base FOLDER alone" in refused(capsys, f"{merge}network --adapter .")


def test_state_dicts_that_do_not_fit_are_refused_by_name(here):
    module, state = make("their_modules:network"), make("their_modules:network").state_dict()
    less = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(less, "less.pt")
    assert torch.equal(load(module, "less.pt")[0].weight, state["0.weight"])
    for name, change in (
        ("3.bias is missing", {"3.bias": None}),
        (r"got 'more', expected names of the module", {"more": torch.ones(2)}),
        (r"3.bias: got torch.float32 \(2,\), expected torch.float32 \(3,\)", {"3.bias": torch.ones(2)}),
        (r"3.bias: got torch.int64", {"3.bias": torch.ones(3, dtype=torch.int64)}),
        ("3.bias: expected finite numbers", {"3.bias": torch.tensor([0, torch.nan, 1])}),
    ):
        torch.save({key: value for key, value in {**state, **change}.items() if value is not None}, "wrong.pt")
        with pytest.raises(ValueError, match=name):
            load(module, "wrong.pt")
    table = torch.ones(7, 4)
    state = make("their_modules:tied").state_dict() | {"table.weight": table, "head.weight": 2 * table}
    torch.save(state, "apart.pt")
    with pytest.raises(ValueError, match=r"table.weight and head.weight differ, expected one parameter"):
        load(make("their_modules:tied"), "apart.pt")
    torch.save({"run": here}, "objects.pt")
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        load(module, "objects.pt")


def test_a_checkpoint_in_shards_is_one(here):
    module = tuned("network", 0)
    state, folder = module.state_dict(), here / "shards"
    folder.mkdir()
    for number, names in enumerate((list(state)[:3], list(state)[3:]), 1):
        torch.save({name: state[name] for name in names}, folder / f"pytorch_model-{number:05}-of-00002.bin")
    found = from_module(load(make("their_modules:network"), folder)).params
    jax.tree.map(np.testing.assert_array_equal, found, from_module(module).params)
