"""Kill a command again and again, each time at a moment of its work that is said beforehand.

``python -m tests.kills '[["attacks/", 40], ["importance.py", 2]]' unlearn ... --resume`` runs the command once for
each moment, in a process of its own, and prints their exit statuses as JSON. A moment is the n-th call of a Python
function in files of jaxunlearn. The processes are forks of this one, which has JAX imported but not started, so that
twenty are quick.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jaxunlearn
from jaxunlearn import _journal, methods
from jaxunlearn.cli.main import main

PACKAGE = Path(jaxunlearn.__file__).parent


def die_at(files: str, count: int) -> None:
    """Have this process killed at a moment, as the scheduler would; states are kept at every step."""
    _journal.INTERVAL, seen, beginning = 0.0, 0, str(PACKAGE / files) + "/" * files.endswith("/")

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal seen
        if event == "call" and frame.f_code.co_filename.startswith(beginning):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)


def run(files: str, count: int, argv: list[str]) -> int:
    """Run the command in a fork that dies at a moment; return its status, below 0 for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_at(files, count)
            status = main(argv)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for module in ("jaxunlearn.cli.unlearn", "jaxunlearn.checkpoint", "jaxunlearn.models", "sklearn.datasets"):
        importlib.import_module(module)  # once, not in each fork
    methods.all_specs()
    moments, *command = sys.argv[1:]
    print(json.dumps([run(files, count, command) for files, count in json.loads(moments)]))
