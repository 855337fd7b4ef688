"""`minifm pretrain`: text in, a language model out; or examples in, a diffusion model out; or
pictures in, an autoencoder or a generative adversarial network out; or pictures with captions in, a
CLIP or, by what a CLIP makes of both, a prior out."""

import argparse
import sys
from pathlib import Path

from minifm.cli import program
from minifm.cli.arguments import add_config, add_fields, add_run, read_config, settings
from minifm.cli.courses import course_of, names_of
from minifm.errors import ConfigError, UserError
from minifm.models import ARCHITECTURES
from minifm.training.run import read_settings
from minifm.training.signals import Interrupted

EXAMPLE = """\
example:
  minifm pretrain --data book.txt --out runs/book --preset tiny --steps 500
  minifm pretrain --data notes/ --pattern '*.md' --tokenizer bytes --context 512 --out runs/notes
  minifm pretrain --init openai-community/gpt2 --data mine.jsonl --length 256 --out runs/mine
  minifm pretrain --arch llama --key-heads 1 --data book.txt --out runs/llama
  minifm pretrain --arch roberta --whole-words --data notes/ --out runs/roberta
  minifm pretrain --arch roberta --diffusion --data notes/ --context 128 --out runs/masks
  minifm pretrain --arch t5 --data notes/ --length 128 --out runs/t5
  minifm pretrain --arch unet --data digits --out runs/digits
  minifm pretrain --arch autoencoder --data glyphs --out runs/latents
  minifm pretrain --arch gan --data digits --judge 360 --out runs/deceiving
  minifm pretrain --arch unet --data glyphs --latent runs/latents --out runs/latent-letters
  minifm pretrain --arch clip --data glyphs --size 12 --patch 3 --out runs/clip
  minifm pretrain --arch unet --data glyphs --size 12 --text-encoder runs/clip --out runs/letters
  minifm pretrain --arch prior --data glyphs --size 12 --clip-model runs/clip --out runs/prior
  minifm pretrain --arch unet --data glyphs --size 12 --clip-model runs/clip --out runs/decoder
  minifm pretrain --resume --out runs/book

while it trains:
  FLOPs      the part of this machine's multiply-adds, as measured at the start, that the model's
             products make up; what else a step does, and what waits for memory, is the rest
"""
PRESETS = {name: arch for arch, kind in ARCHITECTURES.items() for name in kind.presets}


def arguments(parser, argv):
    parser.usage = "minifm pretrain --out DIRECTORY [--data DATA ...] [options]"
    add_run(parser, "checkpoints, log, loss curve")
    parser.add_argument("--init", metavar="MODEL", default=argparse.SUPPRESS,
                        help="start from this model, a directory or a name on the hub, in place "
                             "of random weights")
    arch = shown_arch(argv)
    course = course_of(arch)
    parser.elsewhere = foreign_flags(arch)
    defaults = [kind.default for kind in ARCHITECTURES.values()]
    parser.add_argument("--arch", choices=ARCHITECTURES, default=argparse.SUPPRESS,
                        help="what the model is made of; with --help, its settings are shown "
                             "(default: gpt, or what the preset is of)")
    parser.add_argument("--preset", choices=PRESETS, default=argparse.SUPPRESS, metavar="NAME",
                        help="the shape of the model; the flags below change it (default: "
                             f"{', '.join(defaults)}; of {arch}: "
                             f"{', '.join(ARCHITECTURES[arch].presets)})")
    add_config(parser)
    for config, (_, title) in course.configs.items():
        add_fields(parser, config, title, skip={"seed"})       # the one of training serves all
    add_fields(parser, ARCHITECTURES[arch].config,
               f"model: {arch} (defaults: those of the preset)",
               skip=names_of(ARCHITECTURES[arch].config) - course.shape_settings(arch)
               | {"scaling"}, defaults=False)
    add_fields(parser, course.training, "training")
    parser.set_defaults(course=course)


def run(args):
    from minifm.backends.ceilings import flop_ceiling
    course = args.course
    said = said_in_all(args, course)
    arch = said["arch"]
    shape = {name: said[name] for name in shape_of(arch, course) if name in said}
    try:
        prepared = course.prepare(
            args.out, said, shape, arch=arch, initial=said.get("init"), resume=args.resume,
            force=args.force, ceiling=flop_ceiling().rate)
    except Interrupted as stop:             # while a judge was taught, which is a run of its own
        print(f"minifm: {stop}; the same command goes on with it", file=sys.stderr)
        return stop.exit_code
    for line in course.summary(prepared):
        print(line, file=sys.stderr)
    status = trained(prepared.trainer)
    if status == 0:
        tell(prepared.trainer, course)
    return status


def shown_arch(argv):
    """The architecture that the user speaks of: by its name or a preset's, among the flags, in a
    file of settings, or in the run to go on with; or none: gpt."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for flag in ("--arch", "--preset", "--config", "--out"):
        parser.add_argument(flag)
    parser.add_argument("--resume", action="store_true")
    try:
        seen = parser.parse_known_args(argv)[0]
        sources = [vars(seen)]
        sources += [read_config(Path(seen.config))] if seen.config else []
        sources += [read_settings(seen.out)] if seen.resume and seen.out else []
    except (argparse.ArgumentError, UserError):     # the real parser and reader will say it
        return "gpt"
    for source in sources:
        named, preset = (str(source.get(key)) for key in ("arch", "preset"))
        if named in ARCHITECTURES or preset in PRESETS:
            return named if named in ARCHITECTURES else PRESETS[preset]
    return "gpt"


def foreign_flags(arch):
    """{flag: why it is none} of the settings that other architectures have."""
    owners, course = {}, course_of(arch)
    own = course.shape_settings(arch) | course.own_settings | names_of(course.training)
    for other in ARCHITECTURES:
        theirs = course_of(other)
        for name in (theirs.shape_settings(other) | theirs.own_settings) - own:
            owners.setdefault(name, []).append(other)
    return {f"--{no}{name.replace('_', '-')}":
            f"{arch} has no such setting ({', '.join(others)} has: --arch {others[0]})"
            for name, others in owners.items() for no in ("", "no-")}


def alike(course):
    """The names of the architectures that learn from the same kind of data."""
    return [name for name in ARCHITECTURES if course_of(name) == course]


def shape_of(arch, course):
    """The settings of a model's shape (None: of any) that the user chooses."""
    return set().union(*(course.shape_settings(name) for name in alike(course)
                         if arch in (None, name)))


def said_in_all(args, course):
    """{name: value} of flags over the file of settings over the preset over, for a run that is
    resumed, its own settings. Its `arch` is None where a model to start from decides."""
    said = settings(args, *(ARCHITECTURES[name].config for name in alike(course)),
                    *course.configs, course.training,
                    also={"arch": str, "preset": str, "init": str})
    if args.resume:
        if "init" in said:
            raise ConfigError("init: a resumed run has its weights; leave it out")
        chosen, below = said.get("preset"), read_settings(args.out, "pretrain")
    else:
        chosen, below = said.get("preset"), {}
    for name, known in (("preset", PRESETS), ("arch", ARCHITECTURES)):
        if said.get(name) not in (None, *known):
            raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {said[name]!r}")
    arch = said.get("arch", PRESETS.get(chosen) or below.get("arch"))
    if "init" in said and chosen:
        raise ConfigError(f"preset: the model to start from has its own shape; leave out {chosen}")
    if "init" not in said:
        arch = arch or "gpt"
        chosen = chosen if args.resume else chosen or ARCHITECTURES[arch].default
    refuse_foreign(said, arch, course)
    shape = dict(ARCHITECTURES[arch].presets[chosen]) if chosen else {}
    shape = {name: value for name, value in shape.items() if name not in course.not_chosen}
    return below | {"arch": arch} | shape | said


def refuse_foreign(said, arch, course):
    """Raise ConfigError for a preset, or a setting of the shape, that the architecture has not, or
    that is not the user's to say."""
    for name in course.not_chosen - course.own_settings:
        if name in said:
            raise ConfigError(f"{name}: follows from {course.source} and from what is to be "
                              "learnt; leave it out")
    preset = said.get("preset")
    if PRESETS.get(preset, arch) != arch:
        raise ConfigError(f"preset: {preset} is of {PRESETS[preset]}, not of {arch}")
    known = shape_of(arch, course)
    for other in alike(course):
        for name in course.shape_settings(other) - known:
            if name in said:
                raise ConfigError(f"{name}: {arch} has no such setting ({other} has)")


def trained(trainer, verb="pretrain", after=""):
    """Train to the end; the exit status: 0, or 128 + the number of the signal that stopped it.
    `verb` is what goes on with it, and `after` says what that leaves out."""
    try:
        trainer.train()
    except Interrupted as stop:
        print(f"minifm: {stop}; go on with: {program()} {verb} --resume --out "
              f"{trainer.directory}{after}", file=sys.stderr)
        return stop.exit_code
    return 0


def tell(trainer, course):
    """Print the last evaluation, and what to do with the model."""
    found = next((line for line in reversed(trainer.metrics.read()) if "held_out_loss" in line), {})
    objective = trainer.objective
    if found:
        bits = f", {found['bits_per_byte']:.3f} bits a byte" if "bits_per_byte" in found else ""
        print(f"held out   {found['held_out_loss']:.4f} {objective.scale} a {objective.unit}{bits} "
              f"(step {found['step']})")
        for name, score in found.get("scores", {}).items():
            print(f"           {score:.4f} {course.meaning(name, trainer.config)}")
    best = trainer.best
    if best and best["step"] < trainer.step:
        print(f"best       {best['loss']:.4f} after step {best['step']}: {trainer.directory}/best")
    print(f"saved as   {trainer.directory}/last{course.next(trainer)}")
