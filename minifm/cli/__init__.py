"""The command line: `minifm VERB …`, one file a verb; a user's mistake is one line and status 2."""

import argparse
import importlib
import os
import shutil
import sys
from pathlib import Path

# verb -> what it does; the module of the same name has `arguments(parser)` and `run(args)`.
VERBS = {
    "pretrain": "train a language model on unlabelled text",
    "generate": "write with a trained model",
    "demo": "train a small GPT on Python's own source and look at the result",
    "bench": "time every op on every backend against the machine's limits",
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
    try:
        args = parse(argv)
        return args.run(args) or 0
    except UserError as error:
        if os.environ.get("MINIFM_DEBUG"):
            raise
        print(f"minifm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minifm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:         # `minifm … | head`: whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(argv):
    """The parsed arguments; `args.run` is the verb's function. Only that verb is imported."""
    parser = argparse.ArgumentParser(
        prog="minifm", description="A foundation-model stack to read, step through, and use.",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for verb, summary in VERBS.items():
        if verb != chosen:
            verbs.add_parser(verb, help=summary)
            continue
        module = importlib.import_module(f"minifm.cli.{verb}")
        verb_parser = verbs.add_parser(
            verb, help=summary, description=summary[0].upper() + summary[1:] + ".",
            epilog=module.EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.arguments(verb_parser)
        verb_parser.set_defaults(run=module.run)
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
