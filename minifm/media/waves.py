"""Sound out of WAV files: integers of 8, 16, 24 and 32 bits and floats, as one channel at one rate.

RIFF is a list of chunks, each with a name, a length, and so many bytes; `fmt ` says what `data` is.
Python's own `wave` reads no floats, and takes a damaged length for a short file. Channels are
averaged, other rates are resampled, and all that is counted; silence is left out.
"""

import math
import struct
from collections import Counter
from typing import NamedTuple

import numpy as np

from minifm.errors import FormatError
from minifm.media.examples import SOUND
from minifm.media.files import Reader

INTEGERS, FLOATS, EXTENSIBLE = 1, 3, 0xFFFE
OTHERS = {2: "ADPCM", 6: "A-law", 7: "µ-law", 0x11: "IMA ADPCM", 0x50: "MPEG", 0x55: "MP3"}
SILENT = 1e-3                   # -60 dB: what never exceeds this is no sound
UNKNOWN_LENGTH = 0xFFFFFFFF     # that programs write who do not know it yet
LOBES = 16                      # zero crossings of the resampling filter on either side
BLOCK = 4096                    # samples that are resampled at once


class Format(NamedTuple):
    coding: int                 # INTEGERS or FLOATS
    channels: int
    rate: int                   # samples of each channel a second
    bits: int


class Waves(Reader):
    kind, suffixes = SOUND, (".wav", ".wave")

    def look(self, entry):
        return read_chunks(entry.files[0])[0]

    def settle(self, headers):
        counts = Counter(found.rate for found in headers)
        self.rate = self.config.rate or max(counts, key=lambda rate: (counts[rate], -rate))
        self.facts = {"rate": self.rate, "length": self.config.length}

    def read(self, entry):
        """[[1, T]]: windows one after the other. What is shorter than T is filled with zeros."""
        path, T = entry.files[0], self.config.length
        wave, rate = read_wave(path)
        self.converted.update(self._changes(wave, rate))
        wave = np.clip(resampled(wave.mean(1, dtype=np.float64), rate, self.rate), -1, 1)
        if len(wave) < T:
            self.converted["filled up with zeros"] += 1
            wave = np.pad(wave, (0, T - len(wave)))
        self.skipped["samples after the last window"] += len(wave) % T
        windows = wave[: len(wave) // T * T].reshape(-1, 1, T).astype(np.float32)
        loud = np.abs(windows).max((1, 2)) > SILENT
        self.skipped["silent windows"] += int((~loud).sum())
        self.skipped += Counter()           # which drops what has not occurred
        return list(windows[loud])

    def _changes(self, wave, rate):
        if wave.shape[1] > 1:
            yield f"{wave.shape[1]} channels to one"
        if rate != self.rate:
            yield f"{rate} Hz to {self.rate} Hz"
        if len(wave) and np.abs(wave).max() > 1:
            yield "clipped to -1 … 1"


def read_wave(path):
    """(float32 [T, channels], rate) of a WAV file; integers in -1 … 1, floats as they stand.

    Raises FormatError for a file that is damaged, empty, of another coding, or has numbers in it
    that are none.
    """
    form, data = read_chunks(path)
    frame = form.channels * form.bits // 8
    if len(data) < frame:
        raise FormatError(path, "data", "there is no sample in it")
    samples = _samples(form, data[: len(data) // frame * frame]).reshape(-1, form.channels)
    wrong = ~np.isfinite(samples)
    if wrong.any():
        place, channel = map(int, np.argwhere(wrong)[0])
        raise FormatError(path, f"sample {place:,} ({place / form.rate:.3f} s)",
                          f"{samples[place, channel]} in channel {channel}, and "
                          f"{int(wrong.sum()) - 1:,} more that are no numbers")
    return samples, form.rate


def _samples(form, data):
    """float32 [T · channels] of the bytes, little-endian; 8 bits are unsigned, others signed."""
    if form.coding == FLOATS:
        with np.errstate(over="ignore"):        # what no float32 holds becomes inf, and is refused
            return np.frombuffer(data, f"<f{form.bits // 8}").astype(np.float32)
    if form.bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    width = form.bits // 8
    wide = np.zeros((len(data) // width, 4), np.uint8)      # the low bytes of an int32 stay zero
    wide[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)


def read_chunks(path):
    """(Format, the bytes of `data`) of a WAV file. Raises FormatError."""
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise FormatError(path, None, f"cannot be read ({error.strerror})") from error
    if bytes(content[:4]) != b"RIFF" or bytes(content[8:12]) != b"WAVE":
        raise FormatError(path, None, "not a WAV file: it does not begin with RIFF and WAVE")
    form, place = None, 12
    while place + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        place += 8
        chunk = content[place : place + length]
        if name == b"data" and form is not None:
            if len(chunk) < length != UNKNOWN_LENGTH:
                raise FormatError(path, "data", f"cut short: {length:,} bytes are announced, "
                                  f"{len(chunk):,} are there")
            return form, chunk
        if name == b"fmt ":
            form = read_format(path, chunk)
        place += length + length % 2                        # chunks begin at even places
    missing = "data" if form else "fmt "
    raise FormatError(path, None, f"damaged, or cut short: no chunk {missing!r} in its place")


def read_format(path, chunk):
    """The Format in a chunk. Raises FormatError for one that is not read here."""
    if len(chunk) < 16:
        raise FormatError(path, "fmt ", f"expected at least 16 bytes, got {len(chunk)}")
    coding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if coding == EXTENSIBLE and len(chunk) >= 26:
        coding = struct.unpack_from("<H", chunk, 24)[0]     # its identifier begins with the coding
    known = {INTEGERS: (8, 16, 24, 32), FLOATS: (32, 64)}
    if coding not in known or bits not in known[coding]:
        name = {INTEGERS: "integers", FLOATS: "floats"}.get(coding) or \
            OTHERS.get(coding, f"coding {coding}")
        raise FormatError(path, "fmt ", f"{name} of {bits} bits; expected integers of 8, 16, 24 or "
                          "32 or floats of 32 or 64")
    if not 1 <= channels <= 64 or not 100 <= rate <= 384_000:
        raise FormatError(path, "fmt ", f"{channels} channels at {rate} Hz; expected 1 … 64 at 100 "
                          "… 384,000 Hz")
    return Format(coding, channels, rate, bits)


def resampled(wave, rate, wanted):
    """`wave` [T] at `rate` samples a second, as float64 [⌈T wanted / rate⌉] at `wanted`.

    Each new sample is the sum of those about it under a sinc with a Hann window, which ends at the
    lower of the two halves of a rate, so that nothing folds back (Smith, Digital Audio Resampling).
    """
    if rate == wanted:
        return wave
    scale = min(1.0, wanted / rate)                 # of the filter's band, in halves of `rate`
    reach = math.ceil(LOBES / scale)                # samples on either side
    padded = np.pad(wave, (reach, reach + 1))
    found = np.empty(math.ceil(len(wave) * wanted / rate))
    steps = np.arange(1 - reach, reach + 1)
    for start in range(0, len(found), BLOCK):
        places = np.arange(start, min(start + BLOCK, len(found))) * (rate / wanted)
        first = places.astype(np.int64)
        distance = scale * (steps - (places - first)[:, None])              # [B, 2 reach]
        window = np.cos(np.pi / 2 * np.clip(distance / LOBES, -1, 1)) ** 2
        weights = scale * np.sinc(distance) * window
        found[start : start + len(first)] = np.sum(
            weights * padded[first[:, None] + steps + reach], 1)
    return found
