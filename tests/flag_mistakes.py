"""Every mistake about flags, output and the machine, how it is made and what is said of it.

``python -m tests.flag_mistakes`` prints the table of docs/errors.md.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.data_mistakes import file, link
from tests.picture_files import write_folder


class Mistake(NamedTuple):
    """A mistake.

    Attributes:
      what: is wrong, in the words of the table.
      asked: the command line; ``net`` in the current folder is a checkpoint.
      said: the line, ``...`` where the words are a library's, ``HERE`` for the current folder.
      make: makes it in the current folder.
    """

    what: str
    asked: str
    said: str
    make: Callable[[pytest.MonkeyPatch], object] = lambda monkeypatch: None


def files(*steps: Callable[[], object]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what writes files."""
    return lambda monkeypatch: [step() for step in steps] and None


def run_in(path: str, marker: str = "results.json") -> Callable[[], None]:
    """Return what writes a folder that is known as a run."""
    return file(f"{path}/{marker}", '{"tool": "jaxunlearn"}')


def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the output folder as another process does."""
    import filelock

    Path(".out.resume").mkdir()
    lock = filelock.FileLock(Path(".out.resume/lock").absolute())
    lock.acquire()
    monkeypatch.setattr(pytest, "held_by_a_test", lock, raising=False)  # let go when the test ends


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to make files, for root, too."""

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)


U = "unlearn --weights net --data digits --forget 2"
ADV = f"{U} --out out --method adv-imp"
C = "compare --weights net --data digits --forget 2 --out out"
T = "train --arch digits_cnn --data digits --out out"
LONG = "n" * 240
ADV_FLAGS = (
    "--learning-rate --momentum --weight-decay --epsilon --attack-steps --step-size --norm --draws --strength --mas "
    "--mas-train --mas-accumulate --batch-norm --max-passes --companions"
)

MISTAKES = (
    # flags
    Mistake("no command of that name", "unlern", "unknown command 'unlern'; did you mean unlearn?"),
    Mistake("a flag without its value", f"{U} --out", "--out needs a value (--out=VALUE if it begins with a dash)"),
    Mistake(
        "an empty value",
        f"{U} --out ''",
        "--out is empty: give it a value (is a variable of the shell not set?)",
    ),
    Mistake(
        "two dashes for a value",
        f"{U} --out=--",
        "--out is empty: give it a value (is a variable of the shell not set?)",
    ),
    Mistake(
        "two dashes for a value of a flag that may be given several times",
        f"{U} --out out --artefact=--",
        "--artefact is empty: give it a value (is a variable of the shell not set?)",
    ),
    Mistake(
        "an empty value of a flag that may be given several times",
        f"{U} --out out --artefact ''",
        "--artefact is empty: give it a value (is a variable of the shell not set?)",
    ),
    Mistake("a needed flag is missing", "demo", "the following arguments are required: --out"),
    Mistake("no place to write to", U, "--out is missing: the folder to keep the result in"),
    Mistake("a word too many", f"{U} 3 --out out", "unexpected argument '3'"),
    Mistake("a misspelt flag", f"{U} --out out --margni 1", "unknown flag --margni; did you mean --margin?"),
    Mistake("a flag cut short", f"{U} --out out --meth adv", "unknown flag --meth; did you mean --method?"),
    Mistake(
        "a flag of another method",
        f"{U} --out out --method delete --strength 1",
        "method 'delete' has no flag --strength, a flag of adv-imp, structguard; its flags: ...",
    ),
    Mistake("a flag of another command", "methods --out x", "unrecognized arguments: --out x"),
    Mistake("a value for a switch", f"{U} --out out --quiet=yes", "argument --quiet: ignored explicit argument 'yes'"),
    Mistake("none of the choices", f"{U} --out out --goal erase", "argument --goal: invalid choice: 'erase' ..."),
    Mistake(
        "an unknown method", f"{U} --out out --method advimp", "unknown method 'advimp'; did you mean 'adv-imp'? ..."
    ),
    Mistake("a word for a number", f"{ADV} --draws many", "--draws must be a whole number of at least 1; got 'many'"),
    Mistake("a number that is too small", f"{ADV} --draws 0", "--draws must be a whole number of at least 1; got '0'"),
    Mistake("a fraction for a count", f"{ADV} --draws 1.5", "--draws must be a whole number of at least 1; got '1.5'"),
    Mistake(
        "a count that no array could have",
        f"{ADV} --draws 99999999999",
        "--draws must be a whole number of at most 2147483647; got '99999999999'",
    ),
    Mistake(
        "a number in other digits, or in groups",
        f"{U} --out out --eval-limit 1_000",
        "--eval-limit must be a whole number of at least 1; got '1_000'",
    ),
    Mistake(
        "not a number",
        f"{ADV} --learning-rate nan",
        "--learning-rate must be a finite number of at least 0; got 'nan'",
    ),
    Mistake(
        "a number that is infinite as a float32",
        f"{ADV} --learning-rate 1e39",
        "--learning-rate must be a finite number of at least 0; got '1e39'",
    ),
    Mistake(
        "a negative number",
        f"{T} --weight-decay=-1e-9",
        "--weight-decay must be a finite number of at least 0; got '-1e-9'",
    ),
    Mistake("a share above one", f"{T} --codes 20", "--codes must be a finite number from 0 to 1; got '20'"),
    Mistake(
        "a momentum above one", f"{ADV} --momentum 1.5", "--momentum must be a finite number from 0 to 1; got '1.5'"
    ),
    Mistake(
        "a seed out of range",
        f"{U} --out out --seed 4294967296",
        "--seed must be a whole number from 0 to 4294967295; got '4294967296'",
    ),
    Mistake(
        "an image size that is none",
        f"{U} --out out --input-shape 32x32x3",
        "--input-shape must be height,width,channels such as 32,32,3; got '32x32x3'",
    ),
    Mistake(
        "a normalisation that is none",
        f"{U} --out out --mean 0,,0",
        "--mean must be finite numbers separated by commas; got '0,,0'",
    ),
    Mistake(
        "hyper-parameters that contradict each other", f"{ADV} --mas-train", "--mas-train and --mas-accumulate need ..."
    ),
    Mistake(
        "a goal that a method does not have",
        f"{U} --out out --goal relabel --method neggrad",
        "method 'neggrad' cannot pursue goal 'relabel'; it can: misclassify",
    ),
    Mistake("a target without the goal", f"{U} --out out --target 3", "--target is for --goal relabel"),
    Mistake(
        "a target that there is no label for",
        f"{U} --out out --goal relabel --target 10",
        "label 10 is out of range: digits has labels 0 to 9",
    ),
    Mistake(
        "a target that is the label",
        f"{U} --out out --goal relabel --target 2",
        "the target of instance 2 is its true label, 2: give another label, or 'random'",
    ),
    Mistake(
        "nothing to forget", f"{U} --out out --forget random:0", "the forget set is empty: random:0 names no instance"
    ),
    Mistake(
        "public images, and images to be made, too",
        f"{U} --out out --public digits --inversion 5",
        "give --public or --inversion, not both: images of yours take the place of made ones",
    ),
    Mistake(
        "data that the method does not look at",
        f"{U} --out out --method neggrad --public digits",
        "method 'neggrad' has no use for --public; leave it out",
    ),
    Mistake(
        "a result of a run that is not run",
        f"{U} --json --dry-run",
        "--json gives the result of a run, and --dry-run has none: leave one of them out",
    ),
    Mistake("no seeds to compare", f"{C} --seeds 0", "--seeds must be a whole number of at least 1; got '0'"),
    Mistake("more trials than there are", f"{C} --trials 10", "--trials must be a whole number from 1 to 9; got '10'"),
    Mistake(
        "a method to compare twice", f"{C} --methods adv,neggrad,adv", "--methods must not repeat; got 'adv' twice"
    ),
    Mistake(
        "an unknown field in --methods",
        f"{C} --methods adv:rate=1",
        "--methods adv:rate=1: adv has no field 'rate'; it has ...",
    ),
    Mistake(
        "a bad value in --methods",
        f"{C} --methods adv:draws=0",
        "--methods adv:draws=0: --draws must be a whole number of at least 1; got '0'",
    ),
    Mistake(
        "a field twice in --methods",
        f"{C} --methods adv:draws=1:draws=2",
        "--methods adv:draws=1:draws=2: draws is there twice",
    ),
    Mistake(
        "a setting without a value in --methods",
        f"{C} --methods adv:draws",
        "--methods adv:draws: write settings as NAME:FIELD=VALUE, such as minimal-edit:depth=crops",
    ),
    Mistake(
        "nothing to export",
        "export --out w.npz",
        "give --run or --weights: the folder of a run, or of a checkpoint",
    ),
    Mistake(
        "a file to export to of another kind",
        "export --weights net --out w.onnx",
        "out must be a file of kind .safetensors, .npz, .msgpack, .pth, .pt, .th; got 'w.onnx' ...",
    ),
    # what steers a terminal
    Mistake(
        "what steers a terminal, in a value",
        "'unlearn\x1b[31m\n\u202e'",
        "unknown command 'unlearn\\x1b[31m\\n\\u202e'; did you mean unlearn?",
    ),
    Mistake(
        "what steers a terminal, in the name of a file",
        f"{U} --out 'a\x1b[31m\n\u202eb'",
        "HERE/a\\x1b[31m \\u202eb exists and is not a jaxunlearn run: choose another output folder",
        files(file("a\x1b[31m\n\u202eb", "mine")),
    ),
    # output
    Mistake(
        "a folder of something else",
        f"{U} --out thesis --overwrite",
        "HERE/thesis exists and is not a jaxunlearn run: choose another output folder",
        files(file("thesis/thesis.tex", "mine")),
    ),
    Mistake(
        "an earlier run",
        f"{U} --out old",
        "HERE/old holds an earlier run: choose another output folder or --overwrite it",
        files(run_in("old")),
    ),
    Mistake(
        "a run where the folder of the demo's runs is to be",
        "demo --out old",
        "old is a run itself: choose another folder",
        files(run_in("old")),
    ),
    Mistake(
        "a file where the folder is to be",
        f"{U} --out plain",
        "HERE/plain exists and is not a jaxunlearn run: choose another output folder",
        files(file("plain", "mine")),
    ),
    Mistake(
        "a file where a folder on the way is to be",
        "demo --out plain/demo",
        "cannot make HERE/plain/demo/neggrad: HERE/plain is not a folder",
        files(file("plain", "mine")),
    ),
    Mistake(
        "a link to nowhere",
        f"{U} --out runs",
        "HERE/runs is a symbolic link to /nowhere: name the folder itself",
        files(link("runs", "/nowhere")),
    ),
    Mistake("a name that is too long", f"{U} --out {LONG}", f"HERE/{LONG}: is too long: 230 bytes a name, 3900 in all"),
    Mistake("no permission to write", f"{U} --out a/b/c", "HERE: Permission denied", read_only),
    Mistake(
        "the output is what is read",
        "unlearn --from old --forget 2 --out old --overwrite",
        "--out old is, or holds, what --from old reads: choose another place",
        files(run_in("old")),
    ),
    Mistake(
        "the output holds the weights",
        "unlearn --weights old/checkpoint --data digits --forget 2 --out old --overwrite",
        "--out old is, or holds, what --weights old/checkpoint reads: choose another place",
        files(run_in("old")),
    ),
    Mistake(
        "the output is the file of the weights",
        "moments --weights w.npz --data digits --out ./w.npz --overwrite",
        "--out ./w.npz is, or holds, what --weights w.npz reads: choose another place",
        files(file("w.npz", "weights")),
    ),
    Mistake(
        "the output lies among pictures",
        "unlearn --weights net --data folder:photos --forget all --out photos/out",
        "--out photos/out lies among the pictures of --data folder:photos: choose another place",
        files(lambda: write_folder(Path("photos"), [1])),
    ),
    Mistake(
        "another process writes to the folder",
        f"{U} --out out",
        "another process is writing to out: wait for it, or choose another output folder",
        held,
    ),
    Mistake(
        "curves into the folder of the run",
        f"{U} --out out --log-dir out/log",
        "--log-dir out/log must lie outside of --out out, which is put in place as a whole",
    ),
    Mistake(
        "curves into a file",
        f"{U} --out out --log-dir plain",
        "--log-dir plain is not a folder",
        files(file("plain", "mine")),
    ),
    Mistake(
        "curves of an earlier run",
        f"{U} --out out --log-dir log",
        "--log-dir log holds the curves of an earlier run: choose another folder, or --overwrite",
        files(file("log/steps.csv", "step,loss\n1,2\n")),
    ),
    Mistake(
        "a file that is there already",
        "moments --weights net --data digits --out m.safetensors",
        "m.safetensors: exists: name another file, or ask to --overwrite it",
        files(file("m.safetensors", "mine")),
    ),
    Mistake(
        "a folder where the file is to be",
        "moments --weights net --data digits --out net --overwrite",
        "net: is a folder: name a file",
    ),
    Mistake(
        "an export that is there already",
        "export --weights net --out w.npz",
        "HERE/w.npz: exists: choose another place or --overwrite it",
        files(file("w.npz", "mine")),
    ),
    Mistake(
        "a comparison into a folder of something else",
        f"{C}",
        "out: exists and holds no comparison: choose another folder",
        files(file("out/thesis.tex", "mine")),
    ),
    Mistake(
        "a comparison that is damaged",
        f"{C}",
        "out/before.json is damaged (...): remove it or choose another folder",
        files(file("out/before.json", "{")),
    ),
    # the machine
    Mistake(
        "no such device",
        f"{U} --out out --device tpu",
        "--device tpu: jax finds none here, only cpu; is there one, and is 'jaxunlearn[tpu]' installed?",
    ),
)


def rows() -> list[str]:
    """Return the lines of the table in docs/errors.md."""
    shown = [(m.what, m.said.replace("HERE/", "").replace("HERE", ".").replace(LONG, "nnn...")) for m in MISTAKES]
    cells = ((what, said.replace("|", "\\|")) for what, said in shown)
    return ["| what is wrong | what is said |", "|---|---|", *(f"| {what} | `{said}` |" for what, said in cells)]


if __name__ == "__main__":
    print("\n".join(rows()))
