"""Scores as pictures, PNG: the confusion matrix, and how scores change while a model learns.

Both return False, and draw nothing, where matplotlib is not installed (`pip install minifm[viz]`).
"""

import itertools

import numpy as np

from minifm.atomic import atomic_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")        # told apart without colours, too
INK, FAINT = "#222222", "#C8C8C8"
WRITTEN = 24            # classes up to which each cell has its count written in it


def draw_confusion(scores, path, title="Confusion matrix"):
    """`scores` is a ClassScores. Colours are fractions of a row, so that a rare class is seen as
    well as a frequent one; numbers are counts."""
    side = max(3.2, 0.46 * len(scores.labels) + 1.4)
    figure = _figure(side + 1.8, side)
    if figure is None:
        return False
    axes, K = figure.subplots(), len(scores.labels)
    fractions = scores.matrix / np.maximum(scores.matrix.sum(1, keepdims=True), 1)
    shown = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    names = [_as_it_stands(label) for label in scores.labels]
    axes.set_xticks(range(K), names,
                    **(slanted if max(map(len, scores.labels)) > 3 else {}))
    axes.set_yticks(range(K), [f"{label} ({gold:,})" for label, gold
                               in zip(names, scores.gold)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled (examples)")
    figure.suptitle(f"{title}: accuracy {scores.accuracy:.1%}", fontsize=11)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    if K <= WRITTEN:
        for i, j in itertools.product(range(K), range(K)):
            if scores.matrix[i, j]:
                axes.text(j, i, f"{scores.matrix[i, j]:,}", ha="center", va="center", fontsize=8,
                          color="white" if fractions[i, j] > 0.55 else INK)
    bar = figure.colorbar(shown, ax=axes, format=lambda x, _: f"{x:.0%}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.set_label("of the row", fontsize=9)
    return _saved(figure, path)


def draw_learning(curves, path, *, xlabel="step", ylabel="held-out score", levels=None,
                  logarithmic=False):
    """`curves` {name: [(x, score), …]}, and `levels` {name: score}, such as those of baselines,
    as lines across. Scores are fractions. `logarithmic`: x, marked where there are points."""
    figure = _figure(8, 4.6)
    if figure is None:
        return False
    axes = figure.subplots()
    for (name, points), colour, marker in zip(curves.items(), itertools.cycle(COLOURS),
                                              itertools.cycle(MARKERS)):
        axes.plot(*zip(*points), color=colour, marker=marker, markersize=4, linewidth=1.4,
                  label=name)
    for (name, level), style in zip((levels or {}).items(),
                                    itertools.cycle(["--", ":", "-.", (0, (1, 3))])):
        axes.axhline(level, color="#666666", linewidth=1, linestyle=style, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
    if logarithmic:
        axes.set_xscale("log")
        marks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(marks, [f"{x:,}" for x in marks])
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _saved(figure, path)


def _as_it_stands(label):
    """A label as matplotlib draws it letter for letter: no formula, no half of a character."""
    return label.replace("$", r"\$").encode("utf-8", "replace").decode()


def _figure(width, height):
    """A new figure that draws to files, or None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(figure, path):
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight", pad_inches=0.12)
    return True
