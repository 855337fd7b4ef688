"""`minifm plan`: what it takes to train a model, before there is a machine to train it on."""

import json

from minifm.cli.arguments import add_fields, build
from minifm.errors import ConfigError

EXAMPLE = """\
example:
  minifm plan --arch gpt3-175b --tokens 300B --device h100 --count 1024
  minifm plan --arch llama-65b --tokens 1.4T --device a100 --count 2048 --utilisation 0.49
  minifm plan --arch llama3-8b --tokens 15T --device h200 --zero 3 --price 3.50
  minifm plan --arch gpt3-13b --tokens 300e9 --device a100 --tensor 4 --batch 1024 --json
"""
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
DAY, HOUR = 86400, 3600


def arguments(parser, argv):
    from minifm.scaling.devices import DEVICES
    from minifm.scaling.plan import PlanConfig
    parser.add_argument("--arch", required=True, metavar="NAME",
                        help="a decoder by the name of its preset, such as gpt3-175b or llama3-8b "
                             "(those of `minifm pretrain --preset`)")
    parser.add_argument("--tokens", required=True, metavar="NUMBER",
                        help="to train on, as 300e9 or 300B or 1.4T")
    parser.add_argument("--device", required=True, metavar="NAME",
                        help=f"one of {', '.join(DEVICES)}")
    add_fields(parser, PlanConfig, "the run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args):
    from minifm.scaling.plan import PlanConfig, as_json, plan
    found = plan(args.arch, number("tokens", args.tokens), args.device,
                 build(PlanConfig, vars(args)))
    print(json.dumps(as_json(found), indent=2) if args.json else "\n".join(lines(found)))


def number(name, text):
    """A number as people write large ones: 300e9, 300B, 1.4T; ConfigError for what is none."""
    digits, unit = (text[:-1], UNITS[text[-1:].upper()]) if text[-1:].upper() in UNITS \
        else (text, 1)
    try:
        return float(digits.replace(",", "")) * unit
    except ValueError:
        raise ConfigError(f"{name}: expected a number such as 300e9, 300B or 1.4T, "
                          f"got {text!r}") from None


# -- on the screen -------------------------------------------------------------------------------

PARTS = {
    "what it computes": ("parameters", "FLOPs a token", "FLOPs", "by the rule",
                         "tokens a parameter"),
    "how long it takes": ("time", "device-hours", "cost", "steps", "micro-batches",
                          "pipeline idle", "tokens to be busy"),
    "what lies on the fullest device": ("Ψ, of a device", "weights", "gradients", "optimizer",
                                        "activations"),
}


def lines(found):
    """The Plan as lines of text: every figure with its formula, then memory by ZeRO's stages and
    by what is computed again, then whether it fits."""
    m = found.model
    yield (f"{found.arch}: {m.layers} layers, {m.width:,} wide, {m.heads} heads on {m.key_heads} "
           f"of keys, perceptron {m.hidden:,}, vocabulary {m.vocabulary:,}")
    yield (f"on {found.layout.count:,} × {found.device_name}: {found.layout}, ZeRO "
           f"{found.layout.zero}; {found.tokens:.4g} tokens in sequences of "
           f"{found.config.length:,}, {found.config.micro_batch} at a time")
    for title, names in PARTS.items():
        yield f"\n{title}"
        for name in names:
            if name in found.figures:
                yield figure_line(name, found.figures[name])
    yield from zero_table(found)
    yield from verdict(found)


def figure_line(name, figure):
    numbers = f" = {figure.numbers}" if figure.numbers else ""
    source = f"  [{figure.source}]" if figure.source else ""
    return f"  {name:<19}{shown(figure):>12}  {figure.formula}{numbers}{source}"


def shown(figure):
    """The value in the unit that people read."""
    value, unit = figure.value, figure.unit
    if unit == "B":
        return gigabytes(value)
    if unit == "s":
        return f"{value / DAY:,.1f} days" if value >= 2 * DAY else f"{value / HOUR:,.2f} h"
    if figure.formula.startswith("(p - 1)"):
        return f"{value:.1%}"
    plain = f"{value:,.0f}" if 1e3 <= value < 1e8 else f"{value:.4g}"
    return f"{plain} {unit}".rstrip()


def gigabytes(size):
    return f"{size / 1e9:,.2f} GB"


def zero_table(found):
    """Memory of the fullest device, a column for each stage of ZeRO."""
    yield f"\nthe same in each stage of ZeRO ({found.layout})"
    yield f"  {'':<16}" + "".join(f"{f'ZeRO {zero}':>14}" for zero in found.by_zero)
    for name in ("weights", "gradients", "optimizer", "activations", "total"):
        yield f"  {name:<16}" + "".join(f"{gigabytes(getattr(m, name)):>14}"
                                        for m in found.by_zero.values())
    yield f"  {'fits':<16}" + "".join(f"{'yes' if m.total <= found.limit else 'no':>14}"
                                      for m in found.by_zero.values())
    yield "\nactivations, if the backward pass computes again"
    for what, words in (("none", "nothing"), ("selective", "attention matrices"),
                        ("full", "whole blocks")):
        yield f"  {words:<19}{gigabytes(found.by_recompute[what]):>12}"


def verdict(found):
    """Whether the layout fits, and the fewest devices that hold the run."""
    total, config = found.memory.total, found.config
    yield (f"\n{'fits' if found.fits else 'does not fit'}: {gigabytes(total)} of "
           f"{gigabytes(found.limit)} (the memory of one {found.device_name}, less "
           f"{config.headroom:.0%})")
    if found.smallest is None:
        yield "no number of devices holds it: try ZeRO 3, full recomputation, or shorter sequences"
    else:
        yield (f"fewest devices that hold it: {found.smallest.count:,} ({found.smallest}, ZeRO "
               f"{found.smallest.zero})")
