"""What long work looks like: a bar that fits its terminal, lines that keep a log short."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time

import pytest

from jaxunlearn import _progress as reports
from jaxunlearn.cli import _progress
from tests.test_cli_process import environment, read

WORK = """
import time
from jaxunlearn import _progress as work
from jaxunlearn.cli import _bars, _errors, _process, _progress
_bars.LONG = 0.3
with _process.prepared(), _progress.shown():
    for i in range(1, 11):
        work.report("measuring before: retain set", 5000 * i, 50_000)
        time.sleep(0.06)
    _errors.say("told in between")
    print("result in between")
    for i in range(1, 9):
        work.report("unlearning (minimal-edit)", i, work.AtMost(640))
        time.sleep(0.06)
    for i in range(1, 9):
        work.report("reading", 1000 * i)
        time.sleep(0.06)
    work.report("reading", 10)
    time.sleep(0.2)
print("result")
"""


def on_terminal(columns: int, **more: str) -> tuple[list[str], str, str]:
    """Return each state of the line, all that was sent, and standard output, which is no terminal."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = environment(**{"TERM": "xterm", "PYTHONIOENCODING": "utf-8", **more})
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    pipes = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": theirs, "env": env}
    sent = b""
    with subprocess.Popen([sys.executable, "-c", WORK], **pipes) as child:
        os.close(theirs)
        while piece := read(ours):
            sent += piece
        out = child.stdout.read().decode()
    os.close(ours)
    assert child.returncode == 0, sent
    text = sent.decode()
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)), text, out


def test_a_bar_has_rate_and_time_left_on_one_line():
    states, sent, out = on_terminal(80)
    assert max(map(len, states)) <= 80
    assert "\x1b[1A" not in sent  # nothing ever took a second line
    bar = r"measuring before: retain set \S{10} +\d+,000/50,000 +[\d,]+/s +0:0\d left"
    assert any(re.fullmatch(bar, state.strip()) for state in states), states
    budget = r"unlearning \(minimal-edit\) \S{10} +\d/640 +\d+/s +<\d:\d\d left"
    assert any(re.fullmatch(budget, state.strip()) for state in states), states
    assert any(re.fullmatch(r"reading \S{10} +\d,000 +[\d,]+/s +0:00 gone", state.strip()) for state in states), states
    # What is over leaves a line; what is begun anew does not count on.
    assert [state for state in states if " in 0:0" in state] == [
        "measuring before: retain set: 50,000 in 0:00",
        "unlearning (minimal-edit): 8 in 0:00",
        "reading: 8,000 in 0:00",
    ]
    assert "jaxunlearn: told in between" in states
    assert out == "result in between\nresult\n"  # not among the bars, where no program looks


def test_a_narrow_terminal_has_the_share_and_the_time_left():
    states, sent, _ = on_terminal(40)
    assert max(map(len, states)) <= 40
    assert "\x1b[1A" not in sent
    assert any(re.fullmatch(r"measuring before: \S*… +\d+ % +0:0\d left", state.strip()) for state in states), states
    assert any(re.fullmatch(r"reading +\d,000 +0:00 gone", state.strip()) for state in states), states
    assert "measuring before: retai…: 50,000 in 0:00" in states


def test_a_terminal_that_can_do_nothing_gets_no_bars():
    states, sent, out = on_terminal(80, TERM="dumb")
    assert "\x1b" not in sent
    assert [state for state in states if state] == ["jaxunlearn: told in between"]
    assert out == "result in between\nresult\n"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; advance it by adding to its first item."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def told(clock, capsys, seconds, label, total, *, first=0):
    """Report once a second; return the lines, and when each came."""
    lines = []
    with _progress.shown():
        for i in range(seconds):
            clock[0] += 1
            reports.report(label, first + i, total)
            lines += [(i + 1, line) for line in capsys.readouterr().err.splitlines()]
    return lines


def test_lines_say_the_rate_and_the_time_left(clock, capsys):
    assert told(clock, capsys, 25, "moments", 1000, first=500) == [
        (10, "moments: 509 of 1,000, 1.0/s, 8:11 left"),
        (20, "moments: 519 of 1,000, 1.0/s, 8:01 left"),
    ]
    assert told(clock, capsys, 10, "unlearning", reports.AtMost(1000)) == [
        (10, "unlearning: 9 of 1,000, 1.0/s, <16:31 left")
    ]
    assert told(clock, capsys, 10, "reading", None) == [(10, "reading: 9, 1.0/s, 0:09 gone")]


def test_work_that_begins_anew_has_a_rate_of_its_own(clock, capsys):
    with _progress.shown():
        for i in range(5):
            clock[0] += 1
            reports.report("training", 100 * i, 1000)
        for i in range(6):
            clock[0] += 1
            reports.report("training", i, 1000)
    assert capsys.readouterr().err == "training: 4 of 1,000, 1.0/s, 16:36 left\n"


def test_a_long_job_has_few_lines(clock, capsys):
    lines = told(clock, capsys, 36_000, "training", 50_000)
    assert 100 < len(lines) < 200
    assert lines[-1][0] - lines[-2][0] == 300


def test_quiet_is_silent(clock, capsys):
    with _progress.shown(quiet=True):
        for i in range(100):
            clock[0] += 100
            reports.report("training", i, 100)
    assert capsys.readouterr() == ("", "")
