"""From configuration dataclasses to flags, and from flags and a file back to dataclasses.

A field `top_k: int = setting(0, "keep …")` is the flag `--top-k`. What the
user did not say is absent from the parsed arguments, so that the order is plain: a flag beats
the `--config` file, the file beats the default.
"""

import argparse
import dataclasses
import difflib
import functools
import itertools
import json
import tomllib
import typing
from pathlib import Path

from minifm.config import element_type, fits, plain_type, type_name
from minifm.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser of one verb, whose mistakes raise ConfigError: one line, with what was meant. A flag
    has one name and no abbreviations: what is short for one flag today is two flags' tomorrow.

    elsewhere  {flag: why it is not one here}
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        self.elsewhere = {}
        for kind in (int, float):
            self.register("type", kind, functools.partial(_number, kind))

    def parse_args(self, argv):
        """The arguments in a namespace. Flags that are none are told before what is missing: a
        required flag may be what the user meant."""
        for word in itertools.takewhile(lambda word: word != "--", argv):
            flag = word.partition("=")[0]
            if flag.startswith("--") and " " not in flag:
                self._require_known(flag)
        args, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(f"{unknown[0]!r} is one argument too many")
        return args

    def error(self, message):
        raise ConfigError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def _require_known(self, flag):
        known = self._option_string_actions
        if flag in self.elsewhere:
            self.error(f"{flag}: {self.elsewhere[flag]}")
        if flag not in known:
            self.error(f"{flag} is unknown" + "".join(
                f" (did you mean {near}?)" for near in difflib.get_close_matches(flag, known, 1)))


def meant(wanted, known):
    """"did you mean …?", with what of `known` is nearest to `wanted`; else all of `known`."""
    near = difflib.get_close_matches(wanted, list(known), 3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"


def _number(kind, text):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {type_name(kind)}, got {text!r}") from None


def add_fields(parser, cls, title, skip=(), defaults=True, without=()):
    """One flag for each field of dataclass `cls`, under a heading; `defaults` shows those of the
    dataclass, except of the fields `without`, which have none here, or another."""
    group, hints = parser.add_argument_group(title), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        kind, text = plain_type(hints[field.name]), field.metadata["help"]
        if defaults and field.name not in without and field.default not in (None, ()):
            shown = field.default
            shown = " ".join(map(str, shown)) if isinstance(shown, tuple) else shown
            text += f" (default: {shown})"
        options = {"dest": field.name, "default": argparse.SUPPRESS,
                   "help": text.replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is tuple:
            options |= {"nargs": "+", "type": element_type(kind), "metavar": field.name.upper()}
        else:
            options |= {"type": kind, "metavar": kind.__name__.upper()}
        group.add_argument("--" + field.name.replace("_", "-"), **options)


def add_run(parser, holds):
    """The flags of a run (training/run.py): its directory, whose contents `holds` names, and how
    it goes on."""
    parser.add_argument("--out", metavar="DIRECTORY", required=True,
                        help=f"the directory of the run: {holds}")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the newest checkpoint in --out, with its settings")
    parser.add_argument("--force", action="store_true",
                        help="resume even where data or settings are not those of the run")


def add_config(parser):
    """The flag `--config`, which `settings` reads."""
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS,
                        help="settings as JSON or TOML, keys named as the flags; flags override")


def settings(args, *classes, also):
    """{name: value} of all that the user said: the file's settings under the flags.

    Raises ConfigError for a file that cannot be read, a key that is no field of `classes` nor
    named in `also` ({name: type} of settings beside them), or a value of the wrong type.
    """
    hints = dict(also)
    for cls in classes:
        hints |= typing.get_type_hints(cls)
    given = {k: v for k, v in vars(args).items() if k in hints}
    if not hasattr(args, "config"):
        return given
    stored = read_config(Path(args.config))
    for key, value in stored.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{args.config}: unknown setting {key!r}{hint}")
        if not fits(value, hints[key]):
            raise ConfigError(f"{args.config}: {key}: expected {type_name(hints[key])}, "
                              f"got {value!r}")
    return stored | given


def part_of(cls, values):
    """Those of `values`, {name: value}, that are fields of the dataclass."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def build(cls, values, **defaults):
    """The dataclass from those of `values` that are its fields, over `defaults`."""
    return cls(**defaults | part_of(cls, values))


def read_config(path):
    """The settings in a JSON or TOML file, with dashes in keys read as underscores."""
    readers = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: expected a .json or .toml file")
    try:
        stored = readers[path.suffix](path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:   # not UTF-8, not JSON, not TOML
        raise ConfigError(f"{path}: not a valid {path.suffix[1:].upper()} file: {error}") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{path}: expected settings by name, got a {type(stored).__name__}")
    return {key.replace("-", "_"): value for key, value in stored.items()}
