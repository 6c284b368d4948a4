"""Entry point: ``jaxunlearn COMMAND ...``; imports only what the command needs."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from jaxunlearn import __version__
from jaxunlearn.cli import _errors
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
    hold. 130: interrupted.

    Args:
      argv: the arguments, default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except _errors.UserError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _errors.OK
    except OSError as error:
        return _fail(_errors.describe(error))
    except KeyboardInterrupt:
        print("jaxunlearn: interrupted; nothing was written", file=sys.stderr)
        return _errors.INTERRUPTED
    except RuntimeError as error:  # jax's class for it is one; jax itself may not be imported here
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(f"out of memory (a smaller batch may fit, see --help): {error}")
    except SystemExit as leaving:  # argparse, after --help and --version
        return leaving.code if isinstance(leaving.code, int) else _errors.OK


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        if "" not in sys.path:  # for a network of the user's own, --arch my_nets:Net, where they are; found last
            sys.path.append("")
        with _errors.user_input():  # an extra that is not installed
            command = importlib.import_module(f"jaxunlearn.cli.{name}")
        status: int = command.main(arguments[1:])
        return status
    if not name.startswith("-"):
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise _errors.UserError(f"unknown command {name!r}; {hint}")
    parser().parse_args(arguments or ["--help"])
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


def _fail(message: str) -> int:
    print(f"jaxunlearn: error: {_errors.one_line(message)}", file=sys.stderr)
    return _errors.WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
