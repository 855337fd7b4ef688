"""Chat templates: what the ecosystem's library writes and encodes, and nothing that a user types
is ever a special token.

The golden files are that library's (tests/golden/make_chat.py).
"""

import functools
import json
import re
from datetime import datetime
from pathlib import Path

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from modelling import randomised

from minifm import cli
from minifm.errors import ConfigError, FormatError
from minifm.generation import Beams, Sampling, Speculative, generate
from minifm.hub import end_tokens, save_model
from minifm.models import GPT, GPTConfig
from minifm.rng import Rng
from minifm.text import ChatTemplate, Tokenizer, sandbox
from minifm.text.chat import read_messages
from minifm.text.sandbox import FILTERS, PASSING

HERE = Path(__file__).parent / "golden" / "chat"
GOLDEN = json.loads((HERE / "golden.json").read_text("utf-8"))
CONVERSATIONS = json.loads((HERE / "conversations.json").read_text("utf-8"))
TOKENIZER = Tokenizer.load(HERE)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
STYLES = ("chatml", "headers", "instructions", "roles", "plain")
SPECIAL = {i for i, data in enumerate(TOKENIZER.spellings) if data is None}
NAMES = [TOKENIZER.decode([i]).decode() for i in TOKENIZER.specials]


def template(text):
    return ChatTemplate({"default": (text, "chat_template.jinja", "")}, TOKENS)


def user(content="hello", **more):
    return {"role": "user", "content": content} | more


def specials(ids):
    return [int(i) for i in ids if int(i) in SPECIAL]


STYLE = {name: template((HERE / f"{name}.jinja").read_text("utf-8")) for name in STYLES}


# -- as the ecosystem has it -----------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['template']}-{g['conversation']}")
def test_text_tokens_and_what_is_said_are_those_of_the_ecosystem(golden):
    chat, asked = STYLE[golden["template"]], CONVERSATIONS[golden["conversation"]]
    text = chat.render(**asked)
    assert type(text) is str and text == golden["text"]
    ids, said = chat.encode(TOKENIZER, **asked)
    assert ids.dtype == np.int32 and ids.tolist() == golden["ids"]
    if golden["template"] == "plain":           # which does not mark what is said
        assert said is None and not any(golden["said"])
    else:
        assert said.dtype == bool and said.tolist() == [bool(s) for s in golden["said"]]


words = st.text("abe \n\tÉ漢🙂'<|>/_¼Ⓐ²\u0301\u200d\x1c", max_size=12) | st.text(max_size=6)


@given(style=st.sampled_from(STYLES[:4]), texts=st.lists(words, min_size=1, max_size=4))
def test_without_special_strings_the_text_is_encoded_as_one(style, texts):
    """The ecosystem's encoding of the whole string: merges across the borders of messages too."""
    if any(name in text for text in texts for name in NAMES):
        return
    messages = [{"role": ("user", "assistant")[n % 2], "content": text}
                for n, text in enumerate(texts)]
    text = STYLE[style].render(messages)
    ids, _ = STYLE[style].encode(TOKENIZER, messages)
    assert ids.tolist() == TOKENIZER.encode(text, specials=True).tolist()


def test_merges_go_across_the_borders_of_messages():
    chat, messages = template("{{ messages[0].content }}{{ 'he ' ~ messages[1].content }}"), \
        [user("t"), user("weather")]
    ids, said = chat.encode(TOKENIZER, messages)
    apart = sum(len(TOKENIZER.encode(text)) for text in ("t", "he ", "weather"))
    assert ids.tolist() == TOKENIZER.encode("the weather").tolist() and len(ids) < apart
    assert said is None


VALUES = {"a": " <b> it's\tA \n\n Zürich ", "b": ["x y", "Zz", "q"],
          "d": {"k_2": "v'", "k_1": [1.5]}, "n": 7, "u": "ab", "e": "",
          "l": "one\ntwo\n\n  three\n"}
EXPRESSIONS = [item.strip() for item in """
    a|trim; a|trim(' \\n'); a|upper; a|lower; a|capitalize; a|title; l|indent; l|indent(2, true);
    l|indent('> ', false, true); l|indent(width=1, first=true, blank=true); e|indent;
    a|replace(' ', '_'); a|replace('i', 'I', 1); b|join(', '); b|join; b|map('upper')|join(u);
    b|string; d|tojson; d|tojson(indent=2); d|string; d; b; n; n|string; a|string; a|tojson;
    a|length; b|first; b|last; b|reverse|join; u|reverse; b|sort|join; b|unique|list;
    b|batch(2)|list; b|slice(2)|list; d|dictsort; d|items|list; b|max; b|min; n|abs; n|float;
    '7'|int; n|round; a|wordcount; x|default('y'); u ~ n ~ b ~ none ~ d; u + 'c'; u * 3; 3 * 'ab';
    '%s-%d'|format('a', n); '%(x)s' % {'x': 1}; 'n%d' % n; '{}:{:>3}'.format('a', n);
    '{x}'.format(x=1); u.upper(); u[0]; u[::-1]; u[-1:]; a.split(); l.splitlines();
    a.strip().split(' ', 1); u.startswith('a'); u.find('b'); u.missing is undefined; u['upper']();
    a|list|length; range(3)|list; dict(a=1)|tojson; n // 2; n / 2; 'a' in u; u is string;
    '-'.join(b); ','.join(['x', u]); b|join(', ')|length; u.center(6); u.zfill(4);
    u.ljust(4, '.'); d.items()|list|length; u|safe; a|safe ~ u;
    [u, n]|sum(attribute='x', start=1) if false else 1; b|select('equalto', 'q')|list;
    b|reject('in', ['q'])|join; b|groupby(0)|length; none; true; 1.0; u.rsplit('a');
    u.partition('a')[2]; u.removeprefix('a'); u.expandtabs(); ('a', u); (u,); {u: n};
    cycler('a', 'b').next(); x; not x; u if n > 3; b|attr('count') is callable
""".split(";")]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_written_as_jinja_writes_them(expression):
    library = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    library.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False,
                                                                  indent=indent)
    source = "{% set z = (" + expression + ") %}{{ z }}|{{ " + expression + " }}"
    expected = library.from_string(source).render(**VALUES)
    assert template(source).render([user()], **VALUES) == expected


def test_the_functions_of_the_ecosystem():
    now = datetime.now()
    text = template("{{ strftime_now('%Y') }}{% set ns = namespace(a=1) %}{% set ns.a = 2 %}"
                    "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}"
                    "{% endfor %}{{ ns.a }}{{ dict.fromkeys(['k'], 1).k }}").render([user()])
    assert text in (f"{year}0121" for year in (now.year, datetime.now().year))
    # Blocks take their line's end and what stands before them; one line feed at the end goes.
    assert template("a\n  {% if true %}\nb\n  {% endif %}\nc\n").render([user()]) == "a\nb\nc"


def test_none_is_left_out_and_reasoning_has_all_of_its_names():
    chat = template("{% for m in messages %}{{ m.name is defined }} {{ m.reasoning_content }} "
                    "{{ m.thinking }};{% endfor %}")
    assert chat.render([user(name=None, reasoning="r"), user(thinking="t")]) \
        == "False r r;False t t;"


# -- nothing of the caller's is special ------------------------------------------------------------


PIECES = [*NAMES, "<|", "|>", "<|im_", "im_end", "end|>", "[INST", "]", "</", "s>", "<|user",
          "</think>", "<think>", "a", " ", "\n", "'", '"', "\\", "{{ bos_token }}",
          "{% generation %}", "é"]
nasty = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


def harmless(value):
    """The same conversation without a character that special strings have."""
    if isinstance(value, str):
        return re.sub(r"[^\s]", "é", value)
    if isinstance(value, dict):
        return {key: item if key in ("role", "type") else harmless(item)
                for key, item in value.items()}
    return [harmless(item) for item in value] if isinstance(value, list) else value


@given(style=st.sampled_from(STYLES[:4]), texts=st.lists(nasty, min_size=5, max_size=5))
def test_no_special_token_comes_from_a_message_a_tool_or_a_name(style, texts):
    one, two, three, four, five = texts
    call = {"id": one * 9, "function": {"name": two,
                                        "arguments": {three or "k": [four, {five: 1}]}}}
    asked = {"messages": [{"role": "system", "content": one}, user(two),
                          {"role": "assistant", "content": three}, user(five)]}
    tools = [{"function": {"name": four, three: five}}]
    if style in ("chatml", "headers"):
        asked["messages"][3:3] = [{"role": "assistant", "content": four, "tool_calls": [call]},
                                  {"role": "tool", "content": five}]
    if style != "roles":
        asked["tools"] = tools
    ids, said = STYLE[style].encode(TOKENIZER, **asked)
    expected, marked = STYLE[style].encode(TOKENIZER, **harmless(asked))
    assert specials(ids) == specials(expected)
    special = np.isin(ids, list(SPECIAL))
    assert said[special].tolist() == marked[np.isin(expected, list(SPECIAL))].tolist()
    if style != "roles":        # whose tokens swallow white space
        assert TOKENIZER.decode(ids).decode() == STYLE[style].render(**asked)


# What templates do with a message's text. Each writes it, and a special string of their own.
WAYS = [item.strip() for item in """
    again; self.body(); [again, 1]|string;
    m.content; m.content|trim; m.content|string; m.content ~ ''; '' + m.content; m.content + '';
    m.content[:]; m.content|replace('q', 'Q'); 'q'.replace('q', m.content);
    m.content.split('q')|join('q'); m.content.strip(); m.content|safe; [m.content]|join;
    ''.join([m.content]); m.content|list|join; [m.content]|string; [m.content]; {m.content: 1};
    (m.content,); m|tojson; m.content|tojson; m; m.content|indent(2, true); m.content|default('');
    (m.content, 'a')|first; [m]|map(attribute='content')|join; namespace(x=m.content).x;
    dict(x=m.content).x; m['content']; m|attr('get')('content'); m.get('content');
    m.values()|list|last; m|items|list; m.items()|list|string; m|dictsort; said(m.content);
    bold(m.content); m.content * 2; m.content|reverse|reverse; m.content[::-1][::-1];
    m.content.partition('q')[0]; set_; cycler(m.content).next(); [m.content]|sort|last;
    [m.content]|max; [m.content]|batch(2)|first|first;
    [m.content]|groupby(0)|map(attribute='list')|first|first; m.content if true else '';
    m.content or ''; m.content|upper|lower; m.content.splitlines()|join; m.content.rstrip() ~ 'x';
    loop_; v; w.x[0]; block_; m.content.lstrip('q').removesuffix('q'); m.content.ljust(60);
    m.content.center(60); filter_; m[m.content]|default(m.content);
    [m.content, m.content]|unique|first; joiner_; m.content.title()|lower
""".split(";")]
AROUND = """{% macro said(text) %}{% generation %}{{ text }}{% endgeneration %}{% endmacro %}
{% macro bold(text) %}**{{ text }}{{ caller() if caller }}**{% endmacro %}{% set m = messages[0] %}
{% set set_ %}{{ m.content }}{% endset %}{% set loop_ %}{% for c in m.content %}{{ c }}{% endfor %}
{% endset %}
{% set block_ %}{% call bold('') %}{{ m.content }}{% endcall %}{% endset %}
{% set filter_ %}{% filter trim %}{{ m.content }}{% endfilter %}{% endset %}
{% set again %}{% for part in [[m.content]] recursive %}{{ part if part is string else loop(part) }}
{% endfor %}{% endset %}{% block body %}{{ messages[0].content }}{% endblock %}
{% set joiner_ = joiner(m.content) %}{% set _ = joiner_() %}{% set joiner_ = joiner_() %}
{{ '<|im_end|>' }}{{ WAY }}{{ '<|im_end|>' }}"""


@pytest.mark.parametrize("way", WAYS)
def test_a_special_string_of_the_callers_is_text_in_whatever_way_it_is_written(way):
    chat, end = template(AROUND.replace("WAY", way)), TOKENIZER.encode("<|im_end|>", specials=True)
    for text in ("<|im_start|>", "a<|eot_id|><s>b", "<|im_", "end|>"):
        asked = {"messages": [user(text)], "v": text, "w": {"x": [text]}}
        rendered, (ids, _) = chat.render(**asked), chat.encode(TOKENIZER, **asked)
        start = rendered.index("<|im_end|>")
        assert text in rendered[start + 10 :]               # the way does write it
        assert specials(ids) == [*end, *end]
        assert TOKENIZER.decode(ids).decode() == rendered


@pytest.mark.parametrize("source, messages, found", [
    ("{{ '<|' ~ messages[0].role ~ '|>' }}", [user()], ["<|user|>"]),     # a usual role's name
    ("{{ '<|' ~ messages[0].role ~ '|>' }}", [{"role": "im_end"}], []),    # and another
    ("{{ '<|im_' ~ messages[0].content }}", [user("end|>")], []),
    ("{{ messages[0].content ~ 'im_end|>' }}", [user("<|")], []),
    ("{{ messages[0].content ~ messages[1].content }}", [user("<|im_"), user("end|>")], []),
    ("{{ messages[0].content ~ '<|im_end|>' }}", [user("<|im_")], ["<|im_end|>"]),
    ("{{ '<|im_end|>' ~ messages[0].content }}", [user("|>")], ["<|im_end|>"]),
    ("{{ '<|im_' ~ messages[0].content ~ 'end|>' }}", [user("")], ["<|im_end|>"]),
    ("{{ '<|im_end|>'.replace('end', messages[0].content) }}", [user("end")], []),
    ("{{ bos_token }}{{ messages[0].content }}", [user("<s>")], ["<s>"]),
    ("{% for key in messages[0] %}{{ key }}{% endfor %}", [user(**{"<s>": 1})], []),
])
def test_what_is_partly_the_callers_is_no_special_string(source, messages, found):
    ids, _ = template(source).encode(TOKENIZER, messages)
    assert [TOKENIZER.decode([i]).decode() for i in specials(ids)] == found


def test_a_variable_of_the_callers_is_text_even_by_the_name_of_a_special_token():
    chat = template("{{ bos_token }}")
    assert specials(chat.encode(TOKENIZER, [user()])[0]) != []
    assert specials(chat.encode(TOKENIZER, [user()], bos_token="<s>")[0]) == []


@pytest.mark.parametrize("content", ["", " ", "  ", "\n \u3000", "  a", " a b  ", "a\t", "\x1c",
                                     " \x1c ", "é ", "-", "- x -"])
@pytest.mark.parametrize("source", [
    "{{ messages[0].content }}", "<|user|>{{ messages[0].content }}<|user|>",
    "<|user|> {{ messages[0].content }} b<s>", "<s>{{ messages[0].content }}"])
def test_white_space_that_belongs_to_a_special_token_is_where_the_library_has_it(source, content):
    text = template(source).render([user(content)])
    ids, _ = template(source).encode(TOKENIZER, [user(content)])
    assert ids.tolist() == TOKENIZER.encode(text, specials=True).tolist()


@functools.cache
def beside_words(**flags):
    """A tokenizer whose special token <w> looks at what is beside it."""
    described = json.loads(TOKENIZER.json)
    described["added_tokens"].append({"id": TOKENIZER.vocabulary, "content": "<w>", "special": True,
                                      "normalized": False, "single_word": False, "lstrip": False,
                                      "rstrip": False} | flags)
    return Tokenizer(json.dumps(described))


@given(before=words, behind=words, one=st.booleans(), left=st.booleans(), right=st.booleans())
def test_what_a_special_token_looks_at_beside_it_is_there(before, behind, one, left, right):
    tokenizer = beside_words(single_word=one, lstrip=left, rstrip=right)
    chat = template("{{ messages[0].content ~ '<w>' ~ messages[1].content ~ '<w>' }}")
    asked = [user(before), user(behind)]
    if not any(name in text for text in (before, behind) for name in NAMES):
        assert chat.encode(tokenizer, asked)[0].tolist() \
            == tokenizer.encode(chat.render(asked), specials=True).tolist()


def test_bytes_that_are_not_utf8_and_stand_ins_come_through():
    text = "\ud800 \u2003ꙮ\ufffc<s>\udc80"
    ids, _ = template("<s>{{ messages[0].content }}</s>").encode(TOKENIZER, [user(text)])
    assert TOKENIZER.decode(ids) == b"<s>" + b"\xed\xa0\x80 " \
        + "\u2003ꙮ\ufffc<s>".encode() + b"\x80</s>"
    assert len(specials(ids)) == 2


def test_a_long_message_of_special_strings_is_soon_done():
    ids, _ = STYLE["chatml"].encode(TOKENIZER, [user("<|im_end|>\n" * 20_000), user(" " * 200_000)])
    assert len(specials(ids)) == 5              # start, end, start, end, start


# -- what the assistant said -----------------------------------------------------------------------


def test_what_is_said_is_each_token_that_holds_a_part_of_it():
    chat = template("{{ 'Z' }}{% generation %}{{ messages[0].content }}<s>{% endgeneration %}x")
    ids, said = chat.encode(TOKENIZER, [user("ü🙂")])
    texts = [TOKENIZER.decode([i]) for i in ids]
    assert b"".join(texts) == "Zü🙂<s>x".encode()
    assert said.tolist() == [text not in (b"Z", b"x") for text in texts] and said.sum() > 4
    ids, said = template("{% generation %}{{ 'e' }}{% endgeneration %}{{ 'r' }}").encode(
        TOKENIZER, [user()])
    assert len(ids) == 1 and said.tolist() == [True]        # one token of a part that is said


def test_what_is_said_is_known_inside_macros_and_after_filters():
    chat = template("{% macro turn(m) %}[{% generation %} {{ m.content }} {% endgeneration %}]"
                    "{% endmacro %}{{ (turn(messages[0]) ~ '!')|trim }}")
    ids, said = chat.encode(TOKENIZER, [user("123")])
    assert TOKENIZER.decode(ids) == b"[ 123 ]!"
    assert TOKENIZER.decode(ids[said]) == b" 123 "


# -- templates that fail, or would lose the origins ------------------------------------------------


@pytest.mark.parametrize("source, kind, said", [
    ("a\n{% if %}", FormatError, r"x\.jinja: line 2: the chat template is no Jinja: Expected an"),
    ("{% for i in x %}" * 25 + "{% endfor %}" * 25, FormatError, "cannot be compiled: too many"),
    ("{{ raise_exception('a\nb') }}", ConfigError, "refuses them: a b"),
    ("{{ x|nothing }}", FormatError, "line 1: the chat template is no Jinja: No filter named"),
    ("\n{{ messages[0].x.y }}", FormatError, "line 2: the chat template fails: 'dict obj"),
    ("{{ 'a' + 1 }}", FormatError, "line 1: the chat template fails: can only concat|must be str"),
    ("\n\n{{ raise_exception('be nice') }}", ConfigError, "refuses them: be nice .*: line 3"),
    ("{% for i in range(10 ** 9) %}{% endfor %}", FormatError, "Range too big"),
    ("{{ 'ab' * 10 ** 4 * 10 ** 4 }}", FormatError, "more than 1,048,576 characters or items by"),
    ("{{ raise_exception(messages) }}", ConfigError, r"refuses them: \[{'role': 'user'"),
    ("{{ raise_exception('\x1b[31m') }}", ConfigError, r"refuses them: \\x1b\[31m"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", FormatError, "recursion"),
    ("{{ messages.__class__.x }}", FormatError, "access to attribute '__class__'.*unsafe"),
    ("{{ ''.__class__.x }}", FormatError, "access to attribute '__class__' of 'str'.*unsafe"),
    ("{{ messages[0].content.origins.x }}", FormatError, "'str object' has no attribute 'origins'"),
    ("{{ ''['__class__'].x }}", FormatError, "unsafe"),
    ("{{ messages.append(1) }}", FormatError, "unsafe"),
    ("{{ namespace(_a=1) }}", FormatError, "begins with an underscore"),
    ("{% set n = namespace() %}{% set n._a = 1 %}", FormatError, "begins with an underscore"),
    ("{% include 'other' %}", FormatError, "fails: no loader"),
    ("{{ lipsum() }}", FormatError, "'lipsum' is undefined"),
    ("{{ undefined_ | tojson }}", FormatError, "not JSON serializable"),
    ("{{ 1 // 0 }}", FormatError, "line 1: the chat template fails: "),
    ("\n{{ messages[0].content|escape }}", FormatError, "line 2: not supported .* filter 'escape'"),
    ("{{ [messages[0].content]|map('urlize')|list }}", FormatError, "the filter 'urlize'"),
    ("{% autoescape true %}a{% endautoescape %}", FormatError, "autoescape is not supported"),
    ("{{ messages[0].content.encode() }}", FormatError, "the method 'encode'"),
    ("{{ messages[0].content['encode']() }}", FormatError, "the method 'encode'"),
    ("{{ 'a{}'['format'](messages[0].content) }}", FormatError, "the method 'format'"),
    ("{{ messages[0].content.translate({}) }}", FormatError, "the method 'translate'"),
    ("{{ '%s' % messages[0].content }}", FormatError, "% with a text on its left"),
    ("{{ '%s' % (messages[0].content,) }}", FormatError, "% with a text on its left"),
    ("{{ '%s' % [messages] }}", FormatError, "% with a text on its left"),
    ("{{ '%(a)s' % {'a': messages[0].content} }}", FormatError, "% with a text on its left"),
    ("{{ '%s'|format(messages[0].content) }}", FormatError, "% with a text on its left"),
    ("{{ '%(a)s'|format(a=messages[0].content) }}", FormatError, "% with a text on its left"),
    ("{{ messages[0].content % 1 }}", FormatError, "% with a text on its left"),
    ("{{ '{}'.format(messages[0].content) }}", FormatError, "the method 'format'"),
    ("{{ '{a.x}'.format(a=namespace(x=messages[0].content)) }}", FormatError, "'format'"),
    ("{{ '{0[content]}'.format(messages[0]) }}", FormatError, "the method 'format'"),
    ("{{ '{a}'.format_map({'a': messages[0].content}) }}", FormatError, "the method 'format_map'"),
    ("{{ ''|attr('format')(messages[0].content) }}", FormatError, "the method 'format'"),
    ("{{ messages[0].content.format() }}", FormatError, "the method 'format'"),
    ("{{ namespace(x=messages[0].content) }}", FormatError, "a _Namespace as text"),
    ("{{ messages[0].values() }}", FormatError, "a dict_values as text"),
    ("{{ 'a' ~ messages[0].items() }}", FormatError, "a dict_items as text"),
    ("{{ strftime_now(messages[0].content ~ '%Y') }}", FormatError, "both the caller's and"),
    ("{{ (messages[0].content|safe) + 'a' }}", FormatError, "with a text that is `safe`"),
    ("{{ 'a' + (messages[0].content|safe) }}", FormatError, "with a text that is `safe`"),
    ("{{ ('<'|safe).replace('a', 'b') }}", FormatError, "the method 'replace' of a text that is"),
])
def test_a_template_that_fails_is_one_line_with_what_and_where(source, kind, said):
    chat = ChatTemplate({"default": (source, "x.jinja", "")})
    with pytest.raises(kind, match=said) as caught:
        chat.render([user()])
    assert "\n" not in str(caught.value) and "x.jinja" in str(caught.value)


@pytest.mark.parametrize("source", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 5 in range(99999)|list }}{% endfor %}",
    "{% for m in [1] recursive %}{{ loop([1]) ~ loop([1]) if loop.depth < 99 }}{% endfor %}",
    "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(99) }}",
    "{% macro m(n) %}{{ caller(n) ~ caller(n) if n }}{% endmacro %}"
    "{% macro k(n) %}{% call(i) m(n) %}{{ k(i - 1) }}{% endcall %}{% endmacro %}{{ k(40) }}",
    "{% set n = namespace(d=0) %}{% block a %}{% set n.d = n.d + 1 %}{% if n.d < 90 %}"
    "{{ self.a() }}{{ self.a() }}{% endif %}{% set n.d = n.d - 1 %}{% endblock %}",
    "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% set n.x = n.x * 3 // 2 % 7919 %}{% endfor %}{% endfor %}"])
def test_a_template_without_an_end_is_ended(source, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    with pytest.raises(FormatError, match="line 1: the chat template fails: it runs for more than"):
        template(source).render([user()])
    monkeypatch.setattr(sandbox, "SECONDS", 20)
    chat = template("{% for i in range(99) %}{{ i }}{% endfor %}")
    assert chat.render([user()]) == chat.render([user()])       # each has a time of its own


@pytest.mark.parametrize("source", [
    "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% for i in range(99) %}{% set ns.x = [ns.x]|join ~ ns.x %}{% endfor %}",
    "{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "{% for i in range(99) %}{% set ns.x = ns.x.replace('a', 'aaaaaaaaa') %}{% endfor %}",
    "{{ ns.l * 10 ** 10 }}",
    "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{{ 99999 ** 99999 }}", "{{ 10 ** 5000 }}", "{{ 'a'.center(10 ** 10) }}",
    "{{ 'a'.ljust(10 ** 10) }}", "{{ 'a'.rjust(width=10 ** 10) }}", "{{ 'a'.zfill(10 ** 10) }}",
    "{{ '\t'.expandtabs(10 ** 9) }}", "{{ 'a\nb'|indent(10 ** 10) }}",
    "{{ messages|batch(10 ** 10, 'x')|list }}", "{{ messages|slice(10 ** 10)|list }}",
    "{{ messages|tojson(indent=10 ** 9) }}", "{{ '%10000000000d' % 1 }}",
    "{{ '%-0*d' % (10 ** 10, 1) }}", "{{ '%(a)9999999999s'|format(a=1) }}",
    "{{ '{:>10000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "{{ (messages[0].content * 9999 ~ messages[0].content * 9999)|list }}",
    "{{ (('l' * 10 ** 6) ~ ('l' * 10 ** 6) ~ messages[0].content).split('l') }}",
    "{% for i in range(99999) %}{{ 'a' * 10 ** 6 }}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 10 ** 6 }}{% endfor %}{% endset %}",
    "{% for i in range(99999) %}{% set ns.l = ns.l + ['a' * 10 ** 6] %}{% endfor %}"])
def test_a_template_makes_nothing_of_unreasonable_size(source):
    chat = ChatTemplate({"default": (
        "{% set ns = namespace(x='aaaa', l=[0], n=3) %}" + source, "x.jinja", "")})
    with pytest.raises(FormatError, match="fails: (more than [0-9,]+ |a format of such a width|"
                                          "Exceeds the limit)|cannot be compiled: Exceeds") as said:
        chat.render([user("hello there " * 10)])
    assert "\n" not in str(said.value)


def test_widths_and_texts_of_good_will_are_as_they_were():
    text = template(
        "{{ 'a'.center(9) }}{{ 'b\nc'|indent(2) }}{{ '%-5s%s|' % ('d', 10 ** 9) }}"
        "{{ '**%s**' % 'e' }}{{ '{:>4}{{}}'.format(7) }}{{ [1, 2, 3]|batch(2)|list }}"
        "{{ 2 ** 40 }}{{ '-' * 5 }}{{ [0] + [1] }}{{ 3 * 4 }}").render([user()])
    assert text == "    a    b\n  cd    1000000000|**e**   7{}" \
        "[[1, 2], [3]]1099511627776-----[0, 1]12"


def test_a_filter_is_listed_or_refused():
    """What Jinja may add in a later version is refused, and what is passed on is known there."""
    assert set(PASSING) <= jinja2.filters.FILTERS.keys() | set()
    for name in jinja2.filters.FILTERS.keys() - FILTERS.keys() - set(PASSING):
        with pytest.raises(FormatError, match=f"the filter '{name}'"):
            template("{{ messages[0].content|" + name + " }}").render([user()])


def test_jinja_that_is_missing_is_said(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "minifm.text.sandbox", None)
    with pytest.raises(Exception, match=r"pip install 'minifm\[chat\]'"):
        template("a").render([user()])


# -- what the caller gives -------------------------------------------------------------------------


loop = [1]
loop.append(loop)


@pytest.mark.parametrize("asked, said", [
    ({"messages": []}, "messages: expected a list of at least one, got \\[\\]"),
    ({"messages": "hello"}, "messages: expected a list of at least one, got 'hello'"),
    ({"messages": [user(), "hello"]}, "message 2 of 2: expected an object with a role"),
    ({"messages": [{"content": "x"}]}, "message 1 of 1: expected an object with a role"),
    ({"messages": [{"role": 1}]}, "message 1 of 1: expected an object with a role"),
    ({"messages": [user(b"x")]}, "message 1 of 1: expected what JSON can say, got a bytes: b'x'"),
    ({"messages": [user({1: 2})]}, "message 1 of 1: expected what JSON can say, got a dict"),
    ({"messages": [user(loop)]}, "nested too deeply"),
    ({"messages": [user()], "tools": [print]}, "tools: expected a list of objects"),
    ({"messages": [user()], "tools": {"a": 1}}, "tools: expected a list of objects"),
    ({"messages": [user()], "f": print}, "variables: expected what JSON can say, got a builtin"),
])
def test_messages_that_are_none_are_refused_in_one_line(asked, said):
    with pytest.raises(ConfigError, match=said):
        template("{{ messages }}").render(**asked)


def test_files_of_messages(tmp_path):
    lines, listed = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text(json.dumps(user("a\u2028b")) + "\n\n" + json.dumps(user(), ensure_ascii=False))
    assert read_messages(lines) == ([user("a\u2028b"), user()], None)
    listed.write_text(json.dumps([user()]))
    assert read_messages(str(listed)) == ([user()], None)
    listed.write_text(json.dumps({"messages": [user()], "tools": [{}]}))
    assert read_messages(listed) == ([user()], [{}])
    for file, text, said in ((lines, '{}\n{"', "a.jsonl: line 2: not JSON"),
                             (listed, "[", "not JSON"),
                             (listed, '{"message": []}', "message: unknown; expected `messages`"),
                             (listed, '{"tools": []}', "expected messages, got None"),
                             (listed, "3", "expected messages, got 3")):
        file.write_text(text)
        with pytest.raises(FormatError, match=said):
            read_messages(file)
    for file, text in ((lines, json.dumps(user()) + "\n"), (listed, json.dumps([user()]))):
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())      # a byte order mark
        assert read_messages(file) == ([user()], None)
    (tmp_path / "a.txt").write_text("[]")
    with pytest.raises(ConfigError, match="a.txt: expected a file that ends in .jsonl, a message"):
        read_messages(tmp_path / "a.txt")
    with pytest.raises(FormatError) as caught:
        read_messages(tmp_path / "nowhere.json")
    assert str(caught.value).count("nowhere.json") == 1


# -- directories -----------------------------------------------------------------------------------


def write(directory, **settings):
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def test_where_a_template_is_found(tmp_path):
    asked = [user()]
    with pytest.raises(ConfigError, match="no chat template is here, neither chat_template.jinj"):
        ChatTemplate.load(tmp_path)
    write(tmp_path, chat_template="c{{ bos_token }}{{ eos_token }}", bos_token={"content": "B"},
          eos_token="E")
    assert ChatTemplate.load(tmp_path).render(asked) == "cBE"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("t{{ bos_token }}")
    with pytest.raises(ConfigError, match="none is called 'default'; there are tool_use"):
        ChatTemplate.load(tmp_path).render(asked)           # the files count, all or none
    (tmp_path / "chat_template.jinja").write_text("f{{ bos_token }}")
    chat = ChatTemplate.load(tmp_path)
    assert [chat.render(asked), chat.render(asked, tools=[])] == ["fB", "tB"]


def test_several_templates_in_the_settings(tmp_path):
    write(tmp_path, chat_template=[{"name": "default", "template": "d"},
                                   {"name": "tool_use", "template": "t\n{{ 1 // 0 }}"}])
    chat = ChatTemplate.load(tmp_path)
    assert chat.render([user()]) == "d"
    with pytest.raises(FormatError, match="config.json: chat_template tool_use, line 2: "):
        chat.render([user()], tools=[])
    for wrong in (3, ["x"], [{"name": "default"}], {"name": 1, "template": "x"}):
        write(tmp_path, chat_template=wrong)
        with pytest.raises(FormatError, match="chat_template: expected a template, or a list"):
            ChatTemplate.load(tmp_path)


def test_a_tokenizer_that_is_saved_keeps_its_templates(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
    TOKENIZER.save(here)
    (here / "additional_chat_templates").mkdir()
    names = "chat_template.jinja", "additional_chat_templates/tool_use.jinja"
    for name in names:
        (here / name).write_text(f"{name} é\n", "utf-8")
    Tokenizer.load(here).save(there)
    assert ChatTemplate.load(there).render([user()], []) == f"{names[1]} é"
    for name in names:
        assert (there / name).read_bytes() == (here / name).read_bytes()


@pytest.mark.parametrize("generation, config, expected", [
    ({"eos_token_id": [3, 5]}, {"eos_token_id": 1}, (3, 5)), ({"eos_token_id": 4}, {}, (4,)),
    ({}, {"eos_token_id": 1}, ()), (None, {"eos_token_id": 1}, (1,)), (None, None, ()),
    ({"eos_token_id": "x"}, {}, None), ({"eos_token_id": [1, -1]}, {}, None),
    ({"eos_token_id": [True]}, {}, None),
])
def test_which_tokens_end_a_turn(tmp_path, generation, config, expected):
    for name, found in (("generation_config.json", generation), ("config.json", config)):
        if found is not None:
            (tmp_path / name).write_text(json.dumps(found))
    if expected is None:
        with pytest.raises(FormatError, match="eos_token_id: expected the id of a token or a list"):
            end_tokens(tmp_path)
    else:
        assert end_tokens(tmp_path) == expected


# -- answers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """(directory, model): a tiny model with the template in the style of ChatML."""
    directory = tmp_path_factory.mktemp("model")
    model = randomised(GPT(GPTConfig(vocabulary=TOKENIZER.vocabulary, context=96, layers=1, heads=2,
                                     width=16)), std=0.5)
    save_model(model, directory, TOKENIZER)
    (directory / "chat_template.jinja").write_bytes((HERE / "chatml.jinja").read_bytes())
    return directory, model


@pytest.mark.parametrize("strategy", [Sampling(top_k=1), Beams(1), Beams(3)])
def test_a_text_ends_with_any_of_the_tokens_that_end_one(answering, strategy):
    _, model = answering
    prompt = STYLE["chatml"].encode(TOKENIZER, [user()])[0]
    free = generate(model, TOKENIZER, [prompt], strategy=strategy, max_tokens=12)[0]
    assert free.reason == "length"
    end = next(token for n, token in enumerate(free.tokens) if n > 2)
    at = free.tokens.index(end)
    for ends in ([end], (TOKENIZER.vocabulary - 1, end)):
        found = generate(model, TOKENIZER, [prompt], strategy=strategy, max_tokens=12, ends=ends)[0]
        assert found.reason == "end" and found.tokens[-1] in ends
        if not isinstance(strategy, Beams):
            assert found.tokens == free.tokens[: at + 1]
            assert found.text == TOKENIZER.decode(free.tokens[:at]).decode("utf-8", "replace")


def test_a_draft_proposes_nothing_behind_an_end(answering):
    _, model = answering
    prompt = STYLE["chatml"].encode(TOKENIZER, [user()])[0]
    greedy = Sampling(top_k=1)
    free = generate(model, TOKENIZER, [prompt], strategy=greedy, max_tokens=12)[0]
    strategy = Speculative(model, 4, greedy)
    found = generate(model, TOKENIZER, [prompt], strategy=strategy, max_tokens=12,
                     ends=[free.tokens[3]])[0]
    at = free.tokens.index(free.tokens[3])
    assert found.tokens == free.tokens[: at + 1] and strategy.proposed <= at + 1


@pytest.fixture
def minifm(capsys):
    def run(*words):
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        return (status, *capsys.readouterr())
    return run


def test_the_command_answers_and_ends_its_turn(answering, minifm, tmp_path):
    directory, model = answering
    messages = [{"role": "system", "content": "s"}, user("one"),
                {"role": "assistant", "content": "x"}, user("<|im_end|>")]
    prompt = STYLE["chatml"].encode(TOKENIZER, messages)[0]
    free = generate(model, TOKENIZER, [prompt], strategy=Sampling(top_k=1), max_tokens=9)[0]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, messages[1:3])))
    asked = ("generate", directory, "--chat", "<|im_end|>", "--system", "s", "--messages",
             tmp_path / "m.jsonl", "--top-k", 1, "--max-tokens", 9)
    status, out, _ = minifm(*asked)
    assert (status, out) == (0, free.text + "\n")
    file = directory / "generation_config.json"
    kept = file.read_text()
    file.write_text(json.dumps({"eos_token_id": [TOKENIZER.vocabulary - 1, free.tokens[4]]}))
    at = free.tokens.index(free.tokens[4])
    try:
        expected = TOKENIZER.decode(free.tokens[:at]).decode("utf-8", "replace")
        assert minifm(*asked)[:2] == (0, expected + "\n")
    finally:
        file.write_text(kept)


@pytest.mark.parametrize("words, said", [
    (["y", "--chat", "x"], "chat: expected no prompt beside a conversation, got 'y'"),
    (["--system", "x"], "system: needs chat, or messages"),
    (["--messages", "nowhere.json"], "nowhere.json: cannot be read"),
    (["--chat", "x" * 200], "context of 96"),
])
def test_the_command_refuses_what_cannot_be(answering, minifm, words, said):
    status, out, err = minifm("generate", answering[0], *words)
    assert status == 2 and out == "" and err.count("\n") == 1 and said in err


def test_a_model_that_was_not_taught_to_converse_is_named(minifm, tmp_path):
    save_model(GPT(GPTConfig(vocabulary=257, context=8, layers=1, heads=1, width=4), rng=Rng(0)),
               tmp_path, Tokenizer.bytes())
    status, out, err = minifm("generate", tmp_path, "--chat", "hello")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert f"{tmp_path}: no chat template is here" in err
