"""A picture of a report of `minifm bench`: the roofline (Williams, Waterman, Patterson 2009), the
part of the limit that is reached, and the ratio to other libraries.

One dot is one case. Bars are medians over the cases of a kind, such as "gemm NN".
"""

import itertools
import math
import statistics
from collections import Counter

from minifm.errors import ConfigError
from minifm.picture import COLOURS, FAINT, INK, picture

OTHERS = {"numpy": ("#8C8C8C", "o", "NumPy"), "PyTorch": ("#D55E00", "D", "PyTorch"),
          "llama.cpp": ("#7F3C8D", "^", "llama.cpp")}
FIRST_WORDS = ("gemm", "call", "decode", "prefill")  # whose cases' first words are kinds: NN, dit
BAR = 0.30              # inches that a bar takes
MANY_DECADES = 100      # ratio of the ends of an axis on which decades alone have labels
LABELS = 44             # that a roofline has room for


def draw(report, path):
    """Draw `report` (Bench.report) into the file `path`, in the format that its name ends in.
    Raises ConfigError where nothing in it was timed against a limit."""
    rows = shown(report["rows"])
    if not rows:
        raise ConfigError("--plot: there is no figure to draw: no case was timed against a limit")
    kinds = by_kind(rows)
    dots = [row for row in rows if row["flops"] and row["bytes"] and row["limit"] != "copy"]
    colours = colours_of(dots + rows)           # the roofline's groups first: there colours tell
    roof, bars = 6.4 if dots else 0, 1.3 + BAR * len(kinds)
    with picture(path, 15, roof + bars + 0.9) as figure:
        parts = figure.subfigures(2 if dots else 1, 1, squeeze=False,
                                  height_ratios=[roof, bars] if dots else None)[:, 0]
        figure.suptitle(title(report, rows[0]), fontsize=12, x=0.01, ha="left")
        left, right = parts[-1].subplots(1, 2, sharey=True)
        if dots:
            draw_roofline(parts[0].subplots(), dots, report["ceilings"], colours)
        draw_fractions(left, kinds, colours)
        draw_ratios(right, kinds)


def colours_of(rows):
    """{group: colour}, in the order of the rows; no two alike while COLOURS last."""
    return dict(zip(dict.fromkeys(row["group"] for row in rows), itertools.cycle(COLOURS)))


def shown(rows):
    """The rows to draw: those of one backend, the last that has any, which reached a rate."""
    ours = [row for row in rows if row["fraction"] is not None and not row["problem"]]
    return [row for row in ours if row["backend"] == ours[-1]["backend"]]


def kind_of(row):
    """"gemm NN", "softmax backward", "decode int8": what a case shares a bar with."""
    kind = [row["group"]]
    if row["group"] in FIRST_WORDS:
        kind.append(row["name"].partition(" ")[0])
    elif row["phase"] in ("forward", "backward"):
        kind.append(row["phase"])
    few = row["group"] == "gemm" and row["limit"] == "read"
    return " ".join(kind) + (", few rows" if few else "")


def by_kind(rows):
    """{what stands beside the bar: its rows}."""
    kinds = {}
    for row in rows:
        kinds.setdefault(kind_of(row), []).append(row)
    return {_described(kind, found): found for kind, found in kinds.items()}


def _described(kind, rows):
    if len(rows) > 1:
        return f"{kind} ({len(rows)})"
    row, phase = rows[0], rows[0]["phase"]
    title = f"{row['group']} {row['name']}"
    return f"{title} {phase}" if phase in ("forward", "backward") and phase in kind else title


def title(report, row):
    machine = report["machine"]
    return (f"minifm {machine['minifm']}, {machine['backends'][row['backend']]}, on "
            f"{machine['processor']}")


# -- roofline --------------------------------------------------------------------------------------


def draw_roofline(axes, rows, ceilings, colours):
    """FLOP/s over FLOPs per byte, under the lines that no kernel can cross."""
    backend = rows[0]["backend"]
    fma, read = ceilings["FMA"][backend]["rate"], ceilings["read"]["rate"]
    xs = [row["flops"] / row["bytes"] for row in rows]
    ys = [row["flops"] / row["median"] for row in rows]
    low, high = min(*xs, fma / read) / 2.2, max(*xs, fma / read) * 2.2
    bottom = min(*ys, read * low) / 2
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, fma * 2.2),
             xlabel="floating-point operations for each byte that must move",
             ylabel="FLOP/s")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y / 1e9:g} G")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.grid(True)
    ridge, copy = fma / read, ceilings["copy"]["rate"]
    roof = [(low, read * low), (ridge, fma), (high, fma)]
    copied = [(low, copy * low), (fma / copy, fma)]
    axes.plot(*zip(*roof), color=INK, lw=1.6, zorder=2)
    axes.plot(*zip(*copied), color=INK, lw=1, ls=(0, (4, 3)), zorder=2)
    for fraction in (0.5, 0.25):
        axes.plot([low, ridge, high], [fraction * read * low, fraction * fma, fraction * fma],
                  color=FAINT, lw=0.8, zorder=1)
        axes.annotate(f"{fraction:.0%}", (high, fraction * fma), (4, 0), fontsize=8,
                      textcoords="offset points", va="center", color="#888888")
    axes.annotate(f"multiply-adds in registers: {fma / 1e9:.0f} GFLOP/s", (high, fma), (-4, 5),
                  textcoords="offset points", ha="right", fontsize=9)
    for x, y, row in zip(xs, ys, rows):
        axes.scatter(x, y, s=26, color=colours[row["group"]], zorder=3, lw=0.4, edgecolor="white")
    for group in dict.fromkeys(row["group"] for row in rows):
        axes.scatter([], [], s=40, color=colours[group], label=group)
    axes.plot([], [], color=INK, lw=1.6, label=f"memory: {read / 1e9:.1f} GB/s read")
    axes.plot([], [], color=INK, lw=1, ls=(0, (4, 3)), label=f"{copy / 1e9:.1f} GB/s copied")
    axes.legend(loc="upper left", bbox_to_anchor=(1.05, 1), fontsize=9)
    axes.figure.get_figure(root=True).canvas.draw()     # places must be known to place labels
    place_labels(axes, [(x, y, row["name"], colours[row["group"]])
                        for x, y, row in zip(xs, ys, rows)], [roof, copied])


def place_labels(axes, points, lines):
    """Write each name beside its dot where nothing else stands: groups of few dots first, and of
    a group the lowest dots, because those are worth a look. A name that finds no place is left
    out. `lines` [[(x, y), …], …] too are kept clear."""
    renderer, to_pixels = axes.figure.canvas.get_renderer(), axes.transData.transform
    room = 4 * axes.figure.dpi / 72
    dots = [to_pixels(point[:2]) for point in points]
    taken = [(x - room, y - room, x + room, y + room) for x, y in dots]
    frame = axes.get_window_extent(renderer)
    taken.append(axes.get_legend().get_window_extent(renderer).extents)
    for line in lines:
        for (x, y), (to_x, to_y) in itertools.pairwise(to_pixels(line)):
            n = max(2, int(math.hypot(to_x - x, to_y - y) / room))
            taken += [(x + (to_x - x) * i / n, y + (to_y - y) * i / n) * 2 for i in range(n)]
    placed = 0
    crowd = Counter(colour for *_, colour in points)
    for i in sorted(range(len(points)), key=lambda i: (crowd[points[i][3]], dots[i][1])):
        x, y, name, colour = points[i]
        for dx, dy in _offsets():
            far = math.hypot(dx, dy) > 14
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", fontsize=8, color=colour,
                ha="left" if dx > 0 else "right" if dx < 0 else "center", va="center", zorder=4,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 1,
                            "shrinkB": 3} if far else None)
            words = _words_box(text, renderer)
            if _inside(words, frame.extents) and not any(
                    _overlap(words, other) for j, other in enumerate(taken) if j != i):
                taken.append(words)
                placed += 1
                break
            text.remove()
        if placed == LABELS:
            return


def _words_box(text, renderer):
    """Where the words of an annotation stand, without its line."""
    from matplotlib.text import Text
    text.update_positions(renderer)
    box = Text.get_window_extent(text, renderer)
    return box.x0, box.y0, box.x1, box.y1


def _offsets():
    """Places to try, in points, the nearest first."""
    for radius in (8, 18, 30):
        for degrees in (0, 180, -30, 30, 150, 210, -60, 60, 120, 240, 90, 270):
            angle = math.radians(degrees)
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            yield (0 if abs(dx) < 1 else dx), dy


def _inside(a, b):
    return b[0] < a[0] and b[1] < a[1] and a[2] < b[2] and a[3] < b[3]


def _overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# -- bars ------------------------------------------------------------------------------------------


def draw_fractions(axes, kinds, colours):
    """How much of its limit each kind reaches: a bar for the median, a dot for each case."""
    for place, rows in enumerate(kinds.values()):
        parts = [row["fraction"] for row in rows]
        colour = colours[rows[0]["group"]]
        axes.barh(place, statistics.median(parts), 0.62, color=colour, alpha=0.55, lw=0, zorder=2)
        axes.scatter(parts, [place] * len(parts), s=12, color=colour, zorder=3, lw=0.3,
                     edgecolor="white")
        axes.annotate(f"{statistics.median(parts):.0%} of {rows[0]['limit']}", (1, place), (6, 0),
                      xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8,
                      va="center", annotation_clip=False)
    axes.axvline(1, color=INK, lw=1.2, zorder=1)
    most = max(1.0, *(row["fraction"] for rows in kinds.values() for row in rows))
    axes.set(xlim=(0, 1.03 * most), xlabel="part of the limit", ylim=(len(kinds) - 0.4, -0.6))
    axes.set_yticks(range(len(kinds)), list(kinds), fontsize=9)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)


def draw_ratios(axes, kinds):
    """How many times as fast as the others: a mark for each case, a large one for the median."""
    found = [name for name in OTHERS
             if any(name in row["versus"] for rows in kinds.values() for row in rows)]
    axes.tick_params(axis="y", length=0)
    every = []
    for place, rows in enumerate(kinds.values()):
        for i, name in enumerate(found):
            colour, marker, _ = OTHERS[name]
            y = place + 0.5 * ((i + 0.5) / len(found) - 0.5)
            ratios = [row["versus"][name]["median"] for row in rows if name in row["versus"]]
            if not ratios:
                continue
            every += ratios
            axes.scatter(ratios, [y] * len(ratios), s=9, color=colour, alpha=0.6, lw=0, zorder=2)
            axes.scatter(statistics.median(ratios), y, s=42, color=colour, marker=marker, zorder=3,
                         lw=0.5, edgecolor="white")
            if len(rows) == 1:
                versus = rows[0]["versus"][name]
                axes.plot([versus["low"], versus["high"]], [y, y], color=colour, lw=1, zorder=2)
    axes.axvline(1, color=INK, lw=1.2, zorder=1)
    axes.set(xlabel="times as fast as (right of the line minifm is faster)")
    if not found:
        axes.set_xticks([])
        axes.set_xlabel("nothing was timed beside it")
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g} ×")
    between = "25" if max(every) / min(every) <= MANY_DECADES else ""
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}".strip("0.")[:1] in [*between]
                                   else "")
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.grid(True, axis="x", which="both")
    for name in found:
        colour, marker, label = OTHERS[name]
        axes.scatter([], [], s=42, color=colour, marker=marker, label=label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=9)
