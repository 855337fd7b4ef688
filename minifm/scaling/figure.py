"""The picture of a study: IsoFLOP curves, the law beside what was measured, and the best sizes."""

import numpy as np

from minifm.picture import FAINT, INK, can_draw, picture
from minifm.scaling.isoflop import curves, power_law
from minifm.scaling.law import percentile_interval

ACCENT = "#D55E00"


def draw(findings, path):
    """Draw Findings (spend.py) into the file `path`. Returns False, and draws nothing, where
    matplotlib is not installed."""
    if not can_draw():
        return False
    from matplotlib import colormaps
    found = curves(findings.rows)
    with picture(path, 16, 5.2) as figure:
        colours = colormaps["viridis"](np.linspace(0.05, 0.85, len(found)))
        left, middle, right = figure.subplots(1, 3)
        draw_curves(left, found, findings, colours)
        draw_law(middle, findings, colormaps["plasma"])
        draw_best(right, found, findings, colours)
    return True


def draw_curves(axes, found, findings, colours):
    """Loss over size, a colour for each budget; parabolas, their lowest points, and the law."""
    for curve, colour in zip(found, colours):
        axes.plot(curve.parameters, curve.loss, "o", color=colour, markersize=5,
                  label=f"{curve.budget:.1e} FLOPs")
        N = np.geomspace(curve.parameters.min() / 1.15, curve.parameters.max() * 1.15, 100)
        tokens = findings.costs.tokens_for_flops(curve.budget)(N)
        axes.plot(N, findings.law(N, tokens), "--", color=colour, linewidth=1)
        if curve.parabola is not None:
            axes.plot(N, np.polyval(curve.parabola, np.log(N)), "-", color=colour, linewidth=1.2)
        if curve.best:
            axes.plot(curve.best, np.polyval(curve.parabola, np.log(curve.best)), "*",
                      color=ACCENT, markersize=12, markeredgecolor="white", zorder=4)
    axes.plot([], [], "-", color=INK, linewidth=1.2, label="parabola in log N")
    axes.plot([], [], "--", color=INK, linewidth=1, label="the law")
    axes.plot([], [], "*", color=ACCENT, markersize=10, label="lowest point")
    axes.set(title="IsoFLOP curves", xlabel="parameters N", ylabel="held-out loss, nats a token",
             xscale="log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))          # room for the legend
    _finish(axes, axes.xaxis, columns=2)


def draw_law(axes, findings, colours):
    """Loss over tokens, a colour for each size, with the law's line for it."""
    sizes = sorted({row["parameters"] for row in findings.rows})
    for size, colour in zip(sizes, colours(np.linspace(0.05, 0.85, len(sizes)))):
        runs = [row for row in findings.rows if row["parameters"] == size]
        D = np.array([row["tokens"] for row in runs], np.float64)
        axes.plot(D, [row["loss"] for row in runs], "o", color=colour, markersize=5,
                  label=f"{_short(size)}")
        line = np.geomspace(D.min() / 1.4, D.max() * 1.4, 100)
        axes.plot(line, findings.law(size, line), "-", color=colour, linewidth=1)
    law = findings.law
    axes.set(xlabel="tokens D", xscale="log",
             title=rf"$L = {law.E:.3g} + {law.A:.3g} / N^{{{law.alpha:.2f}}} + {law.B:.3g} / "
                   rf"D^{{{law.beta:.2f}}}$")
    _finish(axes, axes.xaxis, title="parameters N", columns=2)


def draw_best(axes, found, findings, colours):
    """The best size over the budget: the curves' lowest points, their power law, and the law's own
    line with what the bootstrap leaves open."""
    budgets = np.array([curve.budget for curve in found])
    C = np.geomspace(budgets.min() / 2, budgets.max() * 100, 60)
    per = findings.costs.per
    tracks = np.array([law.optimum(C, per)[0] for law in findings.laws])
    low, high = np.array([percentile_interval(track) for track in tracks.T]).T
    axes.fill_between(C, low, high, color=ACCENT, alpha=0.15, linewidth=0,
                      label="90 % of the bootstrap")
    axes.plot(C, findings.law.optimum(C, per)[0], "--", color=ACCENT, linewidth=1.5,
              label=f"the law: N ∝ $C^{{{findings.law.exponent:.2f}}}$")
    for curve, colour in zip(found, colours):
        if curve.best:
            axes.plot(curve.budget, curve.best, "*", color=colour, markersize=12, zorder=4)
    power = power_law(found)
    if power:
        axes.plot(C, power[0] * C ** power[1], "-", color=INK, linewidth=1.2,
                  label=f"lowest points: N ∝ $C^{{{power[1]:.2f}}}$")
    axes.plot(C, np.sqrt(C / (6 * 20)), ":", color="#888888", linewidth=1.2,
              label="20 tokens a parameter")
    known = np.array([row["parameters"] for row in findings.rows])
    reached = power[0] * C[-1] ** power[1] if power else known.max()
    axes.set_ylim(known.min() / 3, 3 * max(known.max(), reached))   # a law not known fills the rest
    axes.axvspan(budgets.min(), budgets.max(), color=FAINT, alpha=0.35, linewidth=0, zorder=0)
    axes.set(title="The best size for a budget (grey: measured)", xlabel="FLOPs C",
             ylabel="parameters N", xscale="log", yscale="log")
    _finish(axes, axes.yaxis)


def _finish(axes, counts, title=None, columns=1):
    """Grid and legend; the axis `counts`, of parameters or tokens, is labelled as people say it."""
    from matplotlib.ticker import LogLocator, NullFormatter
    counts.set_major_locator(LogLocator(subs=(1, 2, 5)))
    counts.set_major_formatter(lambda value, _: _short(value))
    counts.set_minor_formatter(NullFormatter())
    axes.grid(True)
    axes.legend(fontsize=8.5, title=title, ncols=columns)


def _short(number):
    """17 k, 2.5 M"""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"
