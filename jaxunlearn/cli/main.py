"""Entry point: ``jaxunlearn COMMAND ...``; imports only what the command needs."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from jaxunlearn import __version__
from jaxunlearn.cli import _errors, _process
from jaxunlearn.cli._flags import Parser

#: Command -> what it does; the module of that name has ``main(argv) -> int``.
COMMANDS = {
    "demo": "make a small network forget 16 handwritten digits, four ways",
    "train": "train a classifier, and keep what some methods need beside it",
    "moments": "make for a trained network what the method pgu needs",
    "unlearn": "make a pre-trained classifier forget chosen training images",
    "evaluate": "measure a classifier's accuracy, overall and by class",
    "verify": "check what a patch promises, from its certificate and the weights alone",
    "compare": "run several methods on one forget set: one table, one picture",
    "export": "write an unlearned network back as its original was laid out",
    "methods": "list the unlearning methods",
    "models": "list the networks that pre-trained weights fit into",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done, the goal is met for every instance. 2: wrong input. 3: some
    instance is not forgotten (the result is kept), or a certificate does not
    hold. 130: interrupted; 143: by SIGTERM.

    Args:
      argv: the arguments, default those of the process, which this then ends when it is interrupted.
    """
    status = _guarded(list(sys.argv[1:] if argv is None else argv))
    if argv is None and status == _process.interrupted():
        # All is in order by now; but Python's own end crashes where XLA still computes in a thread that Ctrl-C left.
        os._exit(status)
    return status


def _guarded(arguments: list[str]) -> int:
    with _process.prepared(), _errors.recovery_told():
        try:
            status = _dispatch(arguments)
            sys.stdout.flush()  # a full disk is found here, not when Python ends
            return status
        except KeyboardInterrupt as stop:
            _errors.say(str(stop) or "interrupted; nothing was written, the same command begins anew")
            return _process.interrupted()
        except Exception as error:
            line = _errors.told(error)
            if line is None:
                raise
            _errors.say(f"error: {line}")
            return _errors.WRONG_INPUT


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        if "" not in sys.path:  # for a network of the user's own, --arch my_nets:Net, where they are; found last
            sys.path.append("")
        with _errors.user_input():  # an extra that is not installed
            command = importlib.import_module(f"jaxunlearn.cli.{name}")
        # Of a home that cannot be written matplotlib tells at length, and goes on.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        return _run(command.main, arguments[1:])
    if not name.startswith("-"):
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise _errors.UserError(f"unknown command {name!r}; {hint}")
    return _run(_without_command, arguments or ["--help"])


def _run(work: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return work(arguments)
    except SystemExit as leaving:  # argparse, after --help and --version
        return leaving.code if isinstance(leaving.code, int) else _errors.OK


def _without_command(arguments: list[str]) -> int:
    parser().parse_args(arguments)
    raise _errors.UserError(f"name a command: {', '.join(COMMANDS)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of what stands before a command: help and version."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    top = Parser(
        prog="jaxunlearn",
        usage="jaxunlearn COMMAND [options]",
        description="Make a pre-trained classifier forget chosen training images, and show what was forgotten.",
        epilog=f"commands:\n{listing}\n\n`jaxunlearn COMMAND --help` shows a command's options.",
    )
    top.add_argument("--version", action="version", version=f"jaxunlearn {__version__}")
    return top


if __name__ == "__main__":
    sys.exit(main())
