"""Pictures by matplotlib, where that is installed: one look for all, drawn to files alone.

    if can_draw():
        with picture("loss.png", 8, 5) as figure:
            figure.subplots().plot(steps, losses)

Nothing here opens a window or changes how a program that imports minifm draws.
"""

from contextlib import contextmanager

from minifm.atomic import atomic_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#A5AA99",
           "#994F00", "#117733", "#332288", "#882255", "#44AA99", "#999933", "#661100",
           "#6699CC")                              # tell apart without red against green
INK, FAINT, GRID = "#222222", "#C8C8C8", "#EEEEEE"
STYLE = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
         "ytick.color": INK, "axes.edgecolor": FAINT, "axes.spines.top": False,
         "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left",
         "axes.axisbelow": True, "grid.color": GRID, "legend.frameon": False,
         "svg.fonttype": "none"}
MISSING = "matplotlib is not installed (the extra viz brings it: pip install 'minifm[viz]')"


def can_draw():
    """Whether matplotlib is there. Where it is not, say MISSING."""
    try:
        import matplotlib
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def picture(path, width, height):
    """A block that draws on a Figure of `width` × `height` inches. At its end the file appears, in
    the format that the name `path` ends in; where the block raises, none does."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_file(path) as file:
            figure.savefig(file, format=str(path).rpartition(".")[2], dpi=120,
                           bbox_inches="tight", pad_inches=0.12)
