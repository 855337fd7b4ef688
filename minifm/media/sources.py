"""Data by name or path: `open("glyphs")`, `open("photographs/")`, `open("data_batch_1.bin")`.

A name is of something that is made here, or comes with scikit-learn; a path is of a file or a
directory, whose files tell what it holds. What is changed or passed by on the way is said, and
counted in the Examples' description.
"""

from pathlib import Path

from minifm.errors import ConfigError, plural
from minifm.media import glyphs, moving, solids, tables, tones
from minifm.media.arrays import Arrays
from minifm.media.digits import digits
from minifm.media.files import Entry, gathered, listed_in, visible
from minifm.media.films import Animations, NumberedFrames, moves
from minifm.media.pictures import Pictures
from minifm.media.wanted import MediaConfig
from minifm.media.waves import Waves

# name -> a function of the MediaConfig
BUILT_IN = {"digits": digits, "glyphs": glyphs.glyphs, "tones": tones.tones,
            "moving-digits": moving.moving_digits, "moving-digit-pairs": moving.moving_digit_pairs,
            "solids": solids.solids}
# name -> read(values [N, C, *space], Examples) -> [(thing, manner)], None for what is not told: of
# what is made here, what it is can be read without a network.
READERS = {"glyphs": lambda pictures, examples: glyphs.recognised(pictures),
           "tones": tones.recognised, "moving-digits": moving.recognised,
           "solids": solids.recognised}
PATHS = "a path of pictures (or folders of them, by class), WAV files, GIFs, folders of numbered " \
    "frames, .npy files, or the files of MNIST or CIFAR"


def open(data, config=MediaConfig(), *, say=print):
    """The Examples of `data`, a name of BUILT_IN, or the path of a file or directory.

    say  is called with a line of text for what is passed by or changed

    Raises ConfigError for what is neither, or holds nothing; FormatError for a damaged file where
    it is the one that was named.
    """
    found = _opened(data, config, say)
    return found.only(config.only) if config.only else found


def _opened(data, config, say):
    if str(data) in BUILT_IN:
        return BUILT_IN[str(data)](config)
    path = Path(data).expanduser()
    if not path.exists():
        raise ConfigError(f"{data}: no such file or directory; expected {PATHS}, or one of "
                          f"{', '.join(BUILT_IN)}")
    for find, gather in ((tables.idx_files, tables.mnist), (tables.cifar_files, tables.cifar)):
        found = find(path)
        if found:
            return gather(path, found, config, say)
    reader = reader_of(path, config)(config)
    entries = listed_in(path, reader) if path.is_dir() else [Entry(str(path), (path,))]
    return gathered(path, entries, reader, config, say)


def reader_of(path, config):
    """The class of Reader for what is at `path`. Raises ConfigError where it holds nothing that is
    known, or several kinds of it and `config.kind` does not choose."""
    files = visible(path) if path.is_dir() else [path]
    kinds = {"picture": [f for f in files if f.suffix.lower() in Pictures.suffixes],
             "sound": [f for f in files if f.suffix.lower() in Waves.suffixes],
             "array": [f for f in files if f.suffix.lower() in Arrays.suffixes]}
    # A film is of pictures, and an array holds what the user says, where no other file does.
    held = {kind: len(found) for kind, found in kinds.items() if found}
    wanted = {"video": "picture", None: next(iter(held), None)}.get(config.kind, config.kind)
    if not held:
        raise ConfigError(f"{path}: nothing in it that is known; expected {PATHS}")
    if len(held) > 1 and config.kind is None:
        raise ConfigError(f"{path}: holds {' and '.join(map(plural, held.values(), held))}; choose "
                          "by --kind")
    if "array" in held and wanted not in held:
        return Arrays
    if wanted not in held:
        raise ConfigError(f"{path}: no file of a {config.kind} in it, but "
                          f"{' and '.join(map(plural, held.values(), held))}")
    if wanted != "picture":
        return {"sound": Waves, "array": Arrays}[wanted]
    return _reader_of_pictures(kinds["picture"], path.is_dir(), config)


def _reader_of_pictures(files, folder, config):
    """Pictures are films where they move, or where the user says so."""
    if config.kind == "picture":
        return Pictures
    if all(file.suffix.lower() in Animations.suffixes for file in files) and \
            (config.kind or config.frames or any(map(moves, files))):
        return Animations
    return NumberedFrames if folder and (config.kind or config.frames) else Pictures
