"""`minifm scaling`: many small models, and from them how large and how long the next one should be.

A grid of sizes and token budgets is trained; the law of Hoffmann et al. 2022 is fitted to what the
cells reach; a table says how to spend a larger budget.
"""

import sys
from pathlib import Path

from minifm.cli import program
from minifm.cli.arguments import add_fields, build, part_of
from minifm.cli.plan import number
from minifm.errors import ConfigError
from minifm.picture import MISSING
from minifm.training.signals import Interrupted

EXAMPLE = """\
example:
  minifm scaling --out runs/scaling
  minifm scaling --data book.txt --minutes 10 --budgets 4 --out runs/book-scaling
  minifm scaling --resume --out runs/scaling
  minifm scaling --resume --out runs/scaling --for-flops 1e15 1e16 --for-seconds 36000
"""
TEXT_OF_CELLS = ("vocabulary", "length", "apart")       # settings of the study, or none of it


def arguments(parser, argv):
    from minifm.scaling.grid import StudyConfig
    from minifm.training.pretrain import TextConfig
    parser.add_argument("--out", metavar="DIRECTORY", required=True,
                        help="the directory of the study: its grid, its results, its picture")
    parser.add_argument("--resume", action="store_true",
                        help="go on with the study in --out; if it is finished, fit it again")
    parser.add_argument("--for-flops", metavar="NUMBER", nargs="+", default=[],
                        help="budgets of operations to say the best size for (default: 10 and "
                             "100 times the study's largest)")
    parser.add_argument("--for-seconds", metavar="NUMBER", nargs="+", default=[],
                        help="budgets of time on this machine (default: 3,600 and 36,000)")
    add_fields(parser, StudyConfig, "the grid")
    add_fields(parser, TextConfig, "text", skip=TEXT_OF_CELLS)


def run(args):
    from minifm.rng import Rng
    from minifm.scaling.figure import draw
    from minifm.scaling.spend import Findings
    budgets = asked(args)
    study = the_study(args)
    for line in plan(study):
        print(line)
    print(flush=True)
    try:
        study.run(say=lambda line: print(line, flush=True))
    except Interrupted as stop:
        print(f"minifm: {stop}; go on with: {program()} scaling --resume --out "
              f"{study.directory}", file=sys.stderr)
        return stop.exit_code
    findings = Findings.of(study.rows(), Rng(study.config.seed))
    for line in told(findings, *budgets):
        print(line)
    picture = Path(study.directory) / "scaling.png"
    print(f"\nresults     {study.results.path}")
    print(f"picture     {picture}" if draw(findings, picture) else
          f"no picture: {MISSING}")
    return 0


def asked(args):
    """The budgets that the user has named: (operations, seconds), two lists of numbers."""
    found = [[number(name, text) for text in getattr(args, name.replace("-", "_"))]
             for name in ("for-flops", "for-seconds")]
    for name, values in zip(("for-flops", "for-seconds"), found):
        if not all(0 < value < float("inf") for value in values):
            raise ConfigError(f"{name}: expected numbers above 0, got "
                              f"{', '.join(f'{value:g}' for value in values)}")
    return found


def the_study(args):
    """The study that the flags describe, begun or taken up."""
    from minifm.scaling.grid import StudyConfig
    from minifm.scaling.study import begin, take_up
    from minifm.training.pretrain import TextConfig
    said = vars(args)
    if args.resume:
        own = part_of(StudyConfig, said) | part_of(TextConfig, said)
        if own:
            raise ConfigError(f"{', '.join(sorted(own))}: a study that is resumed has its own; "
                              "leave it out")
        return take_up(args.out)
    config, text = build(StudyConfig, said), build(TextConfig, {
        name: value for name, value in said.items() if name not in TEXT_OF_CELLS})
    return begin(args.out, text, config,
                 say=lambda line: print(line, file=sys.stderr, flush=True))


# -- on the screen -------------------------------------------------------------------------------


def plan(study):
    """The grid, a line for each curve, and how long it is going to take."""
    config, remaining = study.config, study.remaining()
    yield (f"{len(study.cells)} cells on sequences of {config.length} tokens, {config.batch} a "
           f"step; {study.training.count:,} tokens of text; {config.vocabulary} in the vocabulary")
    yield (f"learning rate {config.learning_rate:g} × 64 / width, warmed up over a tenth of "
           "the steps (at most 100), along a cosine to a tenth")
    yield f"  {'FLOPs':<11}{'parameters':<24}{'tokens':<24}predicted"
    for budget in dict.fromkeys(cell.budget for cell in study.cells):
        cells = [cell for cell in study.cells if cell.budget == budget]
        yield (f"  {budget:<11.2e}{span(cell.parameters for cell in cells):<24}"
               f"{span(cell.tokens for cell in cells):<24}"
               f"{sum(cell.seconds for cell in cells) / 60:.1f} min, {len(cells)} cells")
    for reason, count in study.left_out.items():
        yield f"  left out: {count} cells of {reason}"
    done = len(study.cells) - len(remaining)
    yield (f"predicted: {sum(cell.seconds for cell in remaining) / 60:.1f} minutes"
           + (f" for the {len(remaining)} cells that remain ({done} are done)" if done else ""))


def told(findings, flops, seconds):
    """The law with its intervals, the curves' exponent, and the table of budgets."""
    from minifm.scaling.isoflop import curves, power_law
    law, found = findings.law, curves(findings.rows)
    yield ("\nL(N, D) = E + A / N^alpha + B / D^beta, in nats a token (in brackets, 90 % of "
           f"{len(findings.laws)} fits")
    yield "to cells drawn again)"
    for name in ("E", "A", "alpha", "B", "beta"):
        yield f"  {name:<8}{getattr(law, name):<12.4g}{bracket(findings.between(name))}"
    errors = [abs(float(law(row["parameters"], row["tokens"])) / row["loss"] - 1)
              for row in findings.rows]
    yield f"  error   {sum(errors) / len(errors):.2%} in the mean, {max(errors):.2%} at most"
    open_still = [name for name in ("alpha", "beta") if wide(findings.between(name))]
    if open_still:
        yield (f"  these cells do not tell {' and '.join(open_still)}: what follows is a guess; "
               "give more --minutes")
    yield "\nthe best size for C operations grows as C^a"
    yield f"  a = {law.exponent:.3f} {bracket(findings.between('exponent'))} by the law"
    power, known = power_law(found), sum(curve.best is not None for curve in found)
    yield (f"  a = {power[1]:.3f} by the lowest points of {known} IsoFLOP curves" if power else
           f"  {known} of {len(found)} IsoFLOP curves have a lowest point: too few for theirs")
    if not (flops or seconds):
        largest = max(row["flops"] for row in findings.rows)
        flops, seconds = [10 * largest, 100 * largest], [3600, 36000]
    yield from table([findings.choose(flops=value) for value in flops]
                     + [findings.choose(seconds=value) for value in seconds])


def table(choices):
    """What to train with each budget."""
    yield (f"\n  {'budget':<17}{'parameters N':<32}{'tokens D':<11}{'D / N':<10}"
           f"{'loss':<24}{'time here':<12}beyond the study")
    for choice in choices:
        low, high = choice.parameters_between
        sizes = f"{choice.parameters:.3g} [{low:.3g}, {high:.3g}]"
        loss = f"{choice.loss:.3f} {bracket(choice.loss_between)}"
        yield (f"  {choice.budget:<17}{sizes:<32}{choice.tokens:<11.3g}"
               f"{choice.tokens / choice.parameters:<10.3g}{loss:<24}"
               f"{clock(choice.seconds):<12}{choice.beyond:.3g} ×")


def span(values):
    """The least and the largest."""
    values = list(values)
    return f"{min(values):,} … {max(values):,}" if len(values) > 1 else f"{values[0]:,}"


def wide(pair):
    """Whether an exponent between these is as good as unknown."""
    return pair[1] > 3 * pair[0]


def bracket(pair):
    return "[{:.4g}, {:.4g}]".format(*pair)


def clock(seconds):
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
