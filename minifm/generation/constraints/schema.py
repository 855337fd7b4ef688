"""A JSON schema, read into the objects of expression.py: the texts of values that it allows.

Values are written in one way each, that of json.dumps(value, ensure_ascii=False): a space behind
every comma and colon unless `separators` say otherwise, and nowhere else; in strings only what
must be escaped is. An object has the members that `properties` list, in that order, those not
`required` or left out; so what is written is always valid, but not all that is valid can be
written. Numbers are written with any digits that JSON allows.

Every keyword is either understood here or refused by name: none is passed over, but those that
only describe (`title`, `description`, …). A schema that contains itself is refused: its values
nest without end, which no finite automaton can follow.
"""

import json

from minifm.errors import ConfigError
from minifm.generation.constraints.expression import (
    ANY,
    Both,
    Either,
    Joined,
    Literal,
    Repeat,
    Sequence,
)
from minifm.generation.constraints.regex import ANYTHING, parse

DESCRIBING = {"title", "description", "default", "examples", "deprecated", "readOnly",
              "writeOnly", "$schema", "$id", "$comment", "$defs", "definitions"}
INTEGER = parse(r"-?(0|[1-9][0-9]*)")
NUMBER = parse(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
DEEPEST = 60                # schemas within each other


def expression(schema, separators=(", ", ": ")):
    """The expression of the texts that `schema` (a dict) allows. Raises ConfigError."""
    return _Reader(schema, separators).value(schema, "#", ())


class _Reader:
    def __init__(self, root, separators):
        self.root, self.separators = root, separators
        self.comma, self.colon = (Literal(text.encode()) for text in separators)
        self.kinds = {"object": self._object, "array": self._array, "string": self._string,
                      "integer": lambda s, p, o: self._plain(s, p, INTEGER),
                      "number": lambda s, p, o: self._plain(s, p, NUMBER),
                      "boolean": lambda s, p, o: self._plain(s, p, self._one_of([False, True], p)),
                      "null": lambda s, p, o: self._plain(s, p, self._one_of([None], p))}

    def value(self, schema, path, open_references):
        """The expression of one schema; `path` says where it stands, `open_references` which
        $refs led there."""
        if not isinstance(schema, dict):
            raise _wrong(path, f"expected a schema, which is an object, got {schema!r:.60}")
        if path.count("/") > DEEPEST:
            raise _wrong("#", f"its schemas stand more than {DEEPEST} levels within each other")
        schema = {key: value for key, value in schema.items() if key not in DESCRIBING}
        for key, read in (("$ref", self._reference), ("anyOf", self._any_of),
                          ("const", self._const), ("enum", self._enum)):
            if key in schema:
                return read(schema, path, open_references)
        kinds = schema.get("type")
        if kinds is None:
            raise _wrong(path, "expected `type`, `enum`, `const`, `anyOf` or `$ref`: without one, "
                               "every value is allowed, and values nest without end")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        for kind in kinds:
            if not isinstance(kind, str) or kind not in self.kinds:
                raise _wrong(path, f"type: expected one of {', '.join(self.kinds)}, got {kind!r}")
        if len(kinds) > 1:
            return Either(tuple(self._among_several(schema, kind, path, open_references)
                                for kind in kinds))
        return self.kinds[kinds[0]](schema, path, open_references)

    def _among_several(self, schema, kind, path, open_references):
        """One of several types, with those of the keywords that speak of it."""
        other = {key for k, keys in KEYWORDS.items() if k != kind for key in keys}
        own = {key: value for key, value in schema.items()
               if key in KEYWORDS.get(kind, ()) or key not in other}
        return self.kinds[kind](own, path, open_references)

    # -- what stands for other schemas or for values -----------------------------------------------

    def _reference(self, schema, path, open_references):
        _only(schema, path, "$ref")
        target = schema["$ref"]
        if target in open_references:
            raise _wrong(path, f"{target} contains itself: its values nest without end, which is "
                               "not supported")
        if not isinstance(target, str) or not target.startswith("#"):
            raise _wrong(path, f"$ref: expected a place in this schema, as in #/$defs/NAME, got "
                               f"{target!r:.60}")
        found = self.root
        for part in target[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or part not in found:
                raise _wrong(path, f"$ref: there is no {target}")
            found = found[part]
        return self.value(found, target, (*open_references, target))

    def _any_of(self, schema, path, open_references):
        _only(schema, path, "anyOf")
        parts = schema["anyOf"]
        if not isinstance(parts, list) or not parts:
            raise _wrong(path, "anyOf: expected a list of schemas")
        return Either(tuple(self.value(part, f"{path}/anyOf/{i}", open_references)
                            for i, part in enumerate(parts)))

    def _const(self, schema, path, open_references):
        _only(schema, path, "const", "type")
        return self._one_of(_of_type([schema["const"]], schema.get("type"), path), path)

    def _enum(self, schema, path, open_references):
        _only(schema, path, "enum", "type")
        if not isinstance(schema["enum"], list) or not schema["enum"]:
            raise _wrong(path, "enum: expected a list of values")
        return self._one_of(_of_type(schema["enum"], schema.get("type"), path), path)

    def _one_of(self, values, path):
        return Either(tuple(Literal(self._written(value, path)) for value in values))

    def _written(self, value, path):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False,
                              separators=self.separators).encode()
        except ValueError as error:         # NaN, or half of a surrogate pair
            raise _wrong(path, f"{value!r:.60} cannot be written as JSON: {error}") from error

    # -- types -------------------------------------------------------------------------------------

    def _plain(self, schema, path, expression):
        _only(schema, path, "type")
        return expression

    def _string(self, schema, path, open_references):
        _only(schema, path, "type", *KEYWORDS["string"])
        least, most = _bounds(schema, path, "minLength", "maxLength")
        inside = Repeat(ANY, least, most)
        if "pattern" in schema:
            try:
                pattern = parse(schema["pattern"], ANYTHING)
            except ConfigError as error:
                raise _wrong(path, f"pattern: {error}") from error
            inside = pattern if (least, most) == (0, None) else Both(pattern, inside)
        return Sequence((Literal(b'"'), inside, Literal(b'"')))

    def _array(self, schema, path, open_references):
        _only(schema, path, "type", *KEYWORDS["array"])
        least, most = _bounds(schema, path, "minItems", "maxItems")
        if most == 0:
            return Literal(b"[]")
        if "items" not in schema:
            raise _wrong(path, "items: expected the schema of the items: without one, every value "
                               "is allowed, and values nest without end")
        item = self.value(schema["items"], f"{path}/items", open_references)
        others = Repeat(Sequence((self.comma, item)), max(least - 1, 0), most and most - 1)
        some = Sequence((Literal(b"["), item, others, Literal(b"]")))
        return Either((Literal(b"[]"), some)) if least == 0 else some

    def _object(self, schema, path, open_references):
        _only(schema, path, "type", *KEYWORDS["object"])
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise _wrong(path, "properties: expected schemas by name")
        if not isinstance(schema.get("additionalProperties", True), bool):
            raise _wrong(path, "additionalProperties: only true and false are supported; none are "
                               "written")
        if not isinstance(required, list):
            raise _wrong(path, "required: expected a list of names")
        for name in required:
            if name not in properties:
                raise _wrong(path, f"required: {name!r:.60} is not among the properties")
        members = tuple(
            Sequence((Literal(self._written(name, path)), self.colon,
                      self.value(inner, f"{path}/properties/{name}", open_references)))
            for name, inner in properties.items())
        needed = tuple(name in required for name in properties)
        return Sequence((Literal(b"{"), Joined(members, needed, self.comma), Literal(b"}")))


# The keywords of each type, all of which are understood.
KEYWORDS = {"object": ("properties", "required", "additionalProperties"),
            "array": ("items", "minItems", "maxItems"),
            "string": ("minLength", "maxLength", "pattern")}
_PYTHON = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def _of_type(values, kinds, path):
    """Those of `values` whose type is one of `kinds` (None: any)."""
    if kinds is None:
        return values
    kept = [v for v in values if any(_is(v, k) for k in ([kinds] if isinstance(kinds, str)
                                                         else kinds))]
    if not kept:
        raise _wrong(path, f"nothing matches: no value is of type {kinds!r}")
    return kept


def _is(value, kind):
    if kind in ("number", "integer"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (kind == "number" or value == int(value))
    return kind in _PYTHON and isinstance(value, _PYTHON[kind])


def _bounds(schema, path, low, high):
    least, most = schema.get(low, 0), schema.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)
                                  or value < 0):
            raise _wrong(path, f"{name}: expected a whole number, got {value!r:.60}")
    if most is not None and least > most:
        raise _wrong(path, f"nothing matches: {low} is {least}, and {high} is {most}")
    return least, most


def _only(schema, path, *known):
    for key in schema:
        if key not in known:
            raise _wrong(path, f"{key!r:.60} is not supported here; expected no more than "
                               f"{', '.join(known)}")


def _wrong(path, what):
    return ConfigError(f"JSON schema: {path}: {what}")
