"""Every row of the table of mistakes about flags, output and the machine; and any flags at all: never a traceback."""

from __future__ import annotations

import re
import shlex

import jax
import pytest

from jaxunlearn import checkpoint, models
from jaxunlearn.cli.main import main
from tests import flag_mistakes
from tests.digits_net import ARCH
from tests.flag_mistakes import MISTAKES
from tests.test_data_errors import PAGE, pattern


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A checkpoint of the network with fresh weights."""
    recipe = models.recipe(ARCH, num_classes=10, input_shape=(8, 8, 1))
    path = tmp_path_factory.mktemp("net") / "checkpoint"
    checkpoint.save(path, models.from_recipe(recipe, key=jax.random.key(0)))
    return path


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").symlink_to(net)
    mistake.make(monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    assert main(shlex.split(mistake.asked)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    expected = pattern(mistake.said).replace("HERE", re.escape(str(tmp_path)))
    assert re.fullmatch(f"jaxunlearn: error: {expected}\n", said.err), said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_page_has_every_mistake():
    assert "\n".join(flag_mistakes.rows()) in PAGE.read_text(encoding="utf-8")
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)
