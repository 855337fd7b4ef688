"""The command line: `minifm VERB …`, one file a verb; a user's mistake is one line and status 2."""

import importlib
import os
import shutil
import sys
from pathlib import Path

# verb -> what it does; the module of the same name has `arguments(parser, argv)`, which may look at
# what the user wrote to offer what belongs to it, and `run(args)`.
VERBS = {
    "pretrain": "train a language model on unlabelled text, or a diffusion model on examples",
    "finetune": "teach a trained model a task by labelled examples",
    "labels": "show what pretraining is worth when labels are few",
    "incontext": "train a small model that learns new rules from its prompt alone, and measure it",
    "generate": "write with a trained model",
    "sample": "make pictures, sounds, films or solids with a trained diffusion model",
    "merge": "add an adapter to the model that it is of, and say what that changes",
    "evaluate": "measure a model: perplexity on text, or scores on labelled examples",
    "prompt": "ask a model by a few solved examples in its prompt, and score its answers",
    "quantize": "store a model in low precision, and say what that changes",
    "dataset": "write text tasks and what baselines reach, or pictures, sounds, films, solids",
    "compare": "a diffusion model beside an autoencoder, a VAE and a GAN on the same pictures",
    "demo": "train a small GPT on Python's own source, a UNet on digits, and look at the results",
    "plan": "what training a published model takes: operations, memory, devices, time, cost",
    "scaling": "train many small models, and learn how to spend a larger budget",
    "bench": "time kernels and models beside other libraries and the machine's limits",
    "env": "show versions, backends and threads, and why something is missing",
}

EXAMPLE = """\
example:
  minifm pretrain --data book.txt --out runs/book --steps 500
  minifm generate runs/book/last "It was a dark"
"""


def main(argv=None):
    """Run one command; returns the process's exit status."""
    from minifm.errors import UserError
    argv = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    try:
        args = parse(argv)
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except (UserError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):      # `minifm … | head`: who read us has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if os.environ.get("MINIFM_DEBUG", "0") not in ("", "0"):
            raise
        reason = str(error) or "there is not enough memory"
        print(f"minifm: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minifm: interrupted", file=sys.stderr)
        return 130


def _prepare_streams():
    """A stream that the caller has closed is an empty one; what an encoding lacks is shown as ?."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def parse(argv):
    """The parsed arguments; `args.run` is the verb's function. Only that verb is imported.

    Raises ConfigError for what is not on the menu.
    """
    from minifm.cli.arguments import Parser, meant
    from minifm.errors import ConfigError
    verb = argv[0] if argv else ""
    if verb in VERBS:
        module, summary = importlib.import_module(f"minifm.cli.{verb}"), VERBS[verb]
        parser = Parser(prog=f"minifm {verb}", description=summary[0].upper() + summary[1:] + ".",
                        epilog=module.EXAMPLE)
        module.arguments(parser, argv)
        parser.set_defaults(run=module.run)
        return parser.parse_args(argv[1:])
    if not verb.startswith("-"):
        raise ConfigError(f"expected a VERB, got {verb!r}; {meant(verb, VERBS)}; "
                          "see minifm --help")
    parser = Parser(
        prog="minifm", usage="minifm [-h] [--version] VERB ...", epilog=EXAMPLE,
        description="A foundation-model stack to read, step through, and use.")
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        verbs.add_parser(name, help=summary)
    return parser.parse_args(argv)


def program():
    """How the user can call this program again from here: "minifm" where the shell finds it."""
    if shutil.which("minifm"):
        return "minifm"
    beside, here = Path(sys.executable).with_name("minifm"), Path.cwd()
    if not beside.exists():
        return f"{sys.executable} -m minifm"
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def _version():
    from minifm import __version__
    return f"minifm {__version__}"
