"""Examples as files: what is written is what is read, on the same sides, with the same words."""

import json

import numpy as np
import pytest

from minifm import cli, media
from minifm.errors import UserError
from minifm.media import Examples, MediaConfig
from minifm.media.writing import shown, write
from minifm.rng import Rng

SHAPES = {"picture": (1, 9, 9), "sound": (1, 64), "video": (3, 8, 9, 9), "solid": (1, 7, 7, 7)}


def examples(kind, captions=True, labels=True):
    values = Rng(3).integers(0, 256, (7, *SHAPES[kind])).astype(np.uint8)
    if kind == "video":                 # a GIF has 256 colours in each frame
        values = values // 64 * 64
    return Examples(
        kind=media.KINDS[kind], values=values,
        labels=np.array([0, 1, 2, 0, 1, 2, 0], np.int32) if labels else None,
        classes=("A", "a", "é") if labels else (),
        captions=tuple(f"number {i} “x”" for i in range(7)) if captions else None,
        parts={"training": np.array([0, 2, 3, 5, 6]), "held_out": np.array([1, 4])},
        description={"name": "made up", "generated": True, "rate": 8000})


@pytest.mark.parametrize("captions, labels", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_written_is_read(tmp_path, kind, captions, labels):
    if kind != "solid":
        pytest.importorskip("PIL")
    wanted = examples(kind, captions, labels)
    write(wanted, tmp_path / "d")
    said = []
    found = media.open(tmp_path / "d", MediaConfig(kind=kind, length=64), say=said.append)
    assert said == [] and found.kind is wanted.kind and found.shape == wanted.shape
    assert found.classes == wanted.classes
    for part in wanted.parts:
        here, there = found.parts[part], wanted.parts[part]
        error = np.abs(found.take(here) - wanted.take(there)).max()
        assert error <= (1.1 / 32768 if kind == "sound" else 1e-6)
        if captions:
            assert [found.captions[i] for i in here] == [wanted.captions[i] for i in there]
        if labels:
            assert found.labels[here].tolist() == wanted.labels[there].tolist()
    assert (found.captions is None) == (not captions) and (found.labels is None) == (not labels)
    assert json.loads((tmp_path / "d" / "description.json").read_text()) == wanted.description


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write(examples("picture"), tmp_path / "d")
    assert [path.name for path in tmp_path.rglob("*")] == ["d", "mine"]


def test_what_is_shown_is_of_all():
    found = shown(examples("picture"))
    assert found.tolist() == list(range(7))


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "data"
    words = ["dataset", "glyphs", "--variations", "1", "--size", "16", "--out", str(out)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    for said in ("248 pictures of shape 1 × 16 × 16, made here", "training  198", "held-out  50",
                 "62 classes: A, B", "held-out combinations, of 248: ", 'captions such as "'):
        assert said in printed
    assert sorted(path.name for path in out.iterdir()) == ["glyphs", "glyphs.png"]
    assert cli.main(words) == 2 and "exists already" in capsys.readouterr().err
    # A folder of files, in turn, and text beside them.
    again = ["dataset", str(out / "glyphs"), "--size", "8", "--out", str(tmp_path / "small")]
    assert cli.main(again) == 0
    printed = capsys.readouterr().out
    assert "converted: resized to 8 × 8 (248)" in printed and "training  198" in printed


@pytest.mark.parametrize("words, match", [
    (["stdlib-ner", "--size", "8"], "size: it is of media, and only text is asked for"),
    (["nothing"], "nothing: no such file or directory; expected a path of"),
    (["glyphs", "--size", "0"], "size: expected at least 1"),
    (["glyphs", "--kind", "smell"], "kind: expected one of picture, sound, video, solid"),
    (["glyphs", "--held-out", "1"], "held_out: expected more than 0 and less than 1, got 1"),
    (["stdlib-x"], "task: expected one of stdlib-ner")])
def test_mistakes(tmp_path, capsys, words, match):
    assert cli.main(["dataset", *words, "--out", str(tmp_path / "d")]) == 2
    assert match in capsys.readouterr().err
