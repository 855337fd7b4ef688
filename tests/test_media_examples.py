"""What is seen of examples and written of them: views, grids, and files that other readers open."""

import io
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ConfigError
from minifm.media import KINDS, PICTURE, SOLID, SOUND, VIDEO, drawing


@given(st.integers(0, 99))
def test_bytes_become_numbers_and_the_same_bytes(seed):
    x = mf.Rng(seed).integers(0, 256, (3, 50)).astype(np.uint8)
    numbers = drawing.from_bytes(x)
    assert numbers.dtype == np.float32 and np.abs(numbers).max() <= 1
    np.testing.assert_array_equal(drawing.to_bytes(numbers), x)
    assert drawing.from_bytes(np.array([0, 255], np.uint8)).tolist() == [-1, 1]


@pytest.mark.parametrize("channels", [1, 3])
@given(seed=st.integers(0, 99))
def test_a_png_reads_back_in_pillow(channels, seed):
    Image = pytest.importorskip("PIL.Image")
    H, W = 1 + mf.Rng(seed).integers(0, 40, (2,))
    picture = mf.Rng(seed).child("x").integers(0, 256, (H, W, channels)).astype(np.uint8)
    with Image.open(io.BytesIO(drawing.png(picture))) as image:
        image.load()
        np.testing.assert_array_equal(np.asarray(image).reshape(picture.shape), picture)


@given(count=st.integers(1, 12), columns=st.integers(1, 5), side=st.integers(1, 70))
def test_a_grid_has_every_picture_in_order(count, columns, side):
    pictures = mf.Rng(count).integers(0, 255, (count, side, side, 1)).astype(np.uint8)
    page = drawing.grid(pictures, columns)
    scale, gap = max(1, drawing.SEEN // side), drawing.GAP
    step = side * scale + gap
    assert page.shape == (gap + -(-count // columns) * step, gap + columns * step, 1)
    for place, picture in enumerate(pictures):
        y, x = (gap + n * step for n in divmod(place, columns))
        cell = page[y : y + side * scale, x : x + side * scale]
        np.testing.assert_array_equal(cell[::scale, ::scale], picture)
        np.testing.assert_array_equal(cell[scale - 1 :: scale, scale - 1 :: scale], picture)


@pytest.mark.parametrize("kind, shape", [(PICTURE, (2, 1, 5, 6)), (PICTURE, (2, 3, 5, 6)),
                                         (PICTURE, (2, 4, 5, 6)), (SOUND, (2, 1, 700)),
                                         (SOUND, (2, 1, 5)), (VIDEO, (2, 3, 4, 5, 6)),
                                         (SOLID, (2, 1, 4, 5, 6))])
def test_every_kind_has_views_and_files(tmp_path, kind, shape):
    values = 2 * mf.Rng(1).uniform(shape) - 1
    seen = kind.view(values)
    assert seen.dtype == np.uint8 and seen.ndim == 4 and seen.shape[0] == 2
    assert seen.shape[3] in (1, 3) and seen.min() < seen.max()
    kind.save(tmp_path / "x.npy", values)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), values)
    kind.save(tmp_path / "x.png", values)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert KINDS[kind.name] is kind and len(kind.space) == len(shape) - 2
    for path in ("x.jpg", "x"):
        for use in (kind.check_path, lambda path: kind.save(path, values)):
            with pytest.raises(ConfigError, match=f"{path}: a {kind.name} is written to"):
                use(path)


def test_a_film_is_seen_from_left_to_right():
    film = np.zeros((1, 1, 3, 2, 2), np.float32)
    film[0, 0, 2] = 1
    assert drawing.of_films(film)[0, :, :, 0].tolist() == [[128, 128, 128, 128, 255, 255]] * 2


def test_a_solid_is_seen_upright():
    solid = np.full((1, 1, 2, 2, 4), -1.0)
    solid[..., 0] = 1                               # what is at the bottom, z = 0
    front = drawing.of_solids(solid)[0, :, :2, 0]
    assert (front[-1] == 255).all() and (front[0] == 0).all()


def test_what_is_farther_is_darker_and_hidden():
    solid = np.full((1, 1, 1, 3, 1), -1.0)              # along y, away from the eye
    seen = [drawing.of_solids(np.where(np.arange(3)[:, None] == y, 1.0, solid))[0, 0, 0, 0]
            for y in range(3)]
    assert seen[2] == 255 > seen[1] > seen[0] > 0
    both = np.where(np.arange(3)[:, None] > 0, 1.0, solid)
    assert drawing.of_solids(both)[0, 0, 0, 0] == 255
    half = np.where(np.arange(3)[:, None] == 2, 0.0, np.where(np.arange(3)[:, None] == 0, 1.0, -1))
    light = (0.5 + 0.5 * 0.35) * 255
    assert abs(drawing.of_solids(half[None, None, None])[0, 0, 0, 0] - light) <= 1


def test_the_view_of_a_sound_follows_it():
    seen = drawing.of_sounds(np.linspace(-1, 1, 512)[None, None])[0, :, :, 0]
    dark = [np.flatnonzero(column < 255).mean() for column in seen.T]
    assert dark[0] == seen.shape[0] - 1 and dark[-1] == 0 and np.all(np.diff(dark) <= 0)


def test_a_sound_is_a_wave_file(tmp_path):
    values = np.array([[[0.0, 1.0, -1.0, 2.0]], [[0.5, 0.5, 0.5, 0.5]]], np.float32)
    SOUND.save(tmp_path / "x.wav", values, rate=100)
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert file.getparams()[:4] == (1, 2, 100, 28)      # 10 samples apart
        read = np.frombuffer(file.readframes(28), "<i2")
    assert read[:4].tolist() == [0, 32767, -32767, 32767] and not read[4:14].any()
    assert read[14:18].tolist() == [16384] * 4
    with pytest.raises(ConfigError, match="samples a second"):
        SOUND.save(tmp_path / "x.wav", values)


def test_a_film_is_a_gif_with_its_frames(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    values = np.linspace(-1, 1, 5)[None, None, :, None, None] * np.ones((2, 1, 5, 8, 8))
    VIDEO.save(tmp_path / "x.gif", values)
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 5
        for frame, level in enumerate(drawing.to_bytes(np.linspace(-1, 1, 5))):
            image.seek(frame)
            assert image.convert("L").getpixel((10, 10)) == level


def test_digits_are_real_and_split_without_overlap():
    pytest.importorskip("sklearn")
    from minifm.media import MediaConfig, digits
    found = digits()
    parts = list(found.parts.values())
    assert found.count == 1797 == len(np.union1d(*parts)) == sum(map(len, parts))
    assert len(found.parts["held_out"]) == 180 and found.shape == (1, 8, 8)
    x = found.take(np.arange(5))
    assert x.dtype == np.float32 and x.min() == -1 and x.max() == 1
    other = digits(MediaConfig(seed=1))
    assert not np.array_equal(other.parts["held_out"], found.parts["held_out"])
    with pytest.raises(ConfigError, match="size: the digits have 8"):
        digits(MediaConfig(size=9))
