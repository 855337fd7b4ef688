"""Films that need no camera: handwritten digits of scikit-learn that move and bounce.

    "a 3 moves up and right"   "a 3 and a 7"

`moving-digits` has one digit, and the manner is the way it sets out; `moving-digit-pairs` has two,
each moving as it likes, and the pair is which two. Held-out pairs are of handwriting that training
never saw.
"""

import numpy as np

from minifm.errors import ConfigError
from minifm.media.digits import digits
from minifm.media.examples import VIDEO
from minifm.media.pairs import Maker

WAYS = {"right": (0, 1), "down and right": (1, 1), "down": (1, 0), "down and left": (1, -1),
        "left": (0, -1), "up and left": (-1, -1), "up": (-1, 0), "up and right": (-1, 1)}
SIDE = 8                        # pixels of a digit
FRAMES = 8


def moving_digits(config):
    """Examples [N, 1, F, size, size] of one digit, one pixel further in each frame; the classes
    are the digits. 8 frames of 16 × 16 unless `config` says otherwise."""
    pairs = tuple((str(digit), way) for digit in range(10) for way in WAYS)

    def film(digit, way, rng, images, frames, size):
        return path_of(images[digit], WAYS[way], rng, frames, size), f"a {digit} moves {way}"

    return _made("moving-digits", pairs, film, config, 16, 16)


def moving_digit_pairs(config):
    """Examples [N, 1, F, size, size] of two digits, which may pass before each other; the classes
    are the first, the smaller of the two. 8 frames of 24 × 24 unless `config` says otherwise."""
    pairs = tuple((str(one), str(other)) for one in range(10) for other in range(one, 10))

    def film(one, other, rng, images, frames, size):
        ways = [list(WAYS.values())[i] for i in rng.child("ways").integers(0, len(WAYS), (2,))]
        films = [path_of(images[digit], way, rng.child(i), frames, size)
                 for i, (digit, way) in enumerate(zip((one, other), ways))]
        return np.maximum(*films), f"a {one} and a {other}"

    return _made("moving-digit-pairs", pairs, film, config, 24, 24)


def _made(name, pairs, film, config, size, variations):
    """Examples of film(thing, manner, rng, images, frames, size) -> (array [F, size, size],
    caption); `size` and `variations` where `config` does not say."""
    frames, size = config.frames or FRAMES, config.size or size
    if size <= SIDE:
        raise ConfigError(f"size: a digit of {SIDE} pixels cannot move in {size}; give more")
    written = _handwriting()

    def draw(thing, manner, rng, held_out):
        array, caption = film(thing, manner, rng, written["held_out" if held_out else "training"],
                              frames, size)
        return array[None], caption

    return Maker(name, VIDEO, pairs, draw, variations,
                 {"size": size, "frames": frames}).make(config)


def _handwriting():
    """{part: {digit: uint8 [n, 8, 8]}}, ink 255 on 0."""
    found = digits()
    return {part: {found.classes[label]: np.round(
        (found.take(where[found.labels[where] == label])[:, 0] + 1) * 127.5).astype(np.uint8)
        for label in range(len(found.classes))} for part, where in found.parts.items()}


def path_of(images, way, rng, frames, size):
    """uint8 [F, size, size]: one of the digit's `images` [n, 8, 8] by `rng`, from a place by `rng`,
    going `way` (rows, columns) by a pixel a frame and back where it meets an edge."""
    of_image, *of_place = rng.host_uniform((3,)).tolist()
    image = images[int(of_image * len(images))]
    film = np.zeros((frames, size, size), np.uint8)
    places = [bounced(part, step, frames, size - SIDE) for part, step in zip(of_place, way)]
    for frame, row, column in zip(film, *places):
        frame[row : row + SIDE, column : column + SIDE] = image
    return film


def bounced(part, step, frames, room):
    """Places 0 … room in each frame of what goes `step` a frame (-1, 0 or 1) and turns at either
    end. `part` in [0, 1) says where it begins: anywhere whence at least half of the film, or of
    the room, lies before it turns, for else it would not go where it is said to."""
    ahead = min(room, frames // 2)
    low, high = {1: (0, room - ahead), 0: (0, room), -1: (ahead, room)}[step]
    start = low + int(part * (high - low + 1))
    along = np.mod(start + step * np.arange(frames), 2 * room)      # a saw of period 2 room,
    return (room - np.abs(along - room)).tolist()                   # folded in the middle


# -- what is in a film -----------------------------------------------------------------------------


def middle(frame):
    """(row, column) of the ink's centre in a frame [H, W] of values in -1 … 1; None without ink."""
    ink = np.clip((np.asarray(frame, np.float64) + 1) / 2, 0, 1)
    ink = np.where(ink > 0.25, ink, 0)                  # a network's black is not all black
    if not ink.sum():
        return None
    rows, columns = np.indices(ink.shape)
    return (rows * ink).sum() / ink.sum(), (columns * ink).sum() / ink.sum()


def way(film):
    """The name of the way, of WAYS, in which the ink of a film [F, H, W] sets out, by the first
    half of its frames, after which it may have turned; None where it stays, or a frame has none."""
    places = [middle(frame) for frame in film[: len(film) // 2 + 1]]
    if len(places) < 2 or None in places:
        return None
    moved = np.subtract(places[-1], places[0]) / (len(places) - 1)
    steps = tuple(np.sign(np.where(np.abs(moved) < 0.5, 0, moved)).astype(int).tolist())
    return next((name for name, step in WAYS.items() if step == steps), None)


def recognised(films, examples):
    """(digit, way) of each of `films` [N, 1, F, H, W] of one digit, values in -1 … 1: of all
    handwriting that training sees, the digit that, put where it fits each frame best, differs least
    from them, in squares; and the way in which these places move, None unless each is at most a
    pixel from the one before. No network has a part in it."""
    written = {name: images for name, images in _handwriting()["training"].items()}
    names = np.repeat(list(written), [len(images) for images in written.values()])
    known = np.concatenate(list(written.values())).reshape(len(names), -1) / np.float32(255)
    return [_read(film, names, known) for film in films[:, 0]]


def _read(film, names, known):
    """(digit, way) of a film [F, H, W]; `known` is ink [K, 64] of digits called `names`."""
    ink = np.clip((film + 1) / 2, 0, 1)
    windows = np.lib.stride_tricks.sliding_window_view(ink, (SIDE, SIDE), (1, 2))   # [F, h, w, …]
    F, h, w = windows.shape[:3]
    # Σ (a - b)² over the frame is Σ a² - 2 Σ a b + Σ b², of which the first is always the same
    differs = (known ** 2).sum(1) - 2 * windows.reshape(F, h * w, -1) @ known.T     # [F, h w, K]
    winner = differs.min(1).sum(0).argmin()
    places = np.stack(np.divmod(differs[:, :, winner].argmin(1), w), 1)             # [F, 2]
    smooth = np.abs(np.diff(places, axis=0)).max(initial=0) <= 1
    step = np.sign(places[F // 2] - places[0])
    return str(names[winner]), next((name for name, ahead in WAYS.items()
                                     if smooth and ahead == tuple(step)), None)
