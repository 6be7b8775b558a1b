"""What a host says of its process that computes (`run --distributed`); the real hosts are in test_cli.py."""

import pytest

from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.cli import _hosts

ABORTED = f"import os; os.write(2, b'F1 {_hosts.SIGNS[0]}\\n    @ 0x1 a stack'); os.abort()"
SAYS = "import os, sys; os.write(int(os.environ['FEDFISHER_HOST'].split(',')[1]), b'why'); os.write(1, b'C++'); "


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        (ABORTED, 75, "another host of this run is gone, or cannot be reached, so this one ended, too; the same"),
        ("import os; os.write(2, b'a stack'); os.abort()", 134, "a stack\nthis host's process was killed by signal 6"),
        ("import os; os.kill(os.getpid(), 9)", 137, "this host's process was killed by signal 9"),
        (SAYS + "sys.exit(2)", 2, "why"),
    ],
)
def test_a_host_that_ends_says_why_once(program, code, said, monkeypatch, capfd):
    monkeypatch.setattr(_hosts, "PROGRAM", program)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--distributed"])
    printed = capfd.readouterr()
    assert stop.value.code == code and printed.out == ""
    assert printed.err.replace("fedfisher: ", "").strip().startswith(said) and "C++" not in printed.err


def test_what_is_well_prints_nothing_of_the_runtime(monkeypatch, capfd):
    monkeypatch.setattr(_hosts, "PROGRAM", SAYS)
    _hosts.watch(["run"])
    assert capfd.readouterr() == ("", "why")
