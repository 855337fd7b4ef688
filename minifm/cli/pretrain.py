"""`minifm pretrain`: text in, a language model out."""

import argparse
import sys

from minifm.cli import program
from minifm.cli.arguments import add_config, add_fields, add_run, build, settings
from minifm.errors import ConfigError, plural
from minifm.models import ARCHITECTURES
from minifm.models.causal import CausalModel
from minifm.training.config import TrainConfig
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
  minifm pretrain --resume --out runs/book

while it trains:
  FLOPs      the part of this machine's multiply-adds, as measured at the start, that the model's
             products make up; what else a step does, and what waits for memory, is the rest
"""
PRESETS = {name: arch for arch, kind in ARCHITECTURES.items() for name in kind.presets}


def arguments(parser, argv):
    from minifm.training.objectives import LearningConfig
    from minifm.training.pretrain import NOT_CHOSEN, TextConfig
    parser.usage = "minifm pretrain --out DIRECTORY [--data DATA ...] [options]"
    add_run(parser, "checkpoints, log, loss curve")
    parser.add_argument("--init", metavar="MODEL", default=argparse.SUPPRESS,
                        help="start from this model, a directory or a name on the hub, in place "
                             "of random weights")
    arch = shown_arch(argv)
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
    add_fields(parser, TextConfig, "text")
    add_fields(parser, LearningConfig, "learning: what is guessed")
    add_fields(parser, ARCHITECTURES[arch].config,
               f"model: {arch} (defaults: those of the preset)",
               skip={"scaling", *NOT_CHOSEN, *ARCHITECTURES[arch].fixed}, defaults=False)
    add_fields(parser, TrainConfig, "training")


def run(args):
    from minifm.backends.ceilings import flop_ceiling
    from minifm.training.objectives import LearningConfig
    from minifm.training.pretrain import TextConfig, prepare
    said = said_in_all(args, TextConfig, LearningConfig)
    arch = said["arch"]
    shape = {name: said[name] for name in shape_of(arch) if name in said}
    prepared = prepare(args.out, build(TextConfig, said), shape, build(TrainConfig, said),
                       learning=build(LearningConfig, said), arch=arch, initial=said.get("init"),
                       resume=args.resume, force=args.force, ceiling=flop_ceiling().rate)
    for line in summary(prepared):
        print(line, file=sys.stderr)
    status = trained(prepared.trainer)
    if status == 0:
        tell(prepared.trainer)
    return status


def shown_arch(argv):
    """The architecture that the user speaks of: by its name, by a preset's, or none: gpt."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--arch")
    parser.add_argument("--preset")
    try:
        seen = parser.parse_known_args(argv)[0]
    except argparse.ArgumentError:          # a flag without its value: the real parser says so
        return "gpt"
    arch = seen.arch or PRESETS.get(seen.preset)
    return arch if arch in ARCHITECTURES else "gpt"


def foreign_flags(arch):
    """{flag: why it is none} of the settings that other architectures have."""
    from minifm.training.pretrain import settings_of
    owners, own = {}, settings_of(arch)
    for other in ARCHITECTURES:
        for name in settings_of(other) - own:
            owners.setdefault(name, []).append(other)
    return {f"--{no}{name.replace('_', '-')}":
            f"{arch} has no such setting ({', '.join(others)} has: --arch {others[0]})"
            for name, others in owners.items() for no in ("", "no-")}


def shape_of(arch):
    """The settings of a model's shape (None: of any) that the user chooses."""
    from minifm.training.pretrain import settings_of
    return set().union(*(settings_of(name) for name in ARCHITECTURES if arch in (None, name)))


def said_in_all(args, *configs):
    """{name: value} of flags over the file of settings over the preset over, for a run that is
    resumed, its own settings. Its `arch` is None where a model to start from decides."""
    said = settings(args, *(kind.config for kind in ARCHITECTURES.values()), *configs,
                    TrainConfig, also={"arch": str, "preset": str, "init": str})
    if args.resume:
        from minifm.training.run import read_settings
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
    refuse_foreign(said, arch)
    shape = dict(ARCHITECTURES[arch].presets[chosen]) if chosen else {}
    shape.pop("vocabulary", None)           # the tokenizer's, whatever a published model had
    return below | {"arch": arch} | shape | said


def refuse_foreign(said, arch):
    """Raise ConfigError for a preset, or a setting of the shape, that the architecture has not, or
    that is not the user's to say."""
    from minifm.training.pretrain import NOT_CHOSEN
    for name in NOT_CHOSEN - {"vocabulary"}:            # which is the tokenizer's to be learnt, too
        if name in said:
            raise ConfigError(f"{name}: follows from the tokenizer and from what is to be learnt; "
                              "leave it out")
    preset = said.get("preset")
    if PRESETS.get(preset, arch) != arch:
        raise ConfigError(f"preset: {preset} is of {PRESETS[preset]}, not of {arch}")
    known = shape_of(arch)
    for other in ARCHITECTURES:
        for name in shape_of(other) - known:
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


def tell(trainer):
    """Print the last evaluation, and what to do with the model."""
    found = next((line for line in reversed(trainer.metrics.read()) if "held_out_loss" in line), {})
    if found:
        bits = f", {found['bits_per_byte']:.3f} bits a byte" if "bits_per_byte" in found else ""
        print(f"held out   {found['held_out_loss']:.4f} nats a {trainer.objective.unit}{bits} "
              f"(step {found['step']})")
    best = trainer.best
    if best and best["step"] < trainer.step:
        print(f"best       {best['loss']:.4f} after step {best['step']}: {trainer.directory}/best")
    writes = isinstance(trainer.model, CausalModel) or trainer.model.absorbing
    print(f"saved as   {trainer.directory}/last" + (
        f"; try: {program()} generate {trainer.directory}/last \"Once\"" if writes else ""))


def summary(prepared):
    """What is going to happen, a line a part."""
    from minifm import backends
    trainer, corpus = prepared.trainer, prepared.corpus
    training, held_out = prepared.training, prepared.held_out
    shape, config, objective = trainer.model.config, trainer.config, trainer.objective
    skipped = "".join(f", {what} left out: {n:,}" for what, n in corpus.skipped.items() if n)
    words = training.count - training.documents         # without the end-of-text marks
    batch = trainer.batches.batch(0)
    flops = objective.flops(trainer.model, batch) / objective.tokens(batch)
    rounds = config.steps * config.batch * objective.window(prepared.length) / training.count
    context = f", context {shape.context}" if shape.context else ""
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    return [f"{name:<11}{text}" for name, text in {
        "text": f"{corpus.description}: {plural(corpus.count, 'document')}, "
                f"{corpus.size / 1e6:.2f} MB; {held_out.documents:,} of them held out{skipped}",
        "tokens": f"{trainer.tokenizer.vocabulary:,} in the vocabulary; {training.count:,} to "
                  f"train on, {training.size / max(1, words):.2f} bytes each",
        "model": f"{type(trainer.model).__name__}, {shape.parameters:,} parameters: "
                 f"{plural(shape.layers, 'layer')}, {shape.width} wide, "
                 f"{plural(shape.heads, 'head')}{context}; {flops / 1e6:,.0f} MFLOP to train on a "
                 "token",
        "learning": f"{objective.name}: its loss is in nats a {objective.unit}",
        "training": f"{plural(config.steps, 'step')} of {config.batch} × {prepared.length} tokens, "
                    f"{rounds:.2f} times through the text",
        "backend": backends.active().describe(),
        "run": f"{trainer.directory}{after}",
    }.items()]
