"""How a model's parameters are called in the files of the ecosystem."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: its name there, and whether it lies transposed there."""

    name: str
    transposed: bool = False
