"""Folders of pictures and films: nothing is changed or passed by that is not said."""

import json
import random
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm import media
from minifm.errors import ConfigError, FormatError
from minifm.media import MediaConfig, pictures
from minifm.media.files import by_contents
from minifm.rng import Rng

Image = pytest.importorskip("PIL.Image")


def noise(*shape, seed=0):
    return Rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def opened(path, **settings):
    """(Examples, lines said)."""
    said = []
    return media.open(path, MediaConfig(**settings), say=said.append), said


# -- pixels ----------------------------------------------------------------------------------------


def test_pictures_of_the_right_size_are_not_touched(tmp_path):
    arrays = {f"{i}.png": noise(12, 12, 3, seed=i) for i in range(5)}
    for name, array in arrays.items():
        save(tmp_path / name, array)
    found, said = opened(tmp_path)
    assert found.shape == (3, 12, 12) and found.kind is media.PICTURE and said == []
    assert found.description["converted"] == {} and found.description["skipped"] == {}
    expected = np.stack(list(arrays.values())).transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.allclose(found.take(np.arange(5)), expected, atol=1e-6)
    assert found.labels is None and found.captions is None and found.classes == ()


def test_grey_stays_grey_unless_others_have_colours(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", noise(8, 8, seed=i))
    found, said = opened(tmp_path)
    assert found.shape == (1, 8, 8) and said == []
    save(tmp_path / "c.png", noise(8, 8, 3))
    found, said = opened(tmp_path)
    assert found.shape == (3, 8, 8) and said == ["converted: grey to RGB (3)"]
    grey = found.take(np.arange(3))
    assert np.array_equal(grey, np.repeat(grey[:, :1], 3, 1))


def test_sizes_and_modes_are_converted_and_counted(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", noise(16, 16, 3, seed=i))
    save(tmp_path / "wide.png", noise(16, 40, 3))
    save(tmp_path / "large.png", noise(64, 64, 3))
    Image.fromarray(noise(16, 16, 4)).save(tmp_path / "clear.png")
    Image.fromarray(noise(16, 16, 3)).convert("CMYK").save(tmp_path / "print.tif")
    found, said = opened(tmp_path)
    assert found.shape == (3, 16, 16)               # the most frequent
    assert found.description["converted"] == {
        "cropped to a square": 1, "resized to 16 × 16": 1, "transparency laid on white": 1,
        "CMYK to RGB": 1}
    assert said[0].startswith("converted: ") and len(said) == 1
    found, _ = opened(tmp_path, size=8)
    assert found.shape == (3, 8, 8) and found.description["converted"]["resized to 8 × 8"] == 7


def test_transparency_is_laid_on_white():
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, :, 3] = 0, 255, 128, 0
    pixels[0, 2, :3] = 100
    array, done = pictures.squared(Image.fromarray(np.tile(pixels, (4, 1, 1))), 4, False, "x")
    assert set(done) == {"transparency laid on white"}
    assert array[:, 0, 0].tolist() == [255] * 3 and array[:, 0, 1].tolist() == [0] * 3
    assert np.abs(array[:, 0, 2].astype(int) - (100 * 128 + 255 * 127) / 255).max() <= 1


def test_sixteen_bits_become_the_nearest_eight():
    values = np.array([[0, 257, 65535, 32768]] * 4, np.uint16)
    array, done = pictures.squared(Image.fromarray(values), 4, True, "x")
    assert array[0, 0].tolist() == [0, 1, 255, 128] and set(done) == {"16 bits to 8"}
    with pytest.raises(FormatError, match="x: floating-point pixels"):
        pictures.squared(Image.fromarray(values.astype(np.float32)), 4, True, "x")
    with pytest.raises(FormatError, match=r"x: pixels of 0 … 70000; expected 8 or 16 bits"):
        pictures.squared(Image.fromarray(np.array([[0, 70000]], np.int32)), 1, True, "x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    """As EXIF says; the middle of what is then wide or tall is kept."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 8: np.rot90(upright, -1),
              7: np.rot90(upright, 2).transpose(1, 0, 2)}[orientation]
    for i, array in enumerate((stored, noise(8, 8, 3))):
        image = Image.fromarray(np.ascontiguousarray(array))
        exif = image.getexif()
        exif[0x0112] = orientation if i == 0 else 1
        image.save(tmp_path / f"{i}.png", exif=exif)
    found, _ = opened(tmp_path)
    assert found.shape == (3, 8, 8)
    half = found.take([0])[0, 0]
    assert (half[:, :4] == 1).all() and (half[:, 4:] == -1).all()
    assert ("turned as EXIF says" in found.description["converted"]) == (orientation > 1)


@given(width=st.integers(1, 40), height=st.integers(1, 40), side=st.integers(1, 24))
def test_the_middle_is_kept(width, height, side):
    """A picture that is white but for what the crop takes away is white."""
    array = np.zeros((height, width), np.uint8)
    s = min(width, height)
    top, left = (height - s) // 2, (width - s) // 2
    array[top : top + s, left : left + s] = 255
    found, done = pictures.squared(Image.fromarray(array), side, True, "x")
    assert found.shape == (1, side, side) and (found == 255).all()
    assert ("cropped to a square" in done) == (width != height)
    assert (f"resized to {side} × {side}" in done) == (s != side)


# -- what cannot be read ---------------------------------------------------------------------------


def test_what_is_damaged_is_named_and_passed_by(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", noise(8, 8, seed=i))
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.gif").write_bytes(b"")
    found, said = opened(tmp_path)
    assert found.count == 4
    assert found.description["skipped"] == {"files that cannot be read": 3}
    assert all(line.startswith(f"skipped: {tmp_path}/") for line in said) and len(said) == 3
    for name in ("cut.png", "text.jpg", "empty.gif"):
        assert any(name in line for line in said)
    for i in range(4):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(ConfigError, match="nothing to learn from in 3 files, such as .*cut.png"):
        opened(tmp_path)


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["PNG", "GIF", "JPEG", "BMP", "TIFF"]))
def test_damage_never_gets_through(tmp_path_factory, seed, kind):
    """Of a file with wrong bytes, either pixels come out or one FormatError that names it."""
    path = tmp_path_factory.mktemp("damaged") / f"a.{kind.lower()}"
    Image.fromarray(noise(9, 7, 3)).save(path, kind)
    draw, content = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 6)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content[: draw.randint(1, len(content))])
    try:
        with pictures.opened(path) as image:
            array, _ = pictures.squared(image, 8, False, path)
        assert array.shape == (3, 8, 8) and array.dtype == np.uint8
    except FormatError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_picture_that_claims_to_be_huge_is_one_line(tmp_path, side):
    """Its header is believed only so far, before a pixel is decoded: here there are none."""
    def chunk(name, data):
        return struct.pack(">I4s", len(data), name) + data + \
            struct.pack(">I", zlib.crc32(name + data))

    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT", b""))
    for i in range(2):
        save(tmp_path / f"{i}.png", noise(8, 8, seed=i))
    found, said = opened(tmp_path)
    assert found.count == 2 and len(said) == 1
    assert "bomb.png: " in said[0] and "more than 100 million" in said[0]


def test_files_of_other_kinds_are_counted(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.png", noise(8, 8, seed=i))
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n')
    found, said = opened(tmp_path)
    assert found.description["skipped"] == {"files of other kinds": 1}
    assert said[0] == "left out: files of other kinds (1)"


def test_many_failures_are_counted(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.png").write_bytes(b"no")
    for i in range(2):
        save(tmp_path / f"good{i}.png", noise(8, 8, seed=i))
    _, said = opened(tmp_path)
    assert len(said) == 9 and said[-1] == "skipped: 12 more files that cannot be read"


def test_places_without_anything_known(tmp_path):
    with pytest.raises(ConfigError, match="nothing: no such file or directory; expected .*glyphs"):
        opened(tmp_path / "nothing")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match="nothing in it that is known; expected a path of"):
        opened(tmp_path)
    save(tmp_path / "a.png", noise(8, 8))
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds 1 picture and 1 sound; choose by --kind"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match="no file of a solid in it, but 1 picture and 1 sound"):
        opened(tmp_path, kind="solid")
    with pytest.raises(ConfigError, match="different examples in it: 1, which leaves none"):
        opened(tmp_path, kind="picture")


# -- what folders and metadata.jsonl say -----------------------------------------------------------


def test_class_folders(tmp_path):
    for label in ("cat", "dog"):
        for i in range(4):
            save(tmp_path / label / f"{i}.png", noise(8, 8, seed=hash_of(label) + i))
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden" / "x.png", noise(8, 8))
    found, _ = opened(tmp_path)
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0] * 4 + [1] * 4
    save(tmp_path / "loose.png", noise(8, 8))
    assert opened(tmp_path)[0].labels is None


def hash_of(label):
    return sum(label.encode())


def test_folders_may_say_what_is_held_out(tmp_path):
    for part, count in (("train", 5), ("held-out", 2)):
        for i in range(count):
            save(tmp_path / part / "cat" / f"{i}.png", noise(8, 8, seed=hash_of(part) + i))
    found, _ = opened(tmp_path)
    assert found.classes == ("cat",)
    assert found.parts["held_out"].tolist() == [0, 1]
    assert found.parts["training"].tolist() == [2, 3, 4, 5, 6]


def test_captions(tmp_path):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", noise(8, 8, seed=i))
    lines = [{"file_name": "in/0.png", "text": "zero"}, {"file_name": "in/1.png", "text": "één"}]
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("\n\n".join(map(json.dumps, lines)))
    found, said = opened(tmp_path)
    assert found.captions == ("zero", "één", "")
    assert said == ["files without a caption, learnt as if it were empty: 1"]


def test_metadata_may_name_the_class(tmp_path):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", noise(8, 8, seed=i))
    lines = [{"file_name": f"in/{i}.png", "label": "Aab"[i]} for i in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, _ = opened(tmp_path)
    assert found.classes == ("A", "a", "in") and found.labels.tolist() == [0, 1, 2]
    assert found.captions is None


@pytest.mark.parametrize("line, match", [
    ('{"file_name": "b.png", "text": "b"}', "line 2: a caption without its file: b.png"),
    ('{"text": "a"}', "line 2: expected an object with a string `file_name`"),
    ('{"file_name": "a.png", "text": 3}', "line 2: expected an object with a string"),
    ("[1]", "line 2: expected an object, got list"), ("{", "line 2: not JSON")])
def test_captions_that_do_not_fit(tmp_path, line, match):
    for name in "ac":
        save(tmp_path / f"{name}.png", noise(8, 8, seed=ord(name)))
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "a"}\n' + line + "\n")
    with pytest.raises(FormatError, match=rf"metadata.jsonl: {match}"):
        opened(tmp_path)


@given(contents=st.lists(st.binary(max_size=3), min_size=2, max_size=40),
       fraction=st.floats(0.01, 0.99), seed=st.integers(0, 5), more=st.binary(min_size=4))
def test_the_side_is_by_contents(contents, fraction, seed, more):
    if len(set(contents)) < 2:
        with pytest.raises(ConfigError, match="different examples in it: 1"):
            by_contents(contents, fraction, seed, "x")
        return
    sides = by_contents(contents, fraction, seed, "x")
    assert len({(text, side) for text, side in zip(contents, sides)}) == len(set(contents))
    assert sides.any() and not sides.all()
    changed = by_contents([*contents, more], fraction, seed, "x")[:-1] != sides
    assert changed.sum() == 0 or sides.sum() == contents.count(
        next(text for text, c in zip(contents, changed) if c)) or (~sides).sum() == contents.count(
        next(text for text, c in zip(contents, changed) if c))


def test_about_the_fraction_is_held_out():
    digests = [bytes([i % 256, i // 256]) for i in range(2000)]
    assert 0.07 < by_contents(digests, 0.1, 0, "x").mean() < 0.13


# -- films -----------------------------------------------------------------------------------------


def film(frames, side=10, seed=0):
    return [noise(side, side, seed=100 * seed + i) for i in range(frames)]


def save_gif(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, loop=0)


def test_gifs_are_films(tmp_path):
    films = {name: film(n, seed=i) for i, (name, n) in enumerate([("a", 8), ("b", 19), ("c", 3)])}
    for name, frames in films.items():
        save_gif(tmp_path / f"{name}.gif", frames)
    (tmp_path / "d.gif").write_bytes(b"GIF89a")
    found, said = opened(tmp_path)
    assert found.kind is media.VIDEO and found.shape == (1, 8, 10, 10) and found.count == 1 + 2 + 1
    values = np.round((found.take(np.arange(4))[:, 0] + 1) * 127.5)
    assert np.array_equal(values[0], films["a"])
    assert np.array_equal(values[1:3].reshape(16, 10, 10), films["b"][:16])
    assert np.array_equal(values[3], films["c"] + films["c"][-1:] * 5)
    assert found.description["converted"] == {"last frame repeated": 1}
    assert found.description["skipped"] == {"frames after the last clip": 3,
                                            "files that cannot be read": 1}
    assert "d.gif" in said[0] and said[1] == "left out: frames after the last clip (3)"


def test_one_gif_is_split_by_its_clips(tmp_path):
    save_gif(tmp_path / "a.gif", film(30))
    found, _ = opened(tmp_path / "a.gif", frames=3)
    assert found.count == 10 and found.shape == (1, 3, 10, 10)
    assert 1 <= len(found.parts["held_out"]) < 10 and found.description["files"] == 1


def test_numbered_pictures_are_a_film(tmp_path):
    films = {name: film(12, seed=i) for i, name in enumerate(("x", "y"))}
    for name, frames in films.items():
        for i, frame in enumerate(frames):
            save(tmp_path / name / f"take2_{i}.png", frame)      # take2_10 comes after take2_9
    save(tmp_path / "z" / "none.png", noise(10, 10))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x", "text": "film x"}\n')
    found, said = opened(tmp_path, frames=12)
    assert found.kind is media.VIDEO and found.shape == (1, 12, 10, 10)
    values = np.round((found.take(np.arange(2))[:, 0] + 1) * 127.5)
    assert np.array_equal(values, list(films.values())) and found.captions == ("film x", "")
    assert "none.png: expected a number in the name" in said[0]
    assert opened(tmp_path / "x")[0].kind is media.PICTURE       # without --frames
    save(tmp_path / "x" / "other_3.png", noise(10, 10))
    assert "other_3.png: has the number of" in "".join(opened(tmp_path, frames=4)[1]) or \
        "take2_3.png: has the number of" in "".join(opened(tmp_path, frames=4)[1])


def test_colours_in_a_later_frame_are_seen(tmp_path):
    for seed in range(2):
        frames = [Image.fromarray(np.full((6, 6, 3), 40 * i + seed, np.uint8)) for i in range(3)]
        frames.append(Image.new("RGB", (6, 6), (255, seed, 0)))
        frames[0].save(tmp_path / f"{seed}.gif", save_all=True, append_images=frames[1:])
    found, _ = opened(tmp_path, frames=4)
    assert found.shape == (3, 4, 6, 6)
    assert found.take([0])[0, :, 3, 0, 0].tolist() == [1, -1, -1]


def test_without_pillow_one_line_says_so(tmp_path, monkeypatch):
    save(tmp_path / "a.png", noise(8, 8))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"pillow is not installed .*minifm\[viz\]"):
        opened(tmp_path)
