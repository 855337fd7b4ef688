"""Pictures: a file of the kind that its name says, whole or not there, and nobody else's drawing
changed."""

import sys

import pytest

from minifm.picture import COLOURS, STYLE, can_draw, picture

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("kind", STARTS)
def test_a_file_is_of_the_kind_that_its_name_says(tmp_path, kind):
    pytest.importorskip("matplotlib")
    with picture(tmp_path / f"a.b.{kind}", 2, 1) as figure:
        figure.subplots().plot([1, 2])
    assert [file.name for file in tmp_path.iterdir()] == [f"a.b.{kind}"]
    assert (tmp_path / f"a.b.{kind}").read_bytes().startswith(STARTS[kind])


def test_where_the_block_raises_the_old_picture_stays(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png", 2, 1):
        raise ZeroDivisionError
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_a_picture_that_cannot_be_made_leaves_the_old_file(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "a.nothing").write_bytes(b"old")
    with pytest.raises(ValueError), picture(tmp_path / "a.nothing", 2, 1):
        pass
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_the_settings_of_matplotlib_are_as_they_were(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    before = {key: matplotlib.rcParams[key] for key in STYLE}
    with picture(tmp_path / "a.png", 2, 1):
        assert {key: matplotlib.rcParams[key] for key in STYLE} == STYLE != before
    assert {key: matplotlib.rcParams[key] for key in STYLE} == before


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.figure"])
def test_without_matplotlib_nothing_can_be_drawn(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert not can_draw()


def test_colours_differ():
    assert len(set(COLOURS)) == len(COLOURS)
