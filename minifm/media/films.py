"""Films out of files: animated GIFs, or folders with a numbered picture for each frame.

A film is cut into clips of the same number of frames, one after the other; one that is shorter than
a clip ends in repetitions of its last frame. Both are counted.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from minifm.errors import FormatError
from minifm.media.examples import VIDEO
from minifm.media.files import Entry, visible
from minifm.media.pictures import Pictures, header, is_grey, opened, squared

FRAMES = 8
_NUMBER = re.compile(r"\d+")


class Animations(Pictures):
    """GIFs, and WebP that moves."""

    kind, suffixes = VIDEO, (".gif", ".webp")

    def look(self, entry):
        """A palette is of its frame: each must be seen to know that all are grey."""
        with opened(entry.files[0]) as image:
            found = header(image)
            return found._replace(grey=all(colourless(frame) for frame in frames_of(image)))

    def settle(self, headers):
        super().settle(headers)
        self.facts["frames"] = self.config.frames or FRAMES

    def read(self, entry):
        path, frames, done = entry.files[0], [], Counter()
        with opened(path) as image:
            for shown in frames_of(image):
                frame, what = squared(shown, self.side, self.grey, path)
                frames.append(frame)
                done |= what        # once for the film
        self.converted.update(done)
        return self.clips(frames)

    def clips(self, frames):
        """[[C, F, H, W]] of a list of [C, H, W]."""
        length = self.facts["frames"]
        if len(frames) < length:
            self.converted["last frame repeated"] += 1
            frames = frames + frames[-1:] * (length - len(frames))
        left = len(frames) % length
        if left:
            self.skipped["frames after the last clip"] += left
        return [np.stack(frames[start : start + length], 1)
                for start in range(0, len(frames) - left, length)]


class NumberedFrames(Animations):
    """Folders of pictures, each one film, its frames in the order of the last number in a name."""

    suffixes = Pictures.suffixes

    def entries(self, directory):
        folders = defaultdict(list)
        for path in visible(directory):
            if path.suffix.lower() in self.suffixes:
                folders[path.parent].append(path)
        return [Entry(str(folder), tuple(paths)) for folder, paths in folders.items()]

    def look(self, entry):
        headers = []
        for path in ordered(entry):
            with opened(path) as image:
                headers.append(header(image))
        return headers[0]._replace(grey=all(found.grey for found in headers))

    def read(self, entry):
        frames, done = [], Counter()
        for path in ordered(entry):
            with opened(path) as image:
                frame, what = squared(image, self.side, self.grey, path)
            frames.append(frame)
            done |= what
        self.converted.update(done)
        return self.clips(frames)


def moves(path):
    """Whether a file has several frames; not, where it cannot be read."""
    try:
        with opened(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except FormatError:
        return False


def frames_of(image):
    """The pillow image at each of its frames in turn, the same object."""
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        yield image


def colourless(image):
    """Whether a frame has no colours, by mode, palette or its pixels."""
    if is_grey(image):
        return True
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def ordered(entry):
    """The frames of a folder by number. Raises FormatError where that is not one order."""
    numbers = {}
    for path in entry.files:
        found = _NUMBER.findall(Path(path).stem)
        if not found:
            raise FormatError(path, None, "expected a number in the name of a film's frame")
        if int(found[-1]) in numbers:
            raise FormatError(path, None, f"has the number of {numbers[int(found[-1])].name}")
        numbers[int(found[-1])] = path
    return [numbers[number] for number in sorted(numbers)]
