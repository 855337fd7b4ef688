"""What a run tells: a progress bar, metrics.jsonl, and a picture of the loss."""

import json
import os
import sys
import time

from minifm.atomic import atomic_file
from minifm.errors import FormatError
from minifm.picture import COLOURS, can_draw, picture


class Metrics:
    """metrics.jsonl: one JSON object a line, each with its `step`.

    A line is flushed as soon as it is written. `rewind` forgets what came after a checkpoint, so
    that the file of a resumed run equals that of one that was never interrupted (but for the
    figures of speed).
    """

    def __init__(self, path):
        self.path = path

    def append(self, line):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def sync(self):
        """Wait until the lines are on the disk: a checkpoint counts on them."""
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())

    def read(self):
        """All lines, as dictionaries. A last line that a kill cut short is left out; any other
        line that is not JSON raises FormatError."""
        if not self.path.exists():
            return []
        try:
            texts, lines = self.path.read_text(encoding="utf-8").split("\n"), []
        except (OSError, ValueError) as problem:
            raise FormatError(self.path, None, f"cannot be read: {problem}") from None
        for number, text in enumerate(texts[:-1], 1):       # what follows the last newline is cut
            try:
                line = json.loads(text)
                line["step"] + 0
            except (ValueError, TypeError, KeyError, RecursionError):
                raise FormatError(self.path, f"line {number}",
                                  "expected a JSON object with a step") from None
            lines.append(line)
        return lines

    def rewind(self, step, lines=None):
        """Keep of `lines` (default: the file's own) those up to `step`, all or nothing."""
        kept = [line for line in (self.read() if lines is None else lines)
                if line["step"] <= step]
        with atomic_file(self.path) as file:
            file.writelines(f"{json.dumps(line)}\n".encode() for line in kept)


class Progress:
    """How far a run is (`shown`): a bar on a terminal; in a file or a pipe, LINES lines in all.
    And a way to say something above it."""

    LINES = 20

    def __init__(self, start, steps, shown):
        from tqdm import tqdm
        terminal = sys.stderr.isatty()
        self.step, self.steps, self.in_lines = start, steps, shown and not terminal
        self.bar = tqdm(total=steps, initial=start, disable=not (shown and terminal), unit="step",
                        dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def advance(self, **figures):
        before, self.step = self.step, self.step + 1
        self.bar.set_postfix(figures, refresh=False)
        self.bar.update()
        parts = [step * self.LINES // self.steps for step in (before, self.step)]
        if self.in_lines and parts[0] < parts[1]:
            told = ", ".join(f"{name} {value}" for name, value in figures.items())
            self.say(f"step {self.step:,} of {self.steps:,}: {told}")

    def say(self, message):
        """One line on standard error, shown or not: it is said because it matters."""
        self.bar.write(message, file=sys.stderr)


class Speed:
    """What is read, and floating-point operations, by the second, over the time spent in steps.

    ceiling   FLOP/s of a perfect step, to which `utilisation` is the ratio; None: not reported
    reads     what is counted: "token"
    """

    def __init__(self, ceiling=None, reads="token"):
        self.ceiling, self.reads = ceiling, reads
        self.reset()

    def reset(self):
        self.seconds = self.tokens = self.flops = 0

    def __enter__(self):
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception):
        self.seconds += time.perf_counter() - self._started

    def count(self, tokens, flops):
        self.tokens += tokens
        self.flops += flops

    def figures(self):
        """{"tokens_per_second": …, "utilisation": …} since the last `reset`."""
        seconds = max(self.seconds, 1e-9)
        found = {f"{self.reads}s_per_second": round(self.tokens / seconds, 1)}
        if self.ceiling and self.flops:
            found["utilisation"] = round(self.flops / seconds / self.ceiling, 4)
        return found


def seconds_of(lines, reads="token"):
    """Seconds of all steps, from the lines of metrics.jsonl: what was read, by its speed."""
    seconds = before = 0
    for line in lines:
        if f"{reads}s_per_second" in line:
            seconds += (line[f"{reads}s"] - before) / line[f"{reads}s_per_second"]
            before = line[f"{reads}s"]
    return seconds


def plot_losses(lines, path, scale="nats"):
    """Draw the training and held-out loss of `lines`, in `scale`, over the steps, as a PNG.

    Returns False, and draws nothing, where matplotlib is not installed.
    """
    if not can_draw():
        return False
    with picture(path, 8, 5) as figure:
        axes = figure.subplots()
        for (key, label, style), colour in zip(
                (("loss", "training", "-"), ("held_out_loss", "held out", "o-")), COLOURS):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points), style, color=colour, label=label, linewidth=1,
                          markersize=3)
                axes.legend()
        axes.set(xlabel="step", ylabel=f"loss in {scale}")
        axes.grid(True)
    return True
