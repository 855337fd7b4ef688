"""What is seen of arrays in -1 … 1, and the files that they are written to.

A view is a picture of each example: a sound's wave, a film's frames side by side, a solid from
three sides. A grid is one picture of many. PNG and WAV files take the standard library alone, GIF
files take pillow.
"""

import io
import struct
import wave
import zlib

import numpy as np

from minifm.atomic import atomic_file
from minifm.errors import ConfigError

SEEN = 64               # pixels that a side is enlarged to, about, where it has fewer
GAP = 2                 # pixels between the pictures of a grid
PAPER = 255
WAVE = (64, 256)        # height and width of the picture of a sound
FRAME = 0.1             # seconds of a frame of a film


# -- numbers and bytes -----------------------------------------------------------------------------


def to_bytes(x):
    """uint8 of numbers in -1 … 1; those outside are clipped.

    >>> to_bytes(np.array([-1.0, 0.0, 1.0, 7.0])).tolist()
    [0, 128, 255, 255]
    """
    return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def from_bytes(x):
    """float32 in -1 … 1 of uint8, which `to_bytes` brings back."""
    return x.astype(np.float32) / np.float32(127.5) - np.float32(1)


# -- views: [B, C, *space] -> uint8 [B, H, W, 1 or 3] ----------------------------------------------


def of_pictures(values):
    """[B, C, H, W]; of two channels, or of more than three, the first is seen."""
    seen = np.moveaxis(to_bytes(values), 1, -1)
    return seen if seen.shape[-1] in (1, 3) else seen[..., :1]


def of_films(values):
    """[B, C, F, H, W]: the frames from left to right."""
    B, C, F, H, W = values.shape
    return of_pictures(np.moveaxis(values, 2, 3).reshape(B, C, H, F * W))


def of_solids(values):
    """[B, C, X, Y, Z]: seen from front, side and above (z is up), what is farther darker."""
    full = np.clip((values[:, 0] + 1) / 2, 0, 1)                                    # [B, X, Y, Z]
    front, side, above = (seen_along(full, axis) for axis in (2, 1, 3))             # [B, *plane]
    upright = [np.flip(np.swapaxes(x, 1, 2), 1) for x in (front, side)] + [above]
    height = max(x.shape[1] for x in upright)
    padded = [np.pad(x, ((0, 0), (0, height - x.shape[1]), (0, 0))) for x in upright]
    return of_pictures(2 * np.concatenate(padded, 2)[:, None] - 1)


def seen_along(full, axis, farthest=0.35):
    """Light from voxels [B, X, Y, Z], each of which hides, as far as it is full (0 … 1), what is
    behind it on the axis, and shines less the deeper it lies, down to `farthest`. The eye is at
    the end of the axis."""
    near_first = np.flip(np.moveaxis(full, axis, 1), 1)
    hidden = np.cumprod(1 - near_first, 1)                      # what still comes through each
    through = np.concatenate([np.ones_like(hidden[:, :1]), hidden[:, :-1]], 1)
    light = np.linspace(1, farthest, full.shape[axis], dtype=full.dtype)[:, None, None]
    return (light * near_first * through).sum(1)


def of_sounds(values):
    """[B, C, T]: the wave of the first channel, dark on light."""
    height, width = WAVE
    first = np.clip(values[:, 0], -1, 1)                                        # [B, T]
    pieces = np.array_split(np.arange(first.shape[1]), min(width, first.shape[1]))
    seen = np.full((len(first), height, len(pieces), 1), PAPER, np.uint8)
    rows = np.round((1 - first) / 2 * (height - 1)).astype(int)                 # 0 is loudest, up
    for column, piece in enumerate(pieces):
        part = rows[:, piece[0] : piece[-1] + 2]        # up to the next, so that lines join
        for example, (low, high) in enumerate(zip(part.min(1), part.max(1))):
            seen[example, low : high + 1, column] = 40
    return seen


def grid(pictures, columns=None):
    """One picture, uint8 [H, W, C], of `pictures` [B, h, w, C] in rows of `columns` (default: so
    that it is about square); small ones are enlarged, pixel by pixel."""
    B, h, w, C = pictures.shape
    columns = columns or max(1, min(B, round((B * h / w) ** 0.5)))
    scale = max(1, SEEN // h)
    large = pictures.repeat(scale, 1).repeat(scale, 2)
    rows, (h, w) = -(-B // columns), large.shape[1:3]
    page = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, C), PAPER, np.uint8)
    for place, picture in enumerate(large):
        y, x = (GAP + n * (side + GAP) for n, side in zip(divmod(place, columns), (h, w)))
        page[y : y + h, x : x + w] = picture
    return page


# -- files -----------------------------------------------------------------------------------------


def write_png(path, picture):
    """Write uint8 [H, W, 1 or 3], grey or RGB, as a PNG file (ISO 15948)."""
    with atomic_file(path) as file:
        file.write(png(picture))


def png(picture):
    """The bytes of a PNG file."""
    H, W, C = picture.shape
    rows = np.zeros((H, 1 + W * C), np.uint8)           # each row begins with its filter: 0, none
    rows[:, 1:] = picture.reshape(H, W * C)
    header = struct.pack(">IIBBBBB", W, H, 8, {1: 0, 3: 2}[C], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + \
        _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")


def _chunk(name, contents):
    return struct.pack(">I", len(contents)) + name + contents + \
        struct.pack(">I", zlib.crc32(name + contents))


def write_gif(path, frames, seconds=FRAME):
    """Write pictures [F, H, W, 1 or 3], uint8, as a GIF that begins again and again; `seconds` of
    each frame, one number or F. Raises ConfigError without pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(f"{path}: a GIF takes pillow (pip install 'minifm[viz]')") from None
    images = [Image.fromarray(np.ascontiguousarray(frame.squeeze(-1) if frame.shape[-1] == 1
                                                   else frame)) for frame in frames]
    duration = np.round(1000 * np.broadcast_to(seconds, len(images))).astype(int).tolist()
    with atomic_file(path) as file:
        images[0].save(file, format="GIF", save_all=True, append_images=images[1:], loop=0,
                       duration=duration, disposal=1)


def write_films(path, values, rate=None):
    """Films [B, C, F, H, W] beside each other in one GIF."""
    frames = np.moveaxis(values, 2, 0)                                      # [F, B, C, H, W]
    write_gif(path, np.stack([grid(of_pictures(frame)) for frame in frames]))


def write_wave(path, values, rate=None):
    """Sounds [B, C, T] one after the other, a tenth of a second apart, 16 bits a sample."""
    if rate is None:
        raise ConfigError(f"{path}: how many samples a second the sound has is not known")
    B, C, T = values.shape
    apart = np.pad(np.clip(values, -1, 1), ((0, 0), (0, 0), (0, round(rate / 10) * (B > 1))))
    samples = np.round(np.moveaxis(apart, 1, 2).reshape(-1, C) * 32767).astype("<i2")
    contents = io.BytesIO()
    with wave.open(contents, "wb") as file:
        file.setnchannels(C)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    with atomic_file(path) as file:
        file.write(contents.getvalue())


def write_array(path, values, rate=None):
    """[B, C, *space] as a .npy file, float32."""
    with atomic_file(path) as file:
        np.save(file, np.asarray(values, np.float32))
