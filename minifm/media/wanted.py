"""What is wanted of the data: the shape of an example, how many are made, what is held out."""

from dataclasses import dataclass

from minifm.config import check, setting
from minifm.media.examples import KINDS


@dataclass(frozen=True)
class MediaConfig:
    """How files and makers become arrays of one shape. What is None follows from the data, and is
    said."""

    kind: str | None = setting(
        None, f"what a file of arrays holds, where its shape does not tell: {', '.join(KINDS)}",
        choices=tuple(KINDS))
    size: int | None = setting(
        None, "pixels or voxels of a side (default: that of the data; of pictures of several sizes "
        "the most frequent, at most 64)", least=1, most=4096)
    rate: int | None = setting(
        None, "samples of sound a second (default: the most frequent rate of the files; 4000 for "
        "what is made)", least=100, most=384_000)
    length: int = setting(1024, "samples of one sound", least=16, most=2**24)
    frames: int | None = setting(
        None, "frames of one film (default: 8); makes a folder of numbered pictures a film",
        least=1, most=4096)
    variations: int | None = setting(
        None, "how often each combination is made, each time anew (default: by the kind of data)",
        least=1)
    only: tuple[str, ...] = setting(
        (), "the classes that are taken of those that the data have (default: all)")
    held_out: float = setting(
        0.1, "fraction that training never sees, of combinations where examples are made, else of "
        "files; at least one", above=0, below=1)
    seed: int = setting(0, "decides what is made, and what is held out", least=0)

    __post_init__ = check
