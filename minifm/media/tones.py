"""Sounds that need no recording: tones, chords and sweeps, with captions, and the pitch of a wave.

    "square tone A3"   "A3 minor chord"   "sweep up from A3 to A4"

The thing is a note, C3 … B4 in equal temperament about A4 = 440 Hz; the manner is a timbre, a chord
over the note or a sweep of an octave from it. Timbres are sums of sines below half the rate, so
that nothing folds back: the pitch that the caption names is the one that is in the sound.
"""

from functools import lru_cache

import numpy as np

from minifm.errors import ConfigError
from minifm.media.examples import SOUND
from minifm.media.pairs import Maker
from minifm.rng import Rng

NAMES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
LOWEST = 48                     # C3, as MIDI counts semitones; A4 is 69
NOTES = {f"{NAMES[n % 12]} {n // 12 - 1}": n for n in range(LOWEST, LOWEST + 24)}
# Timbre: the amplitude of the k-th harmonic, from the Fourier series of the wave.
TIMBRES = {
    "sine": lambda k: float(k == 1),
    "triangle": lambda k: (k % 2) * (-1) ** (k // 2) / k**2,
    "square": lambda k: (k % 2) / k,
    "sawtooth": lambda k: 1 / k,
}
CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7)}       # semitones above the note
SWEEPS = {"up": 12, "down": -12}                        # semitones from beginning to end
LOUDNESS = (0.4, 0.9)           # the largest value of a wave, drawn between these
RATE = 4000                     # samples a second
HIGHEST = max(NOTES.values()) + 12      # the semitone that the highest sweep reaches
MANNERS = (*(f"{timbre} tone" for timbre in TIMBRES), *(f"{chord} chord" for chord in CHORDS),
           *(f"sweep {way}" for way in SWEEPS))


def tones(config):
    """Examples [N, 1, T] of `config.length` samples at `config.rate` (default: 4000) a second;
    the classes are the notes. Raises ConfigError where the rate cannot carry the highest note."""
    rate, length = config.rate or RATE, config.length
    if rate < 2 * frequency(HIGHEST):
        raise ConfigError(f"rate: the highest sweep ends at {frequency(HIGHEST):.0f} Hz, which "
                          f"takes more than twice as many samples a second, got {rate}")

    def draw(note, manner, rng, held_out):
        part, *phases = rng.host_uniform((4,)).tolist()
        wave = sound(NOTES[note], manner, phases, length, rate)
        loudness = LOUDNESS[0] + part * (LOUDNESS[1] - LOUDNESS[0])
        return (loudness * wave / np.abs(wave).max()).astype(np.float32)[None], \
            caption(note, manner)

    return Maker("tones", SOUND, tuple((note, manner) for note in NOTES for manner in MANNERS),
                 draw, 16, {"rate": rate, "length": length}).make(config)


def caption(note, manner):
    """
    >>> caption("A 3", "sine tone"), caption("A 3", "minor chord"), caption("A 3", "sweep up")
    ('sine tone A 3', 'A 3 minor chord', 'sweep up from A 3 to A 4')
    """
    way = manner.removeprefix("sweep ")
    if way in SWEEPS:
        octave = int(note[-1]) + SWEEPS[way] // 12
        return f"{manner} from {note} to {note[:-1]}{octave}"
    return f"{note} {manner}" if manner.endswith("chord") else f"{manner} {note}"


def sound(semitone, manner, phases, length, rate):
    """A wave of `length` samples, float64, of any loudness; `phases`, three numbers in turns, say
    where its tones begin."""
    what, way = manner.split(" ")
    time = np.arange(length) / rate                     # seconds
    if what in CHORDS:
        return sum(tone(frequency(semitone + step), TIMBRES["triangle"], time, rate, phase)
                   for step, phase in zip(CHORDS[what], phases))
    if what in TIMBRES:
        return tone(frequency(semitone), TIMBRES[what], time, rate, phases[0])
    # A frequency that grows by the same factor each second: f(t) = f e^(g t), so that the phase,
    # its integral, is f (e^(g t) - 1) / g.
    growth = SWEEPS[way] / 12 * np.log(2) / (length / rate)
    turns = frequency(semitone) * np.expm1(growth * time) / growth
    return np.sin(2 * np.pi * (turns + phases[0]))


def tone(frequency, timbre, time, rate, phase):
    """The sum of the timbre's harmonics below half the rate, at `time` [T] in seconds; `phase` in
    turns of the first."""
    turns = frequency * time + phase
    count = int(np.ceil(rate / 2 / frequency)) - 1
    return sum(timbre(k) * np.sin(2 * np.pi * k * turns) for k in range(1, count + 1) if timbre(k))


def frequency(semitone):
    """Hz of a MIDI semitone: equal temperament about A4 = 69 = 440 Hz."""
    return 440.0 * 2 ** ((semitone - 69) / 12)


# -- what is in a wave -----------------------------------------------------------------------------


def pitch(wave, rate, lowest=60.0, highest=1000.0):
    """Hz of a periodic `wave` [T] at `rate` samples a second; None for silence and noise.

    The period is the shortest at which the wave's difference from itself, shifted, is least: YIN's
    cumulative mean normalised difference (de Cheveigné & Kawahara 2002, eq. 8), refined by a
    parabola. Needs two periods of `lowest`, or looks for none so low.
    """
    wave = np.asarray(wave, np.float64)
    longest = min(int(rate / lowest) + 1, len(wave) // 2)
    shortest = max(2, int(rate / highest))
    if longest <= shortest or not np.any(wave):
        return None
    kept = len(wave) - longest
    difference = np.array([np.sum((wave[:kept] - wave[lag : lag + kept]) ** 2)
                           for lag in range(longest + 1)])
    running = np.cumsum(difference)
    normalised = difference * np.arange(longest + 1) / np.where(running > 0, running, 1)
    normalised[0] = 1.0
    lag = _first_dip(normalised, shortest)
    return None if lag is None else rate / lag


def _first_dip(normalised, shortest, threshold=0.15):
    """The lag, between samples, of the first minimum below the threshold; None without one."""
    below = np.flatnonzero(normalised[shortest:-1] < threshold)
    if not len(below):
        return None
    lag = shortest + below[0]
    while lag + 2 < len(normalised) and normalised[lag + 1] < normalised[lag]:
        lag += 1
    before, here, after = normalised[lag - 1 : lag + 2]
    curve = before - 2 * here + after
    return lag + (0.5 * (before - after) / curve if curve > 0 else 0.0)


def nearest_note(hertz):
    """(name of the nearest of NOTES, cents above it)."""
    semitone = 69 + 12 * np.log2(hertz / 440.0)
    name = min(NOTES, key=lambda note: abs(NOTES[note] - semitone))
    return name, 100 * (semitone - NOTES[name])


def recognised(waves, examples):
    """(note, manner) of each of `waves` [N, 1, T], values in -1 … 1: of every note in every manner,
    the one whose spectrum is most alike. No network has a part in it. A sweep up and the same
    sweep down differ by when a frequency sounds, so that parts of the wave have a say, too."""
    names, known = known_spectra(waves.shape[-1], examples.description["rate"])
    return [names[place] for place in (spectra(waves[:, 0]) @ known.T).argmax(1)]


@lru_cache(maxsize=2)
def known_spectra(length, rate, phases=4):
    """([(note, manner)], their spectra [K, S]), each as often as there are `phases`."""
    drawn = Rng(0).child("phases").host_uniform((phases, 3)).tolist()
    names = [(note, manner) for note in NOTES for manner in MANNERS for _ in drawn]
    waves = [sound(NOTES[note], manner, turns, length, rate)
             for note in NOTES for manner in MANNERS for turns in drawn]
    return names, spectra(np.stack(waves))


def spectra(waves, parts=4):
    """[N, S] of waves [N, T]: amplitudes of the frequencies of the whole, which tell semitones
    apart, then those of its `parts`, which tell earlier from later; either of length 1."""
    def unit(x):
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    def amplitudes(x):
        return np.abs(np.fft.rfft(x * np.hanning(x.shape[-1])))

    N, T = waves.shape
    centred = waves - waves.mean(1, keepdims=True)
    divided = amplitudes(centred[:, : T // parts * parts].reshape(N, parts, -1))
    return np.concatenate([unit(amplitudes(centred)), unit(divided.reshape(N, -1))], 1)
