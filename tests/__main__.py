"""Run every check of the project: lint, format, types, tests and doctests. ``python -m tests``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest", "-q", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--durations=15"),
)


def main() -> int:
    """Run the checks in order; extra arguments go to pytest. Return the first failing status."""
    root = Path(__file__).resolve().parents[1]
    for check in CHECKS:
        command = [sys.executable, "-m", *check, *(sys.argv[1:] if check[0] == "pytest" else [])]
        print("+", " ".join(check), flush=True)
        status = subprocess.run(command, cwd=root).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
