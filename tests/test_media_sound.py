"""WAV files of every kind of sample, at any rate, whole and damaged."""

import random
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm import media
from minifm.errors import ConfigError, FormatError
from minifm.media import MediaConfig, waves
from minifm.rng import Rng


def wav(samples, rate=8000, *, bits=16, coding=1, extensible=False, length=None, extra=b""):
    """The bytes of a WAV file of samples [T, channels]: integers as they stand in the file, or
    floats."""
    samples = np.asarray(samples)
    channels = samples.shape[1]
    if coding == 3:
        data = samples.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = samples.astype(np.uint8).tobytes()
    else:
        data = samples.astype("<i4").reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else coding, channels, rate, rate * frame,
                       frame, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, coding) + bytes(14)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + extra + \
        b"data" + struct.pack("<I", len(data) if length is None else length) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def saved(path, *args, **options):
    path.write_bytes(wav(*args, **options))
    return path


def opened(path, **settings):
    said = []
    return media.open(path, MediaConfig(**settings), say=said.append), said


def sine(hertz, seconds=1.0, rate=8000, peak=20_000):
    time = np.arange(int(seconds * rate)) / rate
    return np.round(peak * np.sin(2 * np.pi * hertz * time))[:, None]


# -- samples ---------------------------------------------------------------------------------------


@given(bits=st.sampled_from([8, 16, 24, 32]), channels=st.integers(1, 3), seed=st.integers(0, 99),
       extensible=st.booleans(), extra=st.sampled_from([b"", b"LIST\3\0\0\0abc\0"]))
def test_integers_are_read_exactly(tmp_path_factory, bits, channels, seed, extensible, extra):
    """As multiples of 2^-(bits - 1), rounded to float32."""
    low, high = (0, 256) if bits == 8 else (-2 ** (bits - 1), 2 ** (bits - 1))
    values = low + Rng(seed).integers(0, high - low - 1, (7, channels))
    path = saved(tmp_path_factory.mktemp("wav") / "a.wav", values, 11025, bits=bits,
                 extensible=extensible, extra=extra)
    found, rate = waves.read_wave(path)
    exact = (values - 128) / 128 if bits == 8 else values / 2 ** (bits - 1)
    assert rate == 11025 and found.dtype == np.float32
    assert np.array_equal(found, exact.astype(np.float32))


def test_the_ends_of_the_range(tmp_path):
    for bits in (16, 24, 32):
        path = saved(tmp_path / "a.wav", [[-2 ** (bits - 1)], [2 ** (bits - 1) - 1]], bits=bits)
        assert waves.read_wave(path)[0][:, 0] == pytest.approx([-1, 1], abs=2.0 ** (1 - bits))
    assert waves.read_wave(saved(tmp_path / "a.wav", [[0], [255]], bits=8))[0].tolist() == \
        [[-1], [127 / 128]]


@pytest.mark.parametrize("bits", [32, 64])
def test_floats_are_read_as_they_are(tmp_path, bits):
    values = Rng(0).host_normal((9, 2))
    for extensible in (False, True):
        path = saved(tmp_path / "a.wav", values, bits=bits, coding=3, extensible=extensible)
        assert np.array_equal(waves.read_wave(path)[0], values)


def test_python_writes_what_is_read_here(tmp_path):
    values = Rng(0).integers(-32768, 32768, (50,)).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 22050, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    found, rate = waves.read_wave(tmp_path / "a.wav")
    assert rate == 22050 and np.array_equal(found[:, 0] * 32768, values)


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content, match", [
    (b"", "not a WAV file"), (b"RIFF\0\0\0\0AIFF", "not a WAV file"),
    (wav([[1]])[:20], "no chunk 'fmt ' in its place|at least 16 bytes"),
    (wav([[1]])[:36], "no chunk 'data' in its place"),
    (wav(np.ones((9, 1)))[:-4], r"data: cut short: 18 bytes are announced, 14 are there"),
    (wav(np.ones((0, 1))), "data: there is no sample in it"),
    (wav([[1]], coding=7, bits=8), "fmt : µ-law of 8 bits"),
    (wav([[1]], coding=0x161), "fmt : coding 353 of 16 bits"),
    (wav([[1]], rate=0), "fmt : 1 channels at 0 Hz"),
    (wav([[0.5], [np.nan]], coding=3, bits=32), r"sample 1 \(0.000 s\): nan in channel 0"),
    (wav([[0.5], [1e300]], coding=3, bits=64), r"sample 1 \(0.000 s\): inf in channel 0"),
])
def test_files_that_are_refused(tmp_path, content, match):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(FormatError, match=rf"a\.wav: (.*)({match})"):
        waves.read_wave(tmp_path / "a.wav")


def test_a_length_that_was_not_known_is_that_of_the_file(tmp_path):
    path = saved(tmp_path / "a.wav", np.ones((9, 1)), length=0xFFFFFFFF)
    assert len(waves.read_wave(path)[0]) == 9


@given(seed=st.integers(0, 10_000))
def test_damage_never_gets_through(tmp_path_factory, seed):
    draw = random.Random(seed)
    content = bytearray(wav(np.ones((20, 2)), bits=draw.choice((8, 16, 24)),
                            extensible=draw.random() < 0.5))
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    path.write_bytes(content[: draw.randint(1, len(content))])
    try:
        assert np.isfinite(waves.read_wave(path)[0]).all()
    except FormatError as error:
        assert str(path) in str(error)


def test_what_is_damaged_is_named_and_passed_by(tmp_path):
    for i in range(3):
        saved(tmp_path / f"{i}.wav", sine(200 + i))
    saved(tmp_path / "nan.wav", [[np.nan]] * 100, bits=32, coding=3)
    (tmp_path / "text.wav").write_text("no")
    found, said = opened(tmp_path, length=1000)
    assert found.count == 24 and found.description["skipped"] == {"files that cannot be read": 2}
    assert "nan.wav: sample 0" in said[0] and "text.wav: not a WAV file" in said[1]


# -- windows ---------------------------------------------------------------------------------------


def test_windows_follow_one_another(tmp_path):
    values = [Rng(i).integers(-30_000, 30_000, (2500, 1)) for i in range(3)]
    for i, array in enumerate(values):
        saved(tmp_path / f"{i}.wav", array)
    found, said = opened(tmp_path, length=1000)
    assert found.kind is media.SOUND and found.shape == (1, 1000)
    assert said == ["left out: samples after the last window (1,500)"]
    assert found.description["rate"] == 8000
    assert found.description["skipped"] == {"samples after the last window": 1500}
    expected = np.stack([array[: 2000, 0].reshape(2, 1, 1000) for array in values]) / 32768
    assert np.allclose(found.take(np.arange(6)), expected.reshape(6, 1, 1000), atol=1e-7)
    sides = {i // 2 for i in found.parts["held_out"]}
    assert {i // 2 for i in found.parts["training"]}.isdisjoint(sides)    # files are not torn


def test_short_quiet_and_wide_files(tmp_path):
    saved(tmp_path / "a.wav", sine(300))
    saved(tmp_path / "short.wav", sine(310, seconds=0.01))
    saved(tmp_path / "silent.wav", np.zeros((2048, 1)))
    saved(tmp_path / "stereo.wav", np.repeat(sine(320), 2, 1) * [1, 0.5])
    saved(tmp_path / "loud.wav", sine(330) / 10_000, bits=32, coding=3)
    saved(tmp_path / "fast.wav", sine(340, rate=16000), 16000)
    found, said = opened(tmp_path)
    assert found.description["converted"] == {
        "16000 Hz to 8000 Hz": 1, "clipped to -1 … 1": 1, "filled up with zeros": 1,
        "2 channels to one": 1}
    assert found.description["skipped"]["silent windows"] == 2
    assert found.count == 4 * 7 + 1 and len(said) == 2
    assert said[0].startswith("left out: ") and said[1].startswith("converted: ")
    assert np.abs(found.take(np.arange(found.count))).max() == 1


def test_channels_are_averaged(tmp_path):
    for i in range(2):
        saved(tmp_path / f"{i}.wav", np.tile([[8000 + i, 1000, 0]], (64, 1)))
    found, _ = opened(tmp_path, length=64)
    assert np.allclose(found.take([0, 1])[:, 0] * 32768, [[3000], [3000 + 1 / 3]], atol=0.01)


def test_silence_alone_is_an_error(tmp_path):
    for i in range(2):
        saved(tmp_path / f"{i}.wav", np.full((2048, 1), i))
    with pytest.raises(ConfigError, match="nothing to learn from in 2 files; silent windows: 4"):
        opened(tmp_path)


def test_one_file_is_split_by_its_windows(tmp_path):
    path = saved(tmp_path / "a.WAV", Rng(0).integers(-9999, 9999, (9000, 1)))
    found, _ = opened(path, length=500, held_out=0.3)
    assert found.count == 18 and 1 <= len(found.parts["held_out"]) < 12


# -- other rates -----------------------------------------------------------------------------------


@given(rate=st.sampled_from([8000, 11025, 22050, 44100, 48000]),
       wanted=st.sampled_from([4000, 8000, 16000, 44100]), part=st.floats(0.05, 0.8))
def test_a_sine_stays_a_sine(rate, wanted, part):
    """In the band of both rates: the same sine, within -54 dB away from the ends."""
    hertz = part * min(rate, wanted) / 2
    time = np.arange(2000) / rate
    found = waves.resampled(np.sin(2 * np.pi * hertz * time), rate, wanted)
    assert len(found) == -(-2000 * wanted // rate)
    expected = np.sin(2 * np.pi * hertz * np.arange(len(found)) / wanted)
    edge = -(-20 * wanted // min(rate, wanted))
    assert np.abs(found - expected)[edge:-edge].max(initial=0) < 2e-3


@given(part=st.floats(1.15, 1.9))
def test_what_the_lower_rate_cannot_carry_is_gone(part):
    time = np.arange(4000) / 8000
    found = waves.resampled(np.sin(2 * np.pi * part * 1000 * time), 8000, 2000)
    assert np.abs(found[40:-40]).max() < 0.01


def test_the_same_rate_changes_nothing():
    wave_ = Rng(0).host_normal((100,), np.float64)
    assert waves.resampled(wave_, 8000, 8000) is wave_
