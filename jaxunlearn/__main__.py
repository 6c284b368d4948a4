"""``python -m jaxunlearn`` and ``jaxunlearn`` are the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command of the process's arguments; Ctrl-C is answered as later while modules are imported, too."""
    try:
        from jaxunlearn.cli.main import main as run
    except KeyboardInterrupt:  # what says so later is not there yet
        print("jaxunlearn: interrupted; nothing was written, the same command begins anew", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
