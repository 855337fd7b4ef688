"""What a text may be: one of some choices, what a regular expression matches, or JSON by a schema.

    generate(model, tokenizer, ["The answer is"], constraint=Choices([" yes", " no"]))

Each of the three becomes an expression (expression.py), that an automaton over bytes
(automaton.py), and that a Guide (guide.py), which tells what tokens may come.
"""

import json
from dataclasses import dataclass
from functools import cached_property

from minifm.errors import ConfigError
from minifm.generation.constraints import regex, schema
from minifm.generation.constraints.expression import Either, Literal, compiled, in_json, utf8
from minifm.generation.constraints.guide import Guide
from minifm.text.bytelevel import as_bytes

__all__ = ["Choices", "Guide", "JsonSchema", "Regex"]


class Constraint:
    """What the text of a completion has to be. A kind has `compile()`."""

    def automaton(self):
        """The Automaton that accepts these texts, as bytes; made once. Raises ConfigError where
        it cannot be made, or accepts nothing."""
        return self._automaton

    @cached_property
    def _automaton(self):
        return self.compile()

    def compile(self):
        """The Automaton, made anew."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it accepts")

    def guide(self, tokenizer, vocabulary, begins=False):
        """The Guide for texts in the tokens of `tokenizer`, of which `begins` says whether they
        stand by themselves; raises ConfigError."""
        return Guide(self.automaton(), tokenizer, vocabulary, begins)


@dataclass(frozen=True)
class Choices(Constraint):
    """One of `texts` (str or bytes)."""

    texts: list

    def compile(self):
        if isinstance(self.texts, (str, bytes)) or not self.texts:
            raise ConfigError(f"choices: expected a list of texts, got {self.texts!r:.60}")
        return compiled(Either(tuple(Literal(as_bytes(text)) for text in self.texts)), utf8)


@dataclass(frozen=True)
class Regex(Constraint):
    """What `pattern` matches as a whole; see regex.py for what it may be made of."""

    pattern: str

    def compile(self):
        return _not_empty(compiled(regex.parse(self.pattern), utf8), f"regex {self.pattern!r:.200}")


@dataclass(frozen=True)
class JsonSchema(Constraint):
    """The JSON text of a value that is valid by `schema`, a dict or its JSON text; see schema.py
    for what it may say, and how values are written."""

    schema: dict
    separators: tuple = (", ", ": ")

    def compile(self):
        found = self.schema
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"JSON schema: not JSON: {error}") from error
        return _not_empty(compiled(schema.expression(found, self.separators), in_json),
                          "JSON schema")


def _not_empty(automaton, what):
    if automaton.empty:
        raise ConfigError(f"{what}: nothing matches: there is no text that it accepts")
    return automaton
