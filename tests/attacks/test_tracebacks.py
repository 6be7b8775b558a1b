"""Whatever the input, a person sees one line and exit status 2, and nothing that was there is lost."""

import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from commands import command, refused

from fedfisher_jax.cli import _cli, _commands, _one_line
from fedfisher_jax.data import DataNotFoundError, load

SHORT = ("--epochs", 1, "--rule", "fedavg", "--out", "x.safetensors")
NETWORK = ("--input-shape", 8, "--outputs", 3)


def npy(header, version=1):
    text = header.encode("latin1")
    text += b" " * ((64 - (len(text) + 11) % 64) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def shaped(shape, descr="<f4"):
    return npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}")


ODD = {
    "text for arrays": (b"hello", None),
    "nothing": (b"", None),
    "a shape of 10^30": (shaped(f"({10**30}, 8)"), None),
    "a shape of 2^40": (shaped(f"({2**40}, 8)"), None),
    "zero hides the others": (shaped(f"(0, {2**62}, {2**62})"), None),
    "negative": (shaped("(-1, 8)"), None),
    "100 axes": (shaped(str((1,) * 100)) + bytes(4), None),
    "a scalar": (shaped("()") + bytes(4), None),
    "a cut header": (npy("{'descr': ((("), None),
    "deep": (npy("(" * 9000), None),
    "long": (npy(" " * 60_000), None),
    "version 3": (npy("{}", 3), None),
    "version 9": (npy("{}", 9), None),
    "objects": (shaped("(60, 8)", "|O") + bytes(60 * 8 * 8), None),
    "records": (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (60, 8), }") + bytes(60 * 8 * 4), None),
    "complex": (shaped("(60, 8)", "<c8") + bytes(60 * 8 * 8), None),
    "texts": (shaped("(60, 8)", "<U1") + bytes(60 * 8 * 4), None),
    "dates": (shaped("(60, 8)", "<M8[s]") + bytes(60 * 8 * 8), None),
    "cut data": (shaped("(60, 8)") + bytes(7), None),
    "compression 99": (npy("{}"), 99),
    "deflate64": (npy("{}"), 9),
    "lzma that is none": (shaped("(60, 8)"), 14),
    "bzip2 that is none": (shaped("(60, 8)"), 12),
}


def zipped(member, method=None, encrypted=False):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_x", "train_y", "test_x", "test_y"):
            archive.writestr(f"{name}.npy", member)
    data = bytearray(file.getvalue())
    for mark, flags, place in ((b"PK\x03\x04", 6, 8), (b"PK\x01\x02", 8, 10)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + flags] |= encrypted
            data[at + place] = data[at + place] if method is None else method
    return bytes(data)


@pytest.mark.parametrize("name", [*ODD, "encrypted", "cut off", "no archive", "folder"])
def test_odd_archives(name, folder):
    if name == "folder":
        Path("odd.npz").mkdir()
    else:
        member, method = ODD.get(name, (shaped("(60, 8)") + bytes(60 * 8 * 4), None))
        data = zipped(member, method, name == "encrypted")
        Path("odd.npz").write_bytes({"cut off": data[:-40], "no archive": b"PK"}.get(name, data))
    for words in (
        ("measure", "--data", "odd.npz", *SHORT),
        ("evaluate", "start.safetensors", "--data", "odd.npz"),
        ("init", "--data", "odd.npz", "--out", "other.safetensors"),
        ("run", "--dataset", "odd.npz", "--epochs", 1, "--rules", "fedavg", "--out", "r"),
    ):
        assert "odd.npz" in refused(*words)


MODULES = {
    "names": "x = undefined_name\n",
    "syntax": "def f(:\n",
    "leaves": "import sys; sys.exit(0)\n",
    "leaves_late": "import sys\ndef f(s, o): sys.exit(0)\n",
    "fails": "def f(s, o): raise KeyError('k')\n",
    "recursion": "def f(s, o): return f(s, o)\n",
    "none": "def f(s, o): return None\n",
    "no_function": "f = 3\n",
    "without": "g = 3\n",
    "bad_init": "def f(s, o): return (lambda key: 1 / 0), (lambda p, x: x)\n",
    "odd_init": "def f(s, o): return (lambda key: 'text'), (lambda p, x: x)\n",
    "leaving_init": "import sys\ndef f(s, o): return (lambda key: sys.exit(0)), (lambda p, x: x)\n",
    "nul": "\0",
    "silent": "class E(Exception):\n    pass\nraise E\n",
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_users(name, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    Path(f"user_{name}.py").write_text(MODULES[name])
    out = ("--out", "m.safetensors")
    assert f"user_{name}:f" in refused("init", *NETWORK, *out, "--model", f"user_{name}:f") or name == "odd_init"
    line = refused("measure", "--data", "d.npz", "--epochs", 1, *out, "--rule", f"user_{name}:f")
    assert not Path("m.safetensors").exists() and "Traceback" not in line


@pytest.mark.parametrize("name", [":", "a:", ":f", "..:f", "a b:f", "os.:f", "é:f", "\0:f", "x" * 5000 + ":f"])
def test_modules_that_are_none(name, folder):
    refused("init", *NETWORK, "--out", "m.safetensors", "--model", name)


@pytest.mark.parametrize(
    "words",
    [
        ("--outputs", 8589934592, "--input-shape", 8),
        ("--outputs", 2**24 - 1, "--input-shape", 1000),
        ("--outputs", 2**63, "--input-shape", 8),
        ("--outputs", 3, "--input-shape", 2**40),
        ("--outputs", 3, "--input-shape", *[2**19] * 7),
        ("--outputs", 3, "--input-shape", *[1] * 40),
        ("--outputs", 3, "--input-shape", 0),
        ("--outputs", 3, "--input-shape", 100_000, 100_000, 3, "--model", "lenet"),
    ],
    ids=str,
)
def test_sizes_that_no_network_has(words, folder):
    refused("init", "--out", "m.safetensors", *words)


def test_a_failure_that_nobody_foresaw_says_that_it_is_a_bug(folder, monkeypatch):
    def fails(settings):
        raise KeyError("the \x1b key\nof a map")

    monkeypatch.setitem(_commands.COMMANDS, "inspect", (_commands.COMMANDS["inspect"][0], fails))
    line = refused("inspect", "x")
    assert "KeyError" in line and "This is a bug" in line and "--debug" in line and line.isprintable()
    status, text = command("inspect", "x", "--debug")
    assert status == 2 and "Traceback" in text and "in fails" in text and text.count("\nfedfisher: ") == 1
    for error in (MemoryError(), RecursionError("deep"), SystemExit(0), AssertionError()):

        def other(settings, error=error):
            raise error

        monkeypatch.setitem(_commands.COMMANDS, "inspect", (_commands.COMMANDS["inspect"][0], other))
        refused("inspect", "x")

    class Odd(BaseException):
        pass

    for error in (Odd("of no known kind"), GeneratorExit(), np.linalg.LinAlgError("singular"), KeyError(), Exception()):

        def another(settings, error=error):
            raise error

        monkeypatch.setitem(_commands.COMMANDS, "inspect", (_commands.COMMANDS["inspect"][0], another))
        assert "This is a bug" in refused("inspect", "x")

    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setitem(_commands.COMMANDS, "inspect", (_commands.COMMANDS["inspect"][0], interrupted))
    said = "what was written is whole; the same command does it again"
    assert command("inspect", "x") == (130, f"fedfisher: interrupted: {said}\n")


@pytest.mark.slow
def test_a_command_that_is_terminated_or_interrupted_says_so_in_one_line_and_leaves_no_part_of_a_file(tmp_path):
    """SIGTERM, as of Slurm and Docker, and Ctrl-C while clients train; in a folder with a space and other letters."""
    out = tmp_path / "größe и 数据"
    # In the background of a script, tests inherit that Ctrl-C is ignored, and so would the command.
    heard = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = f"{heard}runpy.run_module('fedfisher_jax.cli', run_name='__main__', alter_sys=True)"
    call = [sys.executable, "-c", program, "run", "--epochs", "100000", "--out", str(out)]
    for number, code, word in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        (out / "clients.png").unlink(missing_ok=True)
        with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            try:
                while not (out / "clients.png").exists():  # training begins then
                    assert running.poll() is None, running.communicate()
                    time.sleep(0.1)
                running.send_signal(number)
                said = running.communicate(timeout=300)[1].strip().splitlines()[-1]
            finally:
                running.kill()
        assert running.returncode == code and said.startswith(f"fedfisher: {word}: "), said
        assert not list(out.glob(".*")) and not json.loads((out / "result.json").read_text())["complete"]
        (out / "clients.png").unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_is_raised_again(monkeypatch):
    monkeypatch.setattr(_one_line, "AGAIN", 0.1)

    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(_one_line.Terminated), _one_line.listening():
        Dying()  # what a finaliser raises goes nowhere
        time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) == before and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_disk_that_is_full_and_a_folder_that_cannot_be_written_to_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("init", *NETWORK)
    start = Path("start.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in refused("init", *NETWORK, "--overwrite")
        assert "No space left on device" in refused("run", "--epochs", 1, "--out", "runs")
    assert Path("start.safetensors").read_bytes() == start and not list(tmp_path.glob("**/.*"))


def test_what_other_libraries_raise_is_a_bug_and_what_we_raise_is_not(folder, monkeypatch):
    """A ValueError from inside of JAX says nothing about a person's input, though ours all are ValueErrors."""

    def fails(settings):
        jnp.ones((2, 3)) @ jnp.ones((2, 3))

    monkeypatch.setitem(_commands.COMMANDS, "inspect", (_commands.COMMANDS["inspect"][0], fails))
    line = refused("inspect", "x")
    assert "This is a bug" in line and "TypeError: dot_general" in line
    monkeypatch.undo()
    assert "This is a bug" not in refused("init", *NETWORK, "--out", "m.safetensors", "--model", "none")


def test_errors_while_words_are_read_are_one_line(monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("of the reader of words")

    monkeypatch.setattr(_cli.tyro.extras, "subcommand_cli_from_dict", fails)
    assert "This is a bug" in refused("inspect", "x")


def test_no_home(monkeypatch):
    def none(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    monkeypatch.setattr(Path, "home", lambda: none(None))
    with pytest.raises(ValueError, match="there is no home folder"):
        load("~/d.npz")
    monkeypatch.undo()
    monkeypatch.delenv("FEDFISHER_DATA", raising=False)
    expanduser = Path.expanduser
    monkeypatch.setattr(Path, "home", lambda: none(None))
    monkeypatch.setattr(Path, "expanduser", lambda path: none(path) if str(path).startswith("~") else expanduser(path))
    with pytest.raises(DataNotFoundError, match="cifar10 is not on this machine"):
        load("cifar10")


def started(*words, **environment):
    """A command in a process of its own, whose output is a terminal."""
    leader, follower = pty.openpty()
    program = [sys.executable, "-m", "fedfisher_jax.cli", *words]
    variables = os.environ | {"TERM": "xterm", "NO_COLOR": "1"} | environment
    process = subprocess.Popen(program, stdout=follower, stderr=subprocess.PIPE, env=variables)
    os.close(follower)
    seen = b""
    try:
        while piece := os.read(leader, 1 << 16):
            seen += piece
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    return process.wait(timeout=120), seen.decode(), process.communicate()[1].decode()


@pytest.mark.parametrize("width", [1, 5])
def test_help_ends_in_narrow_terminals(width):
    status, seen, _ = started("measure", "--help", COLUMNS=str(width))
    assert status == 0 and "--data" in seen


@pytest.mark.slow
def test_terminals_that_know_ascii_alone(folder):
    words = ("--data", "d.npz", "--epochs", "1", "--rule", "fedavg")
    status, seen, errors = started("measure", *words, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert status == 0 and "FedAvg's bits" in seen, errors
    status, seen, errors = started("merge", "payload.safetensors", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert status == 0 and Path("global.json").exists(), errors
