"""Commands on data in files: the examples of docs/data.md, runs that go on, comparisons, real images."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import checkpoint
from jaxunlearn.cli import _comparison, _data, _estimate, _progress
from jaxunlearn.cli.main import main
from jaxunlearn.data import open_source, tfds_source
from tests.digits_net import ARCH, network, tensors
from tests.picture_files import NAMES, digit, label, write_folder, write_parquet, write_table
from tests.test_data import PIXELS, write_tfds
from tests.test_web import Page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"
COMMANDS = [
    " ".join(command.split("\\\n"))
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for command in re.findall(r"^jaxunlearn .*?[^\\]$", block, re.DOTALL | re.MULTILINE)
]
FAST = ["--method", "neggrad", "--learning-rate", "0.02"]
#: One of each class, then more of some.
TRAIN = [*range(1, 14), 15, 16, 17]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with what the page speaks of."""
    root = tmp_path_factory.mktemp("home")
    checkpoint.save(root / "net", network())
    write_folder(root / "photos", TRAIN)
    write_folder(root / "training", [*TRAIN, *range(30, 60)])
    write_table(root / "tested", range(70, 90))
    (root / "tested/table.csv").rename(root / "tested/held_out.csv")
    for file in (root / "tested").iterdir():
        shutil.move(file, root / file.name)
    (root / "anything").mkdir()
    for row in (91, 92, 93):
        (root / "anything" / f"{row}.png").write_bytes(digit(row))
    person = lambda row: str(4711 + row % 3)
    for place in ("a", "people"):
        write_table(root / place, [1, 2, 3, 4, 5, 6], person=person)
    shutil.copytree(root / "a/pictures", root / "pictures", dirs_exist_ok=True)
    shutil.copy(root / "a/table.csv", root / "people.csv")
    (root / "tables").mkdir()
    (root / "people/table.csv").rename(root / "tables/people.csv")
    (root / "list.csv").write_text("person,file\n4712,pictures/1.png\n4711,pictures/3.png\n")
    write_folder(root / "three_classes", [3, 4, 5])
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    write_parquet(root / "hf/train-00000-of-00001.parquet", TRAIN)
    write_parquet(root / "hf/test-00000-of-00001.parquet", range(70, 90))
    write_folder(root / "damaged", TRAIN)
    (root / "damaged/d3/x.png").write_bytes(digit(3)[:60])
    return root


def results(path) -> dict:
    """Return a run's results.json."""
    return json.loads((path / "results.json").read_text())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[11:80])
def test_the_examples_of_the_page_run(command, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(_estimate, "estimate", lambda *args, **kwargs: [("time", "some")])
    _, *argv = shlex.split(command)
    assert main([*argv, "--dry-run"] if argv[0] == "unlearn" else argv) == 0
    said = capsys.readouterr().out
    assert "time" in said or "accuracy %" in said


def test_the_page_has_examples():
    assert len(COMMANDS) == 9


@pytest.fixture(scope="module")
def run(home):
    """A run on data that lie apart, with class names from a file and a picture that is skipped."""
    (home / "damaged/d5/y.png").write_bytes(b"")
    out = home / "run"
    monkey = pytest.MonkeyPatch()
    monkey.chdir(home)
    argv = ["unlearn", "--weights", "net", "--data", "folder:three_classes", "--classes", "classes.txt"]
    more = ["--retain-data", "folder:damaged", "--test-data", "csv:held_out.csv", "--on-bad-image", "skip"]
    assert main([*argv, *more, "--forget", "3.png,4.png", "--out", str(out), "--quiet", *FAST]) == 0
    yield out
    monkey.undo()


def test_a_run_says_what_was_measured_and_skipped(run):
    found = results(run)
    assert found["sizes"] == {"forget": 2, "retain": len(TRAIN) - 2, "test": 20}
    assert [instance["id"] for instance in found["instances"]] == ["d3/3.png", "d4/4.png"]
    assert [instance["label"] for instance in found["instances"]] == [label(3), label(4)]
    kept = found["extras"]["reading"]
    assert kept["classes"] == list(NAMES)
    assert {name: kept[name] for name in ("retain_data", "test_data", "on_bad_image")} == {
        "retain_data": "folder:damaged",
        "test_data": "csv:held_out.csv",
        "on_bad_image": "skip",
    }
    assert sorted(kept["skipped"]) == ["retain:d3/x.png", "retain:d5/y.png"]
    assert kept["skipped"]["retain:d5/y.png"] == "is empty"
    assert "d3/3.png" in (run / "report.md").read_text()


def test_a_run_opens_its_data_again(run, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["evaluate", "--run", "run", "--json"]) == 0
    said = capsys.readouterr()
    measured = json.loads(said.out)
    assert measured["n"] == 20
    assert measured["accuracy"] == pytest.approx(results(run)["after"]["test"])
    assert list(measured["by_class"]) == list(NAMES)
    assert "skipped folder:damaged: 2 of 18 pictures" in said.err
    assert main(["unlearn", "--from", "run", "--forget", "5.png", "--out", "second", "--quiet", *FAST]) in (0, 3)
    second = results(home / "second")
    assert [item["id"] for item in second["earlier"]] == ["d3/3.png", "d4/4.png"]
    assert second["extras"]["reading"] == results(run)["extras"]["reading"]
    assert second["sizes"]["retain"] == len(TRAIN) - 3


def test_a_run_as_weights_brings_its_class_names(run, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(_estimate, "estimate", lambda *args, **kwargs: [("time", "some")])
    argv = ["unlearn", "--weights", "run", "--data", "folder:three_classes", "--forget", "5.png", "--dry-run"]
    assert main(argv) == 0
    assert "classes 10, in the order of run" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", "--weights", "run", "--data", "folder:three_classes", "--split", "train", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["by_class"]) == list(NAMES)
    shutil.copytree(run, home / "bare")
    (home / "bare/results.json").write_text('{"tool": "jaxunlearn"}')  # its checkpoint is whole, its names are gone
    argv[2] = "bare"
    assert main(argv) == 2
    assert "has 3 classes (d3, d4, d5), the network 10: give --classes FILE" in capsys.readouterr().err


def test_names_of_all_kinds_from_one_end_to_the_other(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kinds = [
        "two words",
        "Łódź 東京",
        "a,b=c #1",
        "two\nlines",
        "'quoted' \"twice\"",
        "$x_{$",
        "**b** [c](d)",
        "😀",
        "שלום",
    ]
    names = [f"{kind} class" for kind in (*kinds, "<i>")]
    write_folder(tmp_path / "ein Bild", TRAIN, names=names)
    for i, path in enumerate(sorted((tmp_path / "ein Bild").rglob("*.png"))):
        path.rename(path.with_name(f"{kinds[i % len(kinds)]} {path.name}"))
    argv = ["unlearn", "--weights", str(home / "net"), "--data", "folder:ein Bild", "--forget", "all", *FAST]
    assert main([*argv, "--out", "out 東京", "--overwrite"]) in (0, 3)
    said = capsys.readouterr()
    assert not [line for line in said.err.splitlines() if "Warning" in line or "Glyph" in line]
    assert said.out.replace("\n", "").isprintable()
    found = results(tmp_path / "out 東京")
    ids = [instance["id"] for instance in found["instances"]]
    assert ids == sorted(f"{path.parent.name}/{path.name}" for path in (tmp_path / "ein Bild").rglob("*.png"))
    assert found["extras"]["reading"]["classes"] == sorted(names)
    page = Page((tmp_path / "out 東京" / "report.html").read_text(encoding="utf-8"))
    cells = {" ".join(text.split()) for text in page.text}
    assert {" ".join(name.split()) for name in ids} <= cells
    assert "i" not in page.tags
    (tmp_path / "list.csv").write_text('file\n"' + ids[3].replace('"', '""') + '"\n', encoding="utf-8")
    again = ["--from", "out 東京", "--forget", "@list.csv", "--out", "next", "--quiet", *FAST]
    assert main(["unlearn", *again]) in (0, 3)
    assert [instance["id"] for instance in results(tmp_path / "next")["instances"]] == [ids[3]]


def test_a_split_with_nothing_in_it_is_one_line(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos/train", TRAIN)
    write_folder(tmp_path / "photos/test", [70])
    next((tmp_path / "photos/test").rglob("*.png")).write_bytes(b"")
    write_table(tmp_path / "t", [1], split=lambda row: "test")
    net = ["--weights", str(home / "net"), "--data"]
    none = "has no instances in its split"
    for argv, said in (
        (["evaluate", *net, "folder:photos", "--on-bad-image", "skip"], f"folder:photos {none} 'test', only in train"),
        (["evaluate", *net, "csv:t/table.csv", "--split", "train"], f"csv:t/table.csv {none} 'train', only in test"),
        (["train", *net, "csv:t/table.csv", "--out", "x"], f"csv:t/table.csv {none} 'train', only in test"),
        (["train", "--arch", ARCH, "--data", "csv:t/table.csv", "--out", "x"], f"csv:t/table.csv {none} 'train'"),
        (["moments", *net, "csv:t/table.csv", "--out", "x"], f"csv:t/table.csv {none} 'train', only in test"),
    ):
        assert main(argv) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert f"jaxunlearn: error: {said}" in told.err
        assert not (tmp_path / "x").exists()


def test_reading_a_data_set_is_seen(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    monkeypatch.setattr(tfds_source, "_CHUNK", 25)
    monkeypatch.setattr(_data, "_CHUNK", 32)
    write_tfds(tmp_path, shape=(8, 8, 1), pixels={name: x[..., :1].squeeze(-1) for name, x in PIXELS.items()})
    argv = ["unlearn", "--weights", str(home / "net"), "--data", "tfds:toys", "--data-dir", str(tmp_path)]
    assert main([*argv, "--forget", "row:1", "--out", str(tmp_path / "out"), *FAST]) in (0, 3)
    said = capsys.readouterr().err
    for line in (
        "reading labels: train set: 25 of 60",
        "reading labels: train set: 60 of 60",
        "reading labels: test set: 20 of 20",
        "reading images: 32 of 80",
        "reading images: 80 of 80",
    ):
        assert line in said


def test_the_forget_images_alone_are_enough(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    argv = ["unlearn", "--weights", "net", "--data", "folder:three_classes", "--classes", "classes.txt"]
    assert main([*argv, "--forget", "all", "--out", "alone", *FAST]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "data folder:three_classes: 3 train classes 10, in the order of --classes classes.txt" in said
    assert "unmeasured D_r and D_test: there are no other images; --retain-data and --test-data would give them" in said
    found = results(home / "alone")
    assert found["sizes"] == {"forget": 3}
    assert "retain" not in found["saw"]


def test_a_method_that_needs_the_retain_set_sees_what_is_named(home, monkeypatch):
    from jaxunlearn import loop

    problems = []

    def stop(problem, **kwargs):
        problems.append(problem)
        raise KeyboardInterrupt

    monkeypatch.chdir(home)
    monkeypatch.setattr(loop, "run", stop)
    argv = ["unlearn", "--weights", "net", "--data", "folder:photos", "--forget", "3.png", "--out", "x", "--quiet"]
    others = ["--retain-data", "folder:training"]
    assert main([*argv, *others, "--method", "neggrad"]) == 130
    assert main([*argv, *others, "--method", "oracle"]) == 130
    assert problems[0].retain is None
    assert len(problems[1].retain.y) == len(TRAIN) + 30 - 1
    pixels = np.round(open_source("digits").images([3]) * 255) / 255
    assert not (np.abs(np.asarray(problems[1].retain.x) - pixels).max((1, 2, 3)) < 1e-6).any()


def test_compare_takes_data_that_lie_apart(home, monkeypatch, capsys):
    def in_process(work, args, path, *more):
        _comparison.write(path, work(args, *more))
        return json.loads(path.read_text())

    monkeypatch.chdir(home)
    monkeypatch.setattr(_comparison, "in_process", in_process)
    argv = [
        "compare",
        "--weights",
        "net",
        "--data",
        "folder:three_classes",
        "--classes",
        "classes.txt",
        "--forget",
        "all",
    ]
    more = [
        "--test-data",
        "csv:held_out.csv",
        "--methods",
        "neggrad:learning_rate=0.02",
        "--no-depth",
        "--out",
        "compared",
    ]
    assert main([*argv, *more]) == 0
    assert "20 test" in capsys.readouterr().out
    assert main([*argv, *more, "--retain-data", "folder:training"]) == 2
    assert "another --retain-data (None, now folder:training)" in capsys.readouterr().err


def test_class_names_of_hugging_face(home, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "w.npz", **tensors())
    monkeypatch.chdir(home)
    monkeypatch.setattr(_estimate, "estimate", lambda *args, **kwargs: [("time", "some")])
    argv = ["unlearn", "--arch", ARCH, "--weights", str(tmp_path / "w.npz"), "--data", "folder:three_classes"]
    argv += ["--forget", "all", "--dry-run"]
    for names, status in ((NAMES, 0), ([f"LABEL_{n}" for n in range(10)], 2)):
        (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(n): names[n] for n in range(10)}}))
        assert main(argv) == status
        said = capsys.readouterr()
        # The second are made up: no names, and a network of one's own whose weights know that it has ten classes.
        assert "config.json" in said.out if status == 0 else "has 3 classes (d3, d4, d5), the network 10" in said.err


def test_training_goes_on_with_the_networks_classes(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    argv = ["train", "--weights", "net", "--data", "folder:three_classes", "--epochs", "1", "--out", "more"]
    assert main(argv) == 2
    assert "has 3 classes (d3, d4, d5), the network 10: give --classes FILE" in capsys.readouterr().err


def test_training_on_a_folder_takes_its_classes_from_it(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    argv = ["train", "--arch", ARCH, "--data", "folder:three_classes", "--epochs", "1"]
    assert main([*argv, "--out", "trained"]) == 0
    assert "3, their names sorted: d3, d4, d5" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", "--weights", "trained", "--data", "folder:three_classes", "--split", "train"]) == 0
    shutil.copytree("three_classes", "two_classes", ignore=shutil.ignore_patterns("d3"))
    capsys.readouterr()
    argv = ["evaluate", "--weights", "trained", "--data", "folder:two_classes", "--split", "train", "--json"]
    assert main(argv) == 0  # where their number alone would not tell which outputs they are
    assert list(json.loads(capsys.readouterr().out)["by_class"]) == ["d3", "d4", "d5"]
    (Path("trained") / "training.json").write_text("[]")
    assert main(argv) == 2
    assert "has 2 classes (d4, d5), the network 3: give --classes FILE" in capsys.readouterr().err


def test_class_names_in_a_wrong_order_are_suspected_where_nothing_is_known(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    (tmp_path / "turned").write_text("\n".join(reversed(NAMES)) + "\n")
    argv = ["unlearn", "--weights", "net", "--data", "folder:three_classes", "--forget", "all", "--quiet", *FAST]
    for names, told in (("classes.txt", False), (str(tmp_path / "turned"), True)):
        assert main([*argv, "--classes", names, "--out", str(tmp_path / f"run{told}")]) == 0
        said = capsys.readouterr().out
        assert ("Before, the network knew only 0 of the 3: are --mean, --std and the order" in said) == told


def test_evaluate_measures_the_training_split_where_there_is_no_other(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    argv = ["evaluate", "--weights", "net", "--quiet", "--data"]
    assert main([*argv, "folder:photos"]) == 0
    assert re.search(rf"all of train +{len(TRAIN)} ", capsys.readouterr().out)
    assert main([*argv, "folder:photos", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "train"
    Path("held.csv").write_text(f"file,label,split\npictures/1.png,{label(1)},val\n")
    assert main([*argv, "csv:held.csv"]) == 2
    assert "csv:held.csv has no instances in its split 'train', only in val" in capsys.readouterr().err
    assert main([*argv, "csv:held.csv", "--split", "val"]) == 0


# --- images of another size -------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "tfds"])
def test_stored_images_of_another_size_are_measured_as_the_same_pictures_in_files(
    kind, home, tmp_path, monkeypatch, capsys
):
    images = np.random.default_rng(0).integers(0, 256, (60, 40, 50, 3), np.uint8)
    x = np.stack([np.roll(image, 3 * i, axis=0) // (1 + i % 5) for i, image in enumerate(images)])
    y = np.arange(60) * 7 % 3
    monkeypatch.chdir(tmp_path)
    for i in range(60):
        place = tmp_path / "files" / str(y[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i]).save(place / f"{i}.png")
    np.savez("a.npz", x=x, y=y)
    write_tfds(tmp_path, shape=(-1, -1, 3), pixels={"train": x})
    data = ["npz:a.npz"] if kind == "npz" else ["tfds:toys", "--data-dir", str(tmp_path)]
    said = []
    for source in (["folder:files"], data):
        argv = ["evaluate", "--weights", str(home / "net"), "--data", *source, "--split", "train", "--json", "--quiet"]
        assert main(argv) == 0
        said.append(capsys.readouterr())
    expected, found = (json.loads(each.out) for each in said)
    assert list(found["by_class"].values())[:3] == list(expected["by_class"].values())[:3]
    assert (found["accuracy"], found["n"]) == (expected["accuracy"], 60)
    assert 0 < found["accuracy"] < 1
    stored = "40x50x3" if kind == "npz" else "many sizes"
    assert f"images of {stored}, brought to 8x8x1 as pictures in files are" in said[1].err
    argv = ["unlearn", "--weights", str(home / "net"), "--data", *data, "--forget", "row:2", "--out", "out", *FAST]
    assert main(argv) in (0, 3)
    assert f"images of {stored}, brought to 8x8x1" in " ".join(capsys.readouterr().out.split())


def test_a_fresh_network_takes_the_size_of_stored_images_or_of_a_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (20, 10, 12, 1), np.uint8)
    np.savez("a.npz", x=x, y=np.arange(20) % 2)
    argv = ["train", "--arch", "digits_cnn", "--data", "npz:a.npz", "--epochs", "1", "--quiet"]
    assert main([*argv, "--out", "own"]) == 0
    assert main([*argv, "--input-shape", "8,8,1", "--out", "flag"]) == 0
    shapes = [
        dict(checkpoint.describe(f"{name}/checkpoint")["recipe"].kwargs)["input_shape"] for name in ("own", "flag")
    ]
    assert shapes == [(10, 12, 1), (8, 8, 1)]


# --- real images -------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet(shared, tmp_path_factory):
    """Eight of the thousand ImageNet images in class folders, and a table of them; the names of all classes."""
    import csv

    sample = shared / "data/imagenet_sample"
    with (sample / "labels.csv").open() as file:
        lines = list(csv.DictReader(file))
    root = tmp_path_factory.mktemp("imagenet")
    for line in lines[::125]:
        (root / "photos" / line["wnid"]).mkdir(parents=True)
        (root / "photos" / line["wnid"] / line["file"]).symlink_to(sample / "images" / line["file"])
    (root / "classes.txt").write_text("\n".join(line["wnid"] for line in lines) + "\n")
    rows = [f"{line['file']},{line['label']},{line['name']}" for line in lines[::125]]
    (root / "some.csv").write_text("\n".join(["file,label,name", *rows]) + "\n")
    return root, ["--arch", "mobilenet_v1_075", "--weights", str(shared / "weights/imagenet_mobilenet_v1_075_224.npz")]


def test_imagenet_images_in_a_table_and_in_folders(imagenet, shared, monkeypatch, capsys):
    root, net = imagenet
    monkeypatch.chdir(root)
    table = ["--data", "csv:some.csv", "--data-dir", str(shared / "data/imagenet_sample/images")]
    folder = ["--data", "folder:photos", "--classes", "classes.txt"]
    answers = []
    for data in (table, folder):
        assert main(["evaluate", *net, *data, "--split", "train", "--json", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        answers.append((found["n"], found["accuracy"]))
    assert answers[0] == answers[1]
    assert answers[0][0] == 8
    assert answers[0][1] >= 0.75  # 85 % of all thousand
    assert main(["evaluate", *net, "--data", "folder:photos", "--split", "train"]) == 2
    assert "has 8 classes (n01440764, " in capsys.readouterr().err
    monkeypatch.setattr(_estimate, "estimate", lambda *args, **kwargs: [("time", "some")])
    assert main(["unlearn", *net, *table, "--forget", "name=tench", "--dry-run"]) == 0
    assert "1 instance: n01440764.jpg" in capsys.readouterr().out
