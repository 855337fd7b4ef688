"""Scores as pictures: the confusion matrix, how scores change while a model learns, and what
examples in a prompt are worth.

All return False, and draw nothing, where matplotlib is not installed.
"""

import itertools

import numpy as np

from minifm.picture import COLOURS, INK, can_draw, picture

MARKERS = ("o", "s", "^", "D", "v", "P")        # told apart without colours, too
WRITTEN = 24            # classes up to which each cell has its count written in it


def draw_confusion(scores, path, title="Confusion matrix"):
    """`scores` is a ClassScores. Colours are fractions of a row, so that a rare class is seen as
    well as a frequent one; numbers are counts."""
    if not can_draw():
        return False
    side = max(3.2, 0.46 * len(scores.labels) + 1.4)
    fractions = scores.matrix / np.maximum(scores.matrix.sum(1, keepdims=True), 1)
    with picture(path, side + 1.8, side) as figure:
        figure.suptitle(f"{title}: accuracy {scores.accuracy:.1%}", fontsize=11)
        axes = figure.subplots()
        shown = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        _name_classes(axes, scores)
        if len(scores.labels) <= WRITTEN:
            for (i, j), count in np.ndenumerate(scores.matrix):
                if count:
                    axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=8,
                              color="white" if fractions[i, j] > 0.55 else INK)
        bar = figure.colorbar(shown, ax=axes, format=lambda x, _: f"{x:.0%}")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8)
        bar.set_label("of the row", fontsize=9)
    return True


def _name_classes(axes, scores):
    """What rows and columns stand for, and white lines between the cells."""
    K, names = len(scores.labels), [_as_it_stands(label) for label in scores.labels]
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(K), names, **(slanted if max(map(len, scores.labels)) > 3 else {}))
    axes.set_yticks(range(K), [f"{label} ({gold:,})" for label, gold in zip(names, scores.gold)])
    axes.set(xlabel="predicted", ylabel="labelled (examples)")
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)


def draw_learning(curves, path, *, xlabel="step", ylabel="held-out score", levels=None,
                  bands=None, logarithmic=False):
    """`curves` {name: [(x, score), …]}, and `levels` {name: score}, such as those of baselines,
    as lines across; `bands` {name of a curve: [(x, low, high), …]}, about it. Scores are fractions.
    `logarithmic`: x, marked where there are points."""
    if not can_draw():
        return False
    with picture(path, 8, 4.6) as figure:
        axes = figure.subplots()
        for (name, points), colour, marker in zip(curves.items(), itertools.cycle(COLOURS),
                                                  itertools.cycle(MARKERS)):
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=4, linewidth=1.4,
                      label=name)
            if bands:
                axes.fill_between(*zip(*bands[name]), color=colour, alpha=0.15, linewidth=0)
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
        axes.grid(True, axis="y")
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
    return True


def draw_in_context(found, path):
    """A panel for each family of rules, `found` as training/incontext.py gives it: accuracy by the
    number of examples with its 95 % interval, chance, and what shuffled answers leave of it."""
    if not can_draw():
        return False
    with picture(path, 2.6 * len(found), 3.2) as figure:
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (name, family) in zip(panels, found.items()):
            shots = range(len(family["accuracy"]))
            low, high = zip(*family["interval"])
            axes.fill_between(shots, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
            axes.plot(shots, family["accuracy"], color=COLOURS[0], marker="o", markersize=3,
                      linewidth=1.4, label="accuracy on held-out rules")
            axes.plot(shots[-1], family["shuffled"], color=COLOURS[1], marker="X", markersize=7,
                      linestyle="none", clip_on=False, label="the examples' answers shuffled")
            axes.plot(shots, family["chance"], color="#666666", linestyle="--", linewidth=1,
                      label="chance")
            axes.set(title=name, ylim=(0, 1.02), xlabel="examples in the prompt")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
            axes.grid(True, axis="y")
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=9,
                      loc="outside lower center", ncols=3)
    return True


def _as_it_stands(label):
    """A label as matplotlib draws it letter for letter: no formula, no half of a character."""
    return label.replace("$", r"\$").encode("utf-8", "replace").decode()
