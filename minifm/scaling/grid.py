"""Which models are trained on how many tokens: a grid that fits the time there is.

The cells lie on IsoFLOP curves (approach 2 of Hoffmann et al. 2022): a few budgets of operations,
each a factor above the one before, and for each a few sizes about the one that a usual number of
tokens for each parameter would make best. What differs between cells is size and tokens, and the
learning rate by its one rule. The curves serve approach 3, the law, as well.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.models import GPTConfig
from minifm.scaling.law import LEAST_CELLS

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024,
          1280)
# For each parameter, about which the sizes of a curve lie. Large models are best with some 20
# (Hoffmann et al. 2022); those of a study are so small that few steps limit them more.
USUAL_TOKENS = 60
REPEATS = 4                 # more rounds through a text teach less than new text (Muennighoff 2023)
EXTRA = 0.5                 # seconds a cell takes beside its steps: its files
GROWTH = 1.1                # of the largest budget, from trial to trial


@dataclass(frozen=True)
class StudyConfig:
    """A study: how long it may take and what its cells have in common."""

    minutes: float = setting(
        25.0, "of training, for the whole grid on this machine; reading the text and timing a step "
        "of each size come before", above=0, most=1e5)
    budgets: int = setting(5, "IsoFLOP curves", least=1)
    spread: float = setting(2.0, "between the operations of one curve and the next", above=1)
    sizes: int = setting(5, "models on each curve", least=3)
    vocabulary: int = setting(512, "tokens of the vocabulary, which is learnt", least=257)
    length: int = setting(128, "tokens of a sequence", least=1)
    batch: int = setting(
        4, "sequences in one step; small ones, for little text gives few steps", least=1)
    learning_rate: float = setting(
        3e-3, "at its peak, of a model 64 wide; of others in inverse proportion to the width",
        above=0)
    least_steps: int = setting(60, "cells with fewer are left out", least=2)
    evaluate_batches: int = setting(48, "held-out batches that a cell's loss is the mean of",
                                    least=1)
    seed: int = setting(0, "of weights, data order and the bootstrap", least=0)

    __post_init__ = check


class Cell(NamedTuple):
    """One run of the grid.

    budget  the operations of its curve; `flops` are its own, by whole steps
    seconds how long it is going to take here
    """

    width: int
    budget: float
    parameters: int
    steps: int
    tokens: int
    flops: float
    learning_rate: float
    seconds: float

    @property
    def name(self):
        return f"width-{self.width}-steps-{self.steps}"


class Grid(NamedTuple):
    """The cells, from the cheapest curve to the dearest, and {reason: cells left out for it}."""

    cells: list
    left_out: dict

    @property
    def seconds(self):
        return sum(cell.seconds for cell in self.cells)


def shape(width, config):
    """The GPTConfig of the study's model of this width: a block and a head for each 32 of it, but
    at least two."""
    return GPTConfig(vocabulary=config.vocabulary, context=config.length, width=width,
                     layers=max(2, math.floor(width / 32 + 0.5)), heads=max(2, width // 32))


def learning_rate(width, config):
    """The one rule for all cells: in inverse proportion to the width (Yang et al. 2022). Each
    weight moves by about the learning rate, and what they move together grows with their number.
    """
    return config.learning_rate * 64 / width


def grid(config, text_tokens, seconds_of_a_step):
    """The Grid with the largest budgets that takes at most `config.minutes` here.

    text_tokens        how many tokens there are to train on
    seconds_of_a_step  seconds_of_a_step(GPTConfig): of one update of the weights, measured or known

    Raises ConfigError where no grid can be had in that time.
    """
    ladder = _Ladder(config, seconds_of_a_step)
    budget, found = 1e6, Grid([], {})
    while budget < 1e22:
        trial = _with_budget(budget, ladder, text_tokens)
        if trial.seconds > 60 * config.minutes:
            break
        if (_enough(trial), trial.seconds) >= (_enough(found), found.seconds):
            found = trial
        budget *= GROWTH
    if not _enough(found):
        left_out = "".join(f"; {n} left out: {what}" for what, n in found.left_out.items())
        raise ConfigError(
            f"minutes: {config.minutes:g} give {len(found.cells)} cells here{left_out}. A fit "
            f"needs {LEAST_CELLS}: more minutes, text, budgets or sizes, or fewer least_steps")
    return found


def _enough(found):
    return len(found.cells) >= LEAST_CELLS


class _Ladder:
    """The models by width, and how long a step of each takes, asked for once and only if needed."""

    def __init__(self, config, seconds_of_a_step):
        self.config, self.ask, self.known = config, seconds_of_a_step, {}
        self.models = {width: shape(width, config) for width in WIDTHS}

    def seconds(self, width):
        if width not in self.known:
            self.known[width] = self.ask(self.models[width])
        return self.known[width]

    def near(self, parameters, count):
        """The `count` widths whose models are nearest to so many parameters, ascending."""
        def distance(width):
            return abs(math.log(self.models[width].parameters / parameters))
        return sorted(sorted(WIDTHS, key=distance)[:count])

    def cell(self, width, budget):
        config, model = self.config, self.models[width]
        each, together = model.flops_per_token(config.length, training=True), \
            config.batch * config.length
        steps = max(1, round(budget / (each * together)))
        seconds = self.seconds(width) * (steps + config.evaluate_batches / 3) + EXTRA
        return Cell(width, budget, model.parameters, steps, steps * together,
                    steps * together * each, learning_rate(width, config), seconds)


def _with_budget(largest, ladder, text_tokens):
    """The Grid whose dearest curve takes `largest` operations a cell."""
    config, cells, left_out = ladder.config, [], {}
    for i in reversed(range(config.budgets)):
        budget = largest / config.spread**i
        usual = math.sqrt(budget / (6 * USUAL_TOKENS))      # C = 6 N D
        for width in ladder.near(usual, config.sizes):
            cell = ladder.cell(width, budget)
            if cell.steps < config.least_steps:
                reason = f"fewer than {config.least_steps} steps"
            elif cell.tokens > REPEATS * text_tokens:
                reason = f"more than {REPEATS} times through the text"
            else:
                cells.append(cell)
                continue
            left_out[reason] = left_out.get(reason, 0) + 1
    return Grid(cells, left_out)
