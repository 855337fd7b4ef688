"""Constraints: the automaton against Python's `re` and JSON, masks against brute force, and what
models write under them."""

import itertools
import json
import random
import re
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from modelling import randomised

from minifm.errors import ConfigError
from minifm.generation import (
    Beams,
    Choices,
    Contrastive,
    JsonSchema,
    Regex,
    Sampling,
    Speculative,
    generate,
)
from minifm.generation.constraints import Guide
from minifm.generation.constraints import automaton as automata
from minifm.generation.constraints.automaton import DEAD, START
from minifm.generation.constraints.expression import LAST, in_json, utf8
from minifm.models import GPT, GPTConfig
from minifm.text import Tokenizer

BYTES = Tokenizer.bytes()
WORDS = Tokenizer.train(
    ['{"name": "Zoë", "age": 31, "tags": ["true", "false"]}, ' * 3, "the end of the text ü é " * 5,
     "abc aab bba cab ccc " * 9], 320)


def small_model(tokenizer, seed=0, context=64, width=8):
    config = GPTConfig(vocabulary=tokenizer.vocabulary, context=context, layers=1, heads=1,
                       width=width)
    return randomised(GPT(config), seed, std=1.0)


def written(constraint, tokenizer=BYTES, seed=0, max_tokens=60, strategy=Sampling(), prompt="x"):
    model = small_model(tokenizer, seed)
    return generate(model, tokenizer, [prompt], constraint=constraint, seed=seed,
                    max_tokens=max_tokens, strategy=strategy)[0]


# -- regular expressions ---------------------------------------------------------------------------

ATOMS = ["a", "b", "c", "é", ".", "[ab]", "[^a]", "[a-c]", r"\d", r"\w", r"\W", "[^é-ü]", r"[\sb]",
         "[]a]", "[a-]", r"\.", r"\x62", r"\u00e9", "[^\\d\\n]", "{", "x{}"]


@st.composite
def patterns(draw, depth=3):
    """A pattern of the supported subset, which Python's re understands too."""
    kind = draw(st.sampled_from(["atom"] * 3 + ["sequence", "either", "repeat", "group"]))
    if depth == 0 or kind == "atom":
        return draw(st.sampled_from(ATOMS))
    inner = patterns(depth=depth - 1)
    if kind == "sequence":
        return draw(inner) + draw(inner)
    if kind == "either":
        return f"({draw(inner)}|{draw(inner)})"
    if kind == "repeat":
        times = draw(st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "{0}"]))
        return f"(?:{draw(inner)}){times}"
    return f"({draw(inner)})"


TEXTS = st.text("abcé1 x{}.\n_ü€", max_size=7)


@given(patterns(), st.lists(TEXTS, max_size=30))
def test_an_automaton_accepts_what_re_matches_as_a_whole(pattern, texts):
    automaton = Regex(pattern).automaton()
    expected = re.compile(pattern, re.ASCII)
    for text in texts + ["", "a", "b", "ab", "aab", "é", "1"]:
        assert automaton.matches(text.encode()) == bool(expected.fullmatch(text)), (pattern, text)


@pytest.mark.parametrize("pattern", ["(a*|b)", "(a*|b)c", "a*(b|c*)*a", "(a?b*)*c", "((a|b)*c)?",
                                     "(a{2,}|b+)c*", "(|a)(b|)c{0,2}", "(a*b)*|c", "([ab]*c|a)+"])
def test_loops_and_branches_do_not_leak_into_each_other(pattern):
    """Every text of up to five letters."""
    automaton = Regex(pattern).automaton()
    for length in range(6):
        for letters in itertools.product("abc", repeat=length):
            text = "".join(letters)
            assert automaton.matches(text.encode()) == bool(re.fullmatch(pattern, text)), text


@given(patterns(), st.integers(0, 9999))
def test_every_way_through_an_automaton_is_a_match(pattern, seed):
    """Walks at random, by bytes: no dead end, and no text that is not UTF-8."""
    automaton, draw = Regex(pattern).automaton(), random.Random(seed)
    state, text = START, b""
    while not automaton.accepting[state] or (len(text) < 30 and draw.random() < 0.8):
        choices = np.flatnonzero(automaton.table[state])
        if not len(choices):
            break
        if len(text) >= 30:             # home by the shortest way
            ahead = automaton.remaining[automaton.table[state][choices]]
            choices = choices[ahead == automaton.remaining[state] - 1]
        byte = int(draw.choice(list(choices)))
        text, state = text + bytes([byte]), int(automaton.table[state, byte])
    assert automaton.accepting[state]
    assert re.fullmatch(pattern, text.decode(), re.ASCII)


@given(st.integers(0, LAST), st.integers(0, LAST))
def test_ranges_of_characters_are_spelt_as_utf8(one, other):
    low, high = sorted((one, other))
    sequences = utf8(((low, high),))
    probes = {low, high, *(c for c in (0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000)
                           for c in (c - 1, c, c + 1)), (low + high) // 2, low - 1, high + 1}
    for code in probes:
        if not 0 <= code <= LAST or 0xD800 <= code <= 0xDFFF:
            continue
        data = chr(code).encode()
        hits = sum(len(s) == len(data) and all(a <= b <= z for b, (a, z) in zip(data, s))
                   for s in sequences)
        assert hits == (low <= code <= high)


def test_a_character_is_spelt_in_json_as_json_spells_it():
    for code in [*range(0x100), 0x2028, 0xFFFF, 0x1F600]:
        spelt = json.dumps(chr(code), ensure_ascii=False)[1:-1].encode()
        assert in_json(((code, code),)) == [[(byte, byte) for byte in spelt]]


@pytest.mark.parametrize("pattern, said", [
    ("(a", r"a \( without its \)"), ("a)", r"a \) without its \("), ("*a", "nothing to repeat"),
    ("a**", "a repetition of a repetition"), ("a*+", "possessive"), (r"(a)\1", r"\\1, which is"),
    (r"a\b", r"\\b, which is not"), ("(?=a)", "looking around"), ("(?i)a", "flags"),
    ("a^b", "an anchor inside"), ("(a$|b)", "an anchor inside of a group"), ("a$b", "an anchor"),
    ("[b-a]", "a range whose end"), ("[a", "the end, where something is missing"),
    ("a{3,2}", "from 3 to 2 times"), (r"\x1", "without its 2 hexadecimal digits"),
    ("a\\", "the end, where"), (r"[\d-z]", "a range between"), ("(" * 200, "100 groups"),
    ("\ud800", "a surrogate"), (r"\U00110000", "beyond the last character"),
    (r"[^\x00-\U0010ffff]", "nothing matches"), (3, "expected a string, got 3"),
])
def test_a_pattern_that_is_not_supported_is_refused_in_one_line(pattern, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        Regex(pattern).automaton()
    assert "\n" not in str(refusal.value)


@given(st.text("ab(|)[]^$*+?{},1-\\d.é", max_size=8))
def test_any_text_is_read_as_re_reads_it_or_refused(pattern):
    try:
        automaton = Regex(pattern).automaton()
    except ConfigError:
        return
    with warnings.catch_warnings():         # re warns of [[, which it may once read otherwise
        warnings.simplefilter("ignore")
        try:
            expected = re.compile(pattern, re.ASCII)
        except re.error as error:
            raise AssertionError(f"{pattern!r} is accepted, and re refuses it: {error}") from error
    for text in ("", "a", "b", "ab", "aa", "1", "a1", "(", "]", "^", "-", "é", "ba", "{", "aaa",
                 "a{", ",", "a,", "d", "\\"):
        assert automaton.matches(text.encode()) == bool(expected.fullmatch(text)), (pattern, text)


# -- JSON schemas ----------------------------------------------------------------------------------


@st.composite
def schemas(draw, depth=2):
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern"]
    kind = draw(st.sampled_from(kinds + ["object", "array", "anyOf", "several"] * 2 * (depth > 0)))
    inner = schemas(depth=depth - 1)
    if kind == "string":
        return {"type": "string", "minLength": draw(st.integers(0, 2)),
                "maxLength": draw(st.integers(2, 5))}
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(["^a+$", '^["\\\\]', "b", "é$"])),
                "maxLength": 4}
    if kind == "enum":
        return {"enum": draw(st.lists(st.sampled_from(["a", 'q"', 1, 2.5, None, True, ["x", 1],
                                                       {"k": "ü"}]), min_size=1, max_size=3))}
    if kind == "const":
        return {"const": draw(st.sampled_from(["", "\n\t", -7, False, [], {}]))}
    if kind == "several":
        return {"type": ["null", "integer", "string"], "maxLength": 2}
    if kind == "object":
        names = draw(st.lists(st.sampled_from(["a", "b", "ü", 'q"']), unique=True, max_size=3))
        return {"type": "object", "properties": {name: draw(inner) for name in names},
                "required": [name for name in names if draw(st.booleans())]}
    if kind == "array":
        least = draw(st.integers(0, 2))
        return {"type": "array", "items": draw(inner), "minItems": least,
                "maxItems": least + draw(st.integers(0, 2))}
    if kind == "anyOf":
        return {"anyOf": draw(st.lists(inner, min_size=1, max_size=2))}
    return {"type": kind}


def valid(value, schema):
    """Whether `value` is valid, for the keywords that `schemas` draws."""
    if "anyOf" in schema:
        return any(valid(value, part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(json.dumps(value) == json.dumps(v)       # 1 is not True, nor 1.0
                   for v in schema.get("enum", [schema.get("const")]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(valid_type(value, kind, schema) for kind in kinds)


def valid_type(value, kind, schema):
    if kind == "string":
        return isinstance(value, str) and \
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)) and \
            re.search(schema.get("pattern", ""), value) is not None
    if kind == "array":
        return isinstance(value, list) and all(valid(x, schema["items"]) for x in value) and \
            schema["minItems"] <= len(value) <= schema["maxItems"]
    if kind == "object":
        return isinstance(value, dict) and set(schema["required"]) <= value.keys() and \
            all(valid(x, schema["properties"][name]) for name, x in value.items())
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"integer": isinstance(value, int) and number, "number": number,
            "boolean": isinstance(value, bool), "null": value is None}[kind]


@given(schemas(), st.integers(0, 9), st.sampled_from([BYTES, WORDS]))
def test_what_is_written_by_a_schema_is_valid_json_of_it(schema, seed, tokenizer):
    constraint = JsonSchema(schema)
    shortest = int(constraint.automaton().remaining[START])
    done = written(constraint, tokenizer, seed, max_tokens=min(shortest + 1 + seed, 63))
    assume(shortest + 2 <= 63)
    assert done.reason == "end"
    value = json.loads(done.text)
    assert valid(value, schema), done.text
    assert done.text == json.dumps(value, ensure_ascii=False) or "." in done.text \
        or "e" in done.text.lower() or "-0" in done.text    # numbers have many spellings


@given(schemas(), st.data())
def test_what_json_dumps_writes_of_a_valid_value_is_accepted(schema, data):
    value = data.draw(values(schema))
    assert valid(value, schema)
    for separators in ((", ", ": "), (",", ":")):
        text = json.dumps(value, ensure_ascii=False, separators=separators)
        automaton = JsonSchema(schema, separators).automaton()
        assert automaton.matches(text.encode()), text
        assert not automaton.matches(text.encode() + b" ")


def values(schema):
    """Values by a schema, members in the order of its properties."""
    if "anyOf" in schema:
        return st.one_of([values(part) for part in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kind = schema["type"] if isinstance(schema["type"], str) else "integer"
    if kind == "string":
        if "pattern" in schema:
            return st.sampled_from({"^a+$": ["a", "aaaa"], '^["\\\\]': ['"', '\\é"', '"\n'],
                                    "b": ["b", "\0b\x7f"], "é$": ["é", "\u2028é"]}
                                   [schema["pattern"]])
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=schema["minLength"],
                       max_size=schema["maxLength"])
    if kind == "array":
        return st.lists(values(schema["items"]), min_size=schema["minItems"],
                        max_size=schema["maxItems"])
    if kind == "object":
        return st.fixed_dictionaries(
            {}, optional={n: values(s) for n, s in schema["properties"].items()}).map(
            lambda found: {n: found[n] for n in schema["properties"] if n in found}).filter(
            lambda found: set(schema["required"]) <= found.keys())
    return {"integer": st.integers(), "number": st.floats(allow_nan=False, allow_infinity=False),
            "boolean": st.booleans(), "null": st.none()}[kind]


def test_members_stand_in_order_and_what_is_not_required_may_be_left_out():
    schema = {"type": "object", "required": ["b"], "additionalProperties": False,
              "properties": {name: {"type": "null"} for name in "abcd"}}
    automaton = JsonSchema(schema, (",", ":")).automaton()
    for names in ("abcd", "b", "bd", "ab", "bcd"):
        assert automaton.matches(("{" + ",".join(f'"{n}":null' for n in names) + "}").encode())
    for names in ("", "a", "acd", "ba", "bb", "cd"):
        assert not automaton.matches(("{" + ",".join(f'"{n}":null' for n in names) + "}").encode())


def test_references_within_a_schema_are_followed():
    schema = {"$defs": {"a/b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "maxItems": 2},
                        "c": {"enum": [1, 2]}}, "$ref": "#/$defs/a~1b", "title": "numbers"}
    automaton = JsonSchema(json.dumps(schema)).automaton()
    assert automaton.matches(b"[1, 2]") and not automaton.matches(b"[3]")


@pytest.mark.parametrize("schema, said", [
    ({"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
     "#/\\$defs/a contains itself"),
    ({"$ref": "#"}, "# contains itself"), ({"$ref": "other.json"}, "expected a place in this"),
    ({"$ref": "#/$defs/x"}, "there is no #/\\$defs/x"), ({}, "expected `type`"),
    (True, "expected a schema, which is an object, got True"), ("{", "not JSON"),
    ({"type": "array"}, "items: expected the schema"), ({"type": "date"}, "type: expected one of"),
    ({"type": "integer", "minimum": 3}, "'minimum' is not supported here"),
    ({"type": "string", "format": "date"}, "'format' is not supported"),
    ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}},
     "#/properties/a: 'multipleOf'"),
    ({"type": "object", "required": ["a"]}, "'a' is not among the properties"),
    ({"type": "object", "additionalProperties": {"type": "null"}}, "additionalProperties: only"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "nothing matches: minLength is 3"),
    ({"type": "string", "pattern": "^aaa$", "maxLength": 2}, "nothing matches"),
    ({"type": "string", "pattern": "(?=a)"}, "pattern: regex"),
    ({"type": "array", "items": {"type": "null"}, "maxItems": -1}, "maxItems: expected a whole"),
    ({"enum": []}, "enum: expected a list"), ({"enum": [1], "type": "string"}, "nothing matches"),
    ({"const": float("nan")}, "cannot be written as JSON"), ({"const": "\ud800"}, "cannot be"),
    ({"anyOf": [], "type": "null"}, "'type' is not supported here"), ({"anyOf": []}, "anyOf: exp"),
    ({"oneOf": [{"type": "null"}]}, "expected `type`"),
])
def test_a_schema_that_is_not_supported_is_refused_in_one_line(schema, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        JsonSchema(schema).automaton()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("constraint", [
    Regex("(a{1000}){1000}"), Regex("(a|b)*a(a|b){9}"),         # as an Nfa, and only without it
    JsonSchema({"type": "array", "items": {"type": "string", "maxLength": 99}, "maxItems": 99})])
def test_a_constraint_that_is_too_large_is_refused(monkeypatch, constraint):
    monkeypatch.setattr(automata, "LARGEST", 500)
    with pytest.raises(ConfigError, match="the constraint is too large: it needs more than 500"):
        constraint.automaton()


@pytest.mark.parametrize("schema", [{"type": "string", "pattern": "b", "maxLength": 3},
                                    {"type": "string", "pattern": "^(ab)+$", "minLength": 3,
                                     "maxLength": 5}])
def test_no_byte_leads_into_a_dead_end(schema):
    """Where a length and a pattern meet, most beginnings cannot be ended."""
    automaton = JsonSchema(schema).automaton()
    behind = automaton.table[automaton.table != DEAD]
    assert len(behind) and (automaton.remaining[behind] < len(automaton.table)).all()


def test_schemas_deep_within_each_other_are_refused():
    schema = {"type": "null"}
    for _ in range(500):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ConfigError, match="levels within each other"):
        JsonSchema(schema).automaton()


# -- tokens ----------------------------------------------------------------------------------------

CONSTRAINTS = [Regex(r"(ab|é)+c?"), Regex("the end|the t.{0,3}"), Choices(["abc", "ab", "ü€", ""]),
               JsonSchema({"type": "object", "properties": {"name": {"type": "string"}},
                           "required": ["name"]})]


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "words"])
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["regex", "dots", "choices", "schema"])
def test_masks_are_what_trying_every_token_finds(constraint, tokenizer):
    automaton = constraint.automaton()
    guide = constraint.guide(tokenizer, tokenizer.vocabulary + 3)
    for state in range(1, min(len(automaton.table), 60)):
        after = [automaton.after(tokenizer.decode([i]), state) for i in range(tokenizer.vocabulary)]
        after[tokenizer.end_of_text] = DEAD
        after += [DEAD] * 3             # ids that the tokenizer does not know
        assert guide.after(state).tolist() == after
        wanted = np.array(after) != DEAD
        wanted[tokenizer.end_of_text] = automaton.accepting[state]
        assert (guide.allowed(state) == wanted).all()
        for room in (1, 2, 3, 7, 30):
            allowed = guide.allowed(state, room)
            assert allowed.any() and not (allowed & ~wanted).any()
            in_time = [wanted[i] and automaton.remaining[after[i]] + 2 <= room
                       for i in range(len(after))]
            if any(in_time) or automaton.accepting[state]:
                in_time[tokenizer.end_of_text] = automaton.accepting[state]
                assert allowed.tolist() == in_time


def test_special_tokens_are_no_text():
    text = json.loads(Tokenizer.train(["ab " * 9], 260).json)
    text["added_tokens"] += [dict(text["added_tokens"][0], id=258 + i, content=name, special=i == 0)
                             for i, name in enumerate(["<|turn|>", "<|plain|>"])]
    tokenizer = Tokenizer(json.dumps(text))
    guide = Regex(r"(<\|turn\|>|<\|plain\|>)").guide(tokenizer, tokenizer.vocabulary)
    comes = {tokenizer.decode([i]) for i in np.flatnonzero(guide.allowed(START))}
    assert b"<|plain|>" in comes and b"<|turn|>" not in comes


# -- what is written -------------------------------------------------------------------------------


@given(patterns(), st.integers(0, 99), st.sampled_from([BYTES, WORDS]),
       st.sampled_from([Sampling(), Sampling(temperature=0), Sampling(top_k=1), Beams(2),
                        Sampling(temperature=3.0, top_p=0.9, repetition_penalty=1.3),
                        Contrastive(), "speculative"]))
def test_every_text_matches_its_pattern(pattern, seed, tokenizer, strategy):
    constraint = Regex(pattern)
    shortest = int(constraint.automaton().remaining[START])
    if strategy == "speculative":
        strategy = Speculative(small_model(tokenizer, seed + 1, width=4), tokens=3)
    done = written(constraint, tokenizer, seed, shortest + 1 + seed % 9, strategy)
    assert done.reason == "end"
    assert re.fullmatch(pattern, done.text, re.ASCII)
    assert done.tokens[-1] == tokenizer.end_of_text


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "words"])
def test_a_choice_is_written_whole_and_every_one_may_be(tokenizer):
    choices = ["abc", "the end of", "ü", "üé", "b"]
    found = {written(Choices(choices), tokenizer, seed, max_tokens=20).text for seed in range(60)}
    assert found <= set(choices) and len(found) > 2


def test_without_room_the_reason_says_so_and_the_text_comes_as_near_as_it_can():
    done = written(Choices(["the end of the text"]), WORDS, max_tokens=3)
    assert done.reason == "length" and "the end of the text".startswith(done.text)
    longest = max((t for t in map(WORDS.decode, np.arange(WORDS.vocabulary)[:, None])
                   if b"the end of the text".startswith(t)), key=len)
    assert WORDS.decode(done.tokens[:1]) == longest
    full = written(Choices(["a" * 80]), BYTES, max_tokens=100)
    assert full.reason == "context" and set(full.text) == {"a"}


def test_the_context_is_steered_by_too():
    model = small_model(BYTES, context=8)
    for seed in range(20):
        done = generate(model, BYTES, ["abcd"], constraint=Regex("a+b"), max_tokens=9, seed=seed)[0]
        assert done.reason == "end" and re.fullmatch("a{1,2}b", done.text)


def test_rows_are_constrained_each_for_itself(backend):
    model, constraint = small_model(BYTES), Regex("[a-c]{2,9}")
    together = generate(model, BYTES, ["x", "yz", "abc"], constraint=constraint, max_tokens=12,
                        strategy=Sampling(temperature=0))
    for prompt, completion in zip(["x", "yz", "abc"], together):
        assert completion == generate(model, BYTES, [prompt], constraint=constraint, max_tokens=12,
                                      strategy=Sampling(temperature=0))[0]
        assert re.fullmatch("[a-c]{2,9}", completion.text)


def test_a_constraint_that_leaves_all_open_changes_nothing(backend):
    model = small_model(BYTES)
    free = generate(model, BYTES, ["ab"], max_tokens=9, strategy=Sampling(temperature=0))[0]
    everything = Choices([free.text.encode("latin-1", "replace"), bytes(BYTES.decode(free.tokens))])
    bound = generate(model, BYTES, ["ab"], max_tokens=10, constraint=everything,
                     strategy=Sampling(temperature=0))[0]
    assert bound.tokens[:9] == free.tokens


@pytest.mark.parametrize("make, said", [
    (lambda: Choices("ab"), "choices: expected a list of texts, got 'ab'"),
    (lambda: Choices([]), "choices: expected a list"),
])
def test_choices_are_a_list(make, said):
    with pytest.raises(ConfigError, match=said):
        make().automaton()


def test_what_does_not_go_together_is_refused():
    model = small_model(BYTES)
    with pytest.raises(ConfigError, match="stop: a text with a constraint ends where"):
        generate(model, BYTES, ["a"], constraint=Choices(["a"]), stop=["b"])
    with pytest.raises(ConfigError, match="the model knows only 100|knows only 100"):
        Guide(Choices(["a"]).automaton(), BYTES, 100)
    text = json.loads(BYTES.json)
    text["added_tokens"] = []
    text["model"]["vocab"].pop("<|endoftext|>", None)
    with pytest.raises(ConfigError, match="no end-of-text token with which a text under a"):
        Choices(["a"]).guide(Tokenizer(json.dumps(text)), 300)


def test_expressions_that_take_too_long_are_refused():
    with pytest.raises(ConfigError, match="too large|states"):
        Regex("((a{1,30}){1,30}){1,30}").automaton()
