"""The `fedfisher` command: a thin face over the library."""

import os
import sys
import threading
import traceback
from typing import Any, NoReturn

import tyro

from .. import __version__
from ..federate._over_threads import HANDS
from ._commands import COMMANDS
from ._compile_cache import keep_compiled_programs
from ._hosts import Ended, inside
from ._one_line import Terminated, fit_terminal, listening, one_line
from ._sweep_file import with_file

INTERRUPTED, TERMINATED = 130, 143  # the exit codes of shells for Ctrl-C and for SIGTERM


def main(arguments: list[str] | None = None) -> None:
    """Exit with 2, or 130 after Ctrl-C, and one line, whatever the input is; `--debug` shows Python's trace, too."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"fedfisher {__version__}")
        return
    debug, arguments = "--debug" in arguments, [word for word in arguments if word != "--debug"]
    fit_terminal()
    known = {name: settings for name, (settings, _) in COMMANDS.items()}
    with listening():
        try:
            if arguments[:1] == ["sweep"]:
                arguments = with_file(arguments, known["sweep"])
            how = {"prog": "fedfisher", "sort_subcommands": False}
            command = tyro.extras.subcommand_cli_from_dict(known, args=arguments, **how)
        except SystemExit:  # after help, or tyro's own words about what it does not know
            raise
        except BaseException as error:
            _leave(error, debug)
        try:
            keep_compiled_programs()
            _do(command)
        except BaseException as error:  # of whatever kind: code that users name may raise anything
            _leave(error, debug)


def _do(command: Any) -> None:
    function = next(function for settings, function in COMMANDS.values() if type(command) is settings)
    function(command)


def _leave(error: BaseException, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    said = str(error) if isinstance(error, Ended) else one_line(error)
    if said:
        print(f"fedfisher: {said}", file=sys.stderr)
    codes = {Terminated: TERMINATED, KeyboardInterrupt: INTERRUPTED}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), 2)
    code = error.code if isinstance(error, Ended) else code
    if inside() or code != 2 and any(thread.name.startswith(HANDS) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # or it would wait for other hosts, or for clients' programs, which nothing stops
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
