"""What is made: every thing and manner is learnt, no held-out pair is; what captions say is so."""

import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minifm import media
from minifm.errors import ConfigError
from minifm.media import MediaConfig, glyphs, moving, solids, tones
from minifm.media.pairs import held_out_pairs
from minifm.rng import Rng

FEW = MediaConfig(variations=2)
NAMES = [name for name in media.BUILT_IN if name != "digits"]


@pytest.fixture(scope="module")
def made():
    """{name: Examples}, two of each combination."""
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    return {name: media.open(name, FEW) for name in NAMES}


# -- pairs -----------------------------------------------------------------------------------------


@given(pairs=st.sets(st.tuples(st.sampled_from("abcde"), st.sampled_from("abxyz")), min_size=1),
       fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_each_of_a_held_out_pair_remains(pairs, fraction, seed):
    pairs = sorted(pairs)
    try:
        away = held_out_pairs(pairs, fraction, Rng(seed))
    except ConfigError:
        things, manners = (Counter(pair[i] for pair in pairs) for i in (0, 1))
        assert all(things[a] == 1 or manners[b] == 1 for a, b in pairs)     # none can be spared
        return
    left = [pair for pair in pairs if pair not in away]
    assert 1 <= len(away) <= max(1, round(fraction * len(pairs))) and away < set(pairs)
    for place in (0, 1):
        assert {pair[place] for pair in left} == {pair[place] for pair in pairs}


def test_as_many_are_held_out_as_asked_for():
    pairs = [(thing, manner) for thing in "abcdefgh" for manner in "12345678"]
    assert len(held_out_pairs(pairs, 0.25, Rng(0))) == 16
    assert held_out_pairs(pairs, 0.25, Rng(0)) != held_out_pairs(pairs, 0.25, Rng(1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_is_as_it_says(made, name):
    """Parts, labels and captions fit together, and no held-out pair is learnt."""
    found = made[name]
    training, held_out = found.parts["training"], found.parts["held_out"]
    assert sorted([*training, *held_out]) == list(range(found.count))
    assert found.count == 2 * found.description["pairs"] == len(found.captions)
    assert found.description["generated"] is True and found.description["name"] == name
    assert found.labels.dtype == np.int32
    assert set(found.labels[training]) == set(range(len(found.classes)))
    away = {tuple(pair) for pair in found.description["held_out_pairs"]}
    assert len(held_out) == 2 * len(away)
    assert {found.classes[label] for label in found.labels[held_out]} == {a for a, _ in away}
    captions = {part: {found.captions[i] for i in where} for part, where in found.parts.items()}
    assert not captions["training"] & captions["held_out"]
    values = found.take(np.arange(found.count))
    assert values.dtype == np.float32 and values.shape == (found.count, *found.shape)
    assert np.abs(values).max() <= 1 and (values.std(tuple(range(1, values.ndim))) > 0.05).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_makes_the_same(made, name):
    again = media.open(name, FEW)
    everything = np.arange(again.count)
    assert np.array_equal(again.take(everything), made[name].take(everything))
    assert again.captions == made[name].captions
    other = media.open(name, MediaConfig(variations=2, seed=1))
    assert not np.array_equal(other.take(everything), made[name].take(everything))
    assert other.description["held_out_pairs"] != again.description["held_out_pairs"]


# -- glyphs ----------------------------------------------------------------------------------------


def test_captions_mean_a_letter_and_a_style(made):
    found = made["glyphs"]
    for label, text in zip(found.labels[::5], found.captions[::5]):
        letter, style = glyphs.asked(text)
        assert letter == found.classes[label] and style in text
    forms = {(letter, style, form): glyphs.caption(letter, style, "mono", form)
             for letter in glyphs.LETTERS for style in glyphs.STYLES for form in range(3)}
    assert len(set(forms.values())) == len(forms)       # no two mean the same
    assert glyphs.caption("a", "bold", "serif", 0) == "bold letter a"
    assert glyphs.caption("7", "italic", "mono", 2) == "mono italic digit seven"
    with pytest.raises(ConfigError, match="caption: 'letter A' is none of a letter"):
        glyphs.asked("letter A")


@pytest.mark.parametrize("noise, least", [(0, 1), (0.2, 0.98)])
def test_letters_are_recognised(made, noise, least):
    """Wherever they stand, in any size and typeface, and in noise."""
    found, some = made["glyphs"], np.arange(0, made["glyphs"].count, 3)
    pictures = found.take(some)
    pictures = pictures + np.float32(noise) * Rng(1).host_normal(pictures.shape)
    read = glyphs.recognised(pictures)
    assert np.mean([pair == glyphs.asked(found.captions[i])
                    for pair, i in zip(read, some)]) >= least


def test_what_has_no_ink_is_read_without_a_warning():
    pytest.importorskip("PIL")
    assert len(glyphs.recognised(np.ones((2, 1, 32, 32), np.float32))) == 2


@given(size=st.sampled_from([12, 16, 32, 48]), letter=st.sampled_from(glyphs.LETTERS),
       style=st.integers(0, 3), face=st.sampled_from(list(glyphs.FONTS)),
       em=st.floats(0, 1, exclude_max=True), across=st.floats(0, 1, exclude_max=True),
       down=st.floats(0, 1, exclude_max=True))
def test_letters_are_whole(size, letter, style, face, em, across, down):
    """Of the same ink as on a sheet with room."""
    pytest.importorskip("PIL")
    check_whole(size, letter, style, face, em, across, down)


def test_the_widest_letters_are_whole():
    pytest.importorskip("PIL")
    for face in glyphs.FONTS:
        for letter in "MW":
            for size in (12, 13, 24, 48):
                for across in (0.0, 0.999):
                    check_whole(size, letter, 3, face, 0.999, across, 0.5)
                    check_whole(size, letter, 1, face, 0.999, across, 0.5)


def check_whole(size, letter, style, face, em, across, down):
    path = glyphs.font_directory() / f"{glyphs.FONTS[face][style]}.ttf"
    picture = glyphs.rendered(letter, path, size, em, across, down)
    assert picture.shape == (1, size, size) and picture.dtype == np.uint8
    from PIL import Image, ImageDraw
    least, most = (round(part * size) for part in glyphs.EM)
    sheet = Image.new("L", (3 * size, 3 * size), 255)
    ImageDraw.Draw(sheet).text((size, 2 * size), letter, fill=0, anchor="ls",
                               font=glyphs.open_font(str(path), glyphs.between(least, most, em)))
    ink, whole = (255 - np.asarray(p, np.int64) for p in (picture, sheet))
    assert ink.sum() == whole.sum() > 0


def test_letters_of_a_style_differ_from_those_of_others():
    pytest.importorskip("PIL")
    fonts = glyphs.font_directory()
    drawn = {(face, style): glyphs.rendered("a", fonts / f"{name}.ttf", 32, 0.5, 0.5, 0.5)
             for face, names in glyphs.FONTS.items() for style, name in enumerate(names)}
    assert len({picture.tobytes() for picture in drawn.values()}) == len(drawn)
    for face in glyphs.FONTS:                       # bold has more ink
        assert drawn[face, 1].mean() < drawn[face, 0].mean()


def test_letters_need_room_and_pillow(monkeypatch):
    with pytest.raises(ConfigError, match="size: letters take at least 12 pixels a side, got 8"):
        media.open("glyphs", MediaConfig(size=8))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"glyphs: matplotlib is not installed .*viz"):
        media.open("glyphs")


# -- tones -----------------------------------------------------------------------------------------


def test_the_pitch_of_a_tone_is_its_caption(made):
    found = made["tones"]
    asked = [i for i in range(found.count) if " tone " in found.captions[i]]
    for i in asked:
        hertz = tones.pitch(found.take([i])[0, 0], found.description["rate"])
        name, cents = tones.nearest_note(hertz)
        assert name == found.classes[found.labels[i]] and found.captions[i].endswith(name)
        assert abs(cents) < 50


def test_the_notes_of_a_chord_are_the_loudest(made):
    found = made["tones"]
    rate, length = found.description["rate"], found.description["length"]
    for i in range(found.count):
        for kind, steps in tones.CHORDS.items():
            if found.captions[i].endswith(f"{kind} chord"):
                wave = found.take([i])[0, 0] * np.hanning(length)
                power = np.abs(np.fft.rfft(wave, 8 * length))
                root = tones.NOTES[found.classes[found.labels[i]]]
                notes = np.arange(root - 2, root + 11)
                heard = [power[round(tones.frequency(n) * 8 * length / rate)] for n in notes]
                assert {notes[j] - root for j in np.argsort(heard)[-3:]} == set(steps)


def test_a_sweep_goes_from_note_to_note(made):
    """By the same factor in equal times: f(t) = f 2^(± t / T), between zeros of the wave."""
    found = made["tones"]
    rate, length = found.description["rate"], found.description["length"]
    for i, text in enumerate(found.captions):
        if text.startswith("sweep"):
            wave = found.take([i])[0, 0].astype(np.float64)
            before = np.flatnonzero(np.diff(np.signbit(wave)))
            zeros = (before + wave[before] / (wave[before] - wave[before + 1])) / rate
            middles = (zeros[1:] + zeros[:-1]) / 2 * rate / length
            start = tones.frequency(tones.NOTES[found.classes[found.labels[i]]])
            said = start * 2 ** (middles if "up" in text else -middles)
            assert np.abs(0.5 / np.diff(zeros) / said - 1).max() < 0.05


@given(semitone=st.integers(48, 71), timbre=st.sampled_from(list(tones.TIMBRES)),
       phase=st.floats(0, 1), rate=st.sampled_from([4000, 8000, 16000]),
       noise=st.floats(0, 0.02), gain=st.floats(0.01, 1))
def test_pitch_is_found(semitone, timbre, phase, rate, noise, gain):
    """Within a quarter of a semitone, in any phase, loudness and timbre, with some noise."""
    wave = tones.tone(tones.frequency(semitone), tones.TIMBRES[timbre], np.arange(1024) / rate,
                      rate, phase)
    wave = gain * (wave + noise * Rng(0).host_normal((1024,), np.float64))
    found = tones.pitch(wave, rate, lowest=100)
    assert abs(12 * np.log2(found / tones.frequency(semitone))) < 0.25


def test_noise_and_silence_have_no_pitch():
    assert tones.pitch(np.zeros(1024), 4000) is None
    assert tones.pitch(Rng(1).host_normal((1024,)), 4000) is None
    assert tones.pitch(np.ones(8), 4000) is None


@pytest.mark.parametrize("timbre", tones.TIMBRES)
def test_nothing_folds_back(timbre):
    """Two periods are 63 samples: of 32 times that, the spectrum has lines at multiples of 64. What
    folded back would fall half-way between."""
    count, rate = 63 * 32, 1000
    wave = tones.tone(rate / 31.5, tones.TIMBRES[timbre], np.arange(count) / rate, rate, 0.2)
    power = np.abs(np.fft.rfft(wave))
    assert power[64] > 0.2 * count
    power[::64] = 0
    assert power.max() < 1e-9 * count


def test_chords_are_those_of_the_books():
    """The third of a major chord is about 5/4 of the root, that of a minor one 6/5, fifths 3/2."""
    for kind, third in (("major", 5 / 4), ("minor", 6 / 5)):
        ratios = [tones.frequency(step) / tones.frequency(0) for step in tones.CHORDS[kind]]
        assert ratios == pytest.approx([1, third, 3 / 2], rel=0.01)


def test_rates_that_carry_no_sweep_are_refused():
    with pytest.raises(ConfigError, match="rate: the highest sweep ends at 988 Hz"):
        media.open("tones", MediaConfig(rate=1900))


def test_notes_and_manners_are_recognised(made):
    """In noise the note is still read, while a triangle's faint harmonics no longer are."""
    found = made["tones"]
    waves = found.take(np.arange(found.count))
    read = tones.recognised(waves, found)
    assert [tones.caption(*pair) for pair in read] == list(found.captions)
    read = tones.recognised(waves + np.float32(0.2) * Rng(1).host_normal(waves.shape), found)
    assert [note for note, _ in read] == [found.classes[label] for label in found.labels]


# -- moving digits ---------------------------------------------------------------------------------


def test_digits_move_as_they_are_said_to(made):
    found = made["moving-digits"]
    for i, text in enumerate(found.captions):
        film, way = found.take([i])[0, 0], text.split(" moves ")[1]
        places = np.array([moving.middle(frame) for frame in film])
        assert np.allclose(places[4] - places[0], 4 * np.array(moving.WAYS[way]), atol=1e-4)
        assert moving.way(film) == way and moving.way(film[:1]) is None
        assert text.startswith(f"a {found.classes[found.labels[i]]} moves")


@pytest.mark.parametrize("noise", [0, 0.2])
def test_moving_digits_are_recognised(made, noise):
    """Their handwriting is new to the reader, so that it may take one digit for another, but not
    their way."""
    found = made["moving-digits"]
    some = found.parts["held_out"]
    films = found.take(some)
    films = films + np.float32(noise) * Rng(1).host_normal(films.shape)
    read = moving.recognised(films, found)
    pairs = [text.removeprefix("a ").split(" moves ") for text in
             (found.captions[i] for i in some)]
    assert [way for _, way in read] == [way for _, way in pairs]
    assert np.mean([digit == asked for (digit, _), (asked, _) in zip(read, pairs)]) >= 0.9


def test_a_digit_that_jumps_has_no_way(made):
    found = made["moving-digits"]
    film = found.take([0])
    assert moving.recognised(film, found)[0][1] is not None
    assert moving.recognised(film[:, :, [0, 1, 7, 3, 4, 5, 6, 2]], found)[0][1] is None


def test_what_stays_or_is_not_there_has_no_way():
    film = -np.ones((8, 16, 16))
    assert moving.way(film) is None and moving.middle(film[0]) is None
    film[:, 4, 4] = 1
    assert moving.way(film) is None and moving.middle(film[0]) == (4, 4)


@given(part=st.floats(0, 1, exclude_max=True), step=st.sampled_from([-1, 0, 1]),
       frames=st.integers(1, 40), room=st.integers(1, 20))
def test_what_bounces_stays_in_its_room(part, step, frames, room):
    places = moving.bounced(part, step, frames, room)
    assert len(places) == frames and 0 <= min(places) and max(places) <= room
    steps = np.diff(places)
    assert (np.abs(steps) == abs(step)).all()
    assert (steps[: min(room, frames // 2)] == step).all()
    turns = np.flatnonzero(np.diff(steps)) + 1
    assert all(places[turn] in (0, room) for turn in turns)


def test_held_out_films_are_of_other_handwriting(made):
    """A frame's ink, cut out, is one of the digits of its own part."""
    digits = media.open("digits")
    known = {part: {digits.take([i]).tobytes() for i in where}
             for part, where in digits.parts.items()}
    found = made["moving-digits"]
    shared = known["training"] & known["held_out"]
    for part, where in found.parts.items():
        other = known["held_out" if part == "training" else "training"] - shared
        for i in where[:60]:
            frame = found.take([i])[0, 0, 0]
            cuts = {frame[r : r + 8, c : c + 8].tobytes() for r in range(9) for c in range(9)}
            assert cuts & known[part] and not cuts & other


def test_two_digits_are_both_there(made):
    found = made["moving-digit-pairs"]
    ink = (found.take(np.arange(found.count)) > 0).sum((1, 2, 3, 4))
    assert Counter(text[0] for text in found.captions) == {"a": found.count}
    assert np.median(ink) > 1.5 * np.median((made["moving-digits"].take(
        np.arange(made["moving-digits"].count)) > 0).sum((1, 2, 3, 4)))


def test_a_digit_needs_room_to_move():
    with pytest.raises(ConfigError, match="a digit of 8 pixels cannot move in 8"):
        media.open("moving-digits", MediaConfig(size=8))


# -- solids ----------------------------------------------------------------------------------------


def test_solids_are_recognised(made):
    """The held-out ones by the nearest of the others, whatever size and pose."""
    found = made["solids"]
    held_out = found.parts["held_out"]
    read = solids.recognised(found.take(held_out), found)
    right = np.mean([shape == found.classes[label]
                     for (shape, _), label in zip(read, found.labels[held_out])])
    assert right >= 0.95
    assert solids.recognised(-np.ones((1, 1, 16, 16, 16), np.float32), found) == [(None, None)]


@given(pose=st.sampled_from(solids.POSES), seed=st.integers(0, 99))
def test_rotations_are_rotations(pose, seed):
    turn = solids.rotation(pose, Rng(seed))
    assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(turn), 1)
    assert np.allclose(solids.of_quaternion(1, 0, 0, 1) @ [1, 0, 0], [0, 1, 0])
    if pose != "tilted":                            # up goes up, or to the side
        assert np.isclose(turn[2, 2], pose == "upright", atol=1e-12)


VOLUMES = {"ball": 4 / 3 * np.pi * 0.72**3, "box": 1.2 * 0.9 * 0.9,
           "cylinder": np.pi * 0.36**2 * 1.7, "cone": np.pi * 0.6**2 * 1.5 / 3,
           "torus": 2 * np.pi**2 * 0.65 * 0.25**2, "plate": np.pi * 0.85**2 * 0.4,
           "cross": 0.44**2 * (1.6 + 1.6 - 0.44)}


@given(seed=st.integers(0, 50), shape=st.sampled_from(list(solids.SHAPES)))
def test_solids_have_their_volume(seed, shape):
    """In any pose and place, within what voxels can tell."""
    rng = Rng(seed)
    turn, centre = solids.rotation("tilted", rng), 0.2 * (rng.host_uniform((3,)) - 0.5)
    found = solids.voxels(solids.SHAPES[shape], turn, 0.85, centre, 24).mean() / 255 * 8
    assert found == pytest.approx(0.85**3 * VOLUMES[shape], rel=0.05)


def test_shapes_lie_within_the_unit_ball():
    points = 2.4 * Rng(3).host_uniform((200_000, 3)) - 1.2
    outside = points[np.linalg.norm(points, axis=1) > 1]
    for inside in solids.SHAPES.values():
        assert not inside(*outside.T).any()


@given(cloud=st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=2, max_size=40),
       size=st.sampled_from([1, 4, 9]), scale=st.floats(0.01, 100))
def test_clouds_fill_their_cube(cloud, size, scale):
    points = np.array(cloud)
    assume(np.ptp(points, 0).max() > 1e-3)
    grid = solids.occupied(points, size)
    where = np.argwhere(grid)
    assert 1 <= len(where) <= len(cloud) and set(np.unique(grid)) <= {0, 255}
    longest = np.ptp(points, 0).argmax()
    assert where[:, longest].min() == 0 and where[:, longest].max() == size - 1


def test_a_voxel_in_the_very_middle_is_no_matter():
    cube = -np.ones((9, 9, 9))
    cube[3:6, 3:6, 3:6] = 1
    assert np.isfinite(solids.moments(cube)).all()
    hazy = np.where(cube < 0, -0.9, cube)               # what a network makes of emptiness
    np.testing.assert_array_equal(solids.moments(hazy), solids.moments(cube))


def test_what_is_empty_has_no_shape():
    with pytest.raises(ConfigError, match="solid: there is nothing in it"):
        solids.moments(-np.ones((8, 8, 8)))
    with pytest.raises(ConfigError, match="at least 8 voxels a side, got 4"):
        media.open("solids", MediaConfig(size=4))
