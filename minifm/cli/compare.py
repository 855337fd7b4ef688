"""`minifm compare`: an autoencoder, a VAE, a GAN and a diffusion model of one size learn the same
pictures with as many operations, and what they make is measured.
"""

import html
import sys
from pathlib import Path

from minifm.atomic import atomic_file
from minifm.cli import program
from minifm.cli.arguments import add_fields, build, part_of
from minifm.cli.report import HEAD
from minifm.errors import ConfigError
from minifm.picture import MISSING, can_draw, picture
from minifm.training.signals import Interrupted

EXAMPLE = """\
example:
  minifm compare --data digits --out runs/compare
  minifm compare --data glyphs --size 16 --minutes 20 --out runs/compare-glyphs
  minifm compare --resume --out runs/compare
"""
# column of the tables -> (key, how it is shown)
COLUMNS = {
    "Fréchet distance": ("frechet_distance", "{:.3f}"), "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"), "recognised": ("recognised", "{:.1%}"),
    "nearest": ("nearest", "{:.3f}"), "near": ("near", "{:.1%}"), "copies": ("copies", "{:.1%}"),
    "ms a sample": ("seconds_of_a_sample", "{:.2f}")}
BESIDE, WIDE = 2, 6.0        # panels of samples.png beside each other; inches of one
LEAD = "An autoencoder, a VAE, a GAN and a diffusion model of one size, on the same pictures, " \
    "with as many operations each."
NOTES = """\
<p>The Fréchet distance, precision and recall are in the features of a classifier that has learnt
from the same {training:,} pictures; it is right on {accuracy:.1%} of {held_out:,} real held-out
ones. Each figure is the mean over parts of {size} pictures, compared with all pictures to train on,
and so is that of real ones: distances of other numbers of pictures are others. Recognised: those
that {judge} sees as the class asked for. Nearest: the root mean square to the nearest picture to
train on, the median; near: the part nearer than {threshold:.3f}, as 5 % of real held-out ones are;
copies: nearer than half of the nearest real one.</p>
<p>All have about as many weights, all that training adjusts counted, and learnt with {flops:.3g}
floating-point operations each. The autoencoder and the VAE make pictures of latents from the
Gaussian that the latents of a class have; of latents from N(0, 1), a VAE makes pictures of no class
that is asked for. Neither has an adversarial or perceptual loss.</p>
"""


def arguments(parser, argv):
    from minifm.comparison.study import CompareConfig
    from minifm.training.denoising import ExamplesConfig
    parser.add_argument("--out", metavar="DIRECTORY", required=True,
                        help="the directory of the comparison: runs, results, report, pictures")
    parser.add_argument("--resume", action="store_true",
                        help="go on with the comparison in --out; if it is finished, report again")
    add_fields(parser, CompareConfig, "the comparison")
    add_fields(parser, ExamplesConfig, "pictures, with classes")


def run(args):
    study = the_study(args)
    for line in plan(study):
        print(line)
    print(flush=True)
    try:
        found = study.run(say=lambda line: print(line, flush=True))
    except Interrupted as stop:
        print(f"minifm: {stop}; go on with: {program()} compare --resume --out {study.directory}",
              file=sys.stderr)
        return stop.exit_code
    print()
    for line in table(found):
        print(line)
    drawn = draw(found, study.directory)
    write_page(found, study.directory, drawn)
    print(f"\nreport      {study.directory / 'report.html'}, {study.directory / 'report.json'}")
    print(f"pictures    {study.directory / 'samples.png'}" if drawn else
          f"no samples.png: {MISSING}")
    return 0


def the_study(args):
    """The study that the flags describe, begun or taken up."""
    from minifm.comparison.study import CompareConfig, begin, take_up
    from minifm.training.denoising import ExamplesConfig
    said, say = vars(args), lambda line: print(line, file=sys.stderr, flush=True)
    own = part_of(CompareConfig, said) | part_of(ExamplesConfig, said)
    if args.resume:
        if own:
            raise ConfigError(f"{', '.join(sorted(own))}: a comparison that is resumed has its "
                              "own; leave it out")
        return take_up(args.out, say=say)
    if "minutes" in own and "steps" in own:
        raise ConfigError("steps: so many of them, or --minutes; leave one of them out")
    return begin(args.out, build(ExamplesConfig, said), build(CompareConfig, said), say=say)


# -- on the screen ---------------------------------------------------------------------------------


def plan(study):
    """What is going to happen, a line a part."""
    examples, (H, W) = study.examples, study.examples.shape[1:]
    yield (f"pictures    {examples.description['name']}: {examples.count:,} of {H} × {W} in "
           f"{len(examples.classes)} classes; {len(examples.parts['held_out']):,} held out")
    yield f"budget      {study.flops:.3g} floating-point operations each"
    for each in study.contestants:
        yield (f"  {each.name:<12}{study.steps[each.name]:>7,} steps of {study.config.batch}, "
               f"widths {' '.join(map(str, each.shape['widths']))}")


def rows_of(found):
    """[(row, its contestant's line or None)] of a report, real pictures first."""
    return [(found["reference"], None)] + [(row, line) for line in found["contestants"]
                                           for row in line["rows"]]


def cells(row, line):
    """{column: text} of a row."""
    shown = {}
    for column, (key, form) in COLUMNS.items():
        value = row.get(key)
        scale = 1000 if key == "seconds_of_a_sample" else 1
        shown[column] = "–" if value is None else form.format(value * scale)
    shown["training"] = "–" if line is None else \
        f"{line['step']:,} steps, {line['training_seconds']:.0f} s"
    shown["weights"] = "–" if line is None else f"{line['parameters']:,}"
    return shown


def table(found):
    """The results, a line a row."""
    rows = [(row["name"], cells(row, line)) for row, line in rows_of(found)]
    names = list(rows[0][1])
    wide = {name: max(len(name), *(len(shown[name]) for _, shown in rows)) for name in names}
    yield f"{'':<16}" + "  ".join(f"{name:>{wide[name]}}" for name in names)
    for name, shown in rows:
        yield f"{name:<16}" + "  ".join(f"{shown[column]:>{wide[column]}}" for column in names)
    yield (f"judged by a classifier that is right on {found['judge_accuracy']:.1%} of real "
           f"held-out pictures, {found['size']} at a time; recognised by {found['recognised_by']}")


# -- in files --------------------------------------------------------------------------------------


def draw(found, directory):
    """samples.png: what each has made, beside each other. False, and nothing, without matplotlib.
    """
    if not can_draw():
        return False
    import matplotlib.image
    rows = [row for row, _ in rows_of(found)]
    seen = [matplotlib.image.imread(Path(directory) / row["pictures"]) for row in rows]
    lines = -(-len(seen) // BESIDE)
    height = lines * (WIDE * seen[0].shape[0] / seen[0].shape[1] + 0.5)
    with picture(Path(directory) / "samples.png", BESIDE * WIDE, height) as figure:
        panels = figure.subplots(lines, BESIDE).reshape(-1)
        for axes, row, image in zip(panels, rows, seen):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"{row['name']}    Fréchet distance {row['frechet_distance']:.3f}")
        for axes in panels:
            axes.axis("off")
    return True


def write_page(found, directory, drawn):
    """report.html."""
    rows, body = rows_of(found), []
    body.append('<h2>What is measured</h2>\n<div style="overflow-x: auto"><table>')
    names = list(cells(*rows[0]))
    body.append("<tr><th></th>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>")
    for row, line in rows:
        ours = ' class="ours"' if row["name"] == "diffusion" else ""
        body.append(f"<tr{ours}><th>{html.escape(row['name'])}</th>" + "".join(
            f"<td>{text}</td>" for text in cells(row, line).values()) + "</tr>")
    body.append("</table></div>")
    body.append(NOTES.format(
        training=found["training"], accuracy=found["judge_accuracy"], held_out=found["held_out"],
        size=found["size"], judge=html.escape(found["recognised_by"]),
        threshold=found["near_threshold"], flops=found["flops"]))
    body.append("<h2>What they make</h2>\n<p>A column for each class asked for.</p>")
    for row, _ in rows:
        name = html.escape(row["name"])
        body.append(f'<h3>{name}</h3>\n<img class="pixels" src="{html.escape(row["pictures"])}" '
                    f'alt="Pictures: {name}">')
    for line in found["contestants"]:
        name = html.escape(line["contestant"])
        body.append(f'<h3>Learning: {name}</h3>\n<img src="{name}/loss.png" alt="Loss of {name}">'
                    if drawn else "")
    title = f"Four ways to make {found['data']}"
    page = HEAD.format(title=html.escape(title), lead=LEAD)
    with atomic_file(Path(directory) / "report.html") as file:
        file.write((page + "\n".join(body) + "\n</html>\n").encode("utf-8"))
