"""The language of chat templates: Jinja as the ecosystem sets it up, over texts that keep their
origins (provenance.py). Importing this imports Jinja; only `ChatTemplate` does.

A template is somebody else's program, so it runs in Jinja's sandbox, and not for ever: its loops,
macros and blocks look at the clock, and what it does in one step is bounded in size. And a text may
come out of it only by ways that are listed here and keep its origin. Whatever Jinja has beside them
(`|escape`, `|urlize`, autoescaping, …) makes a str that knows nothing, and is refused when used.
"""

import datetime
import functools
import re
import string
import threading
import time

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_title, make_attrgetter, pass_environment
from jinja2.nodes import CallBlock
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from minifm.text.provenance import (
    LONGEST,
    METHODS,
    Traced,
    Untraceable,
    concat,
    literal,
    plain,
    require_fewer,
    said,
    to_json,
)

SECONDS = 10                # of a processor, that a template may take
MADE = 16 * LONGEST         # characters and items of all that it makes, whatever it keeps of them
WIDEST = 1 << 20            # characters or items that a number may ask for: by *, center, batch, …
BITS = 1 << 14              # of a whole number: more digits Python would not write
# What takes a width.
FILLING = frozenset("batch slice indent tojson center ljust rjust zfill expandtabs".split())
# What is done again and again in a template.
REPEATED = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
# Jinja's filters that give numbers, or the very texts that they were given.
PASSING = """abs attr batch count d default dictsort first float groupby int items last length list
    map max min reject rejectattr reverse round select selectattr slice sort sum unique
    wordcount""".split()


class Refusal(TemplateError):
    """What a template says of the messages, by raise_exception(…)."""


def shown(value):
    """str() of a value; raises Untraceable for what may hide text of the caller's. A number is no
    text: its digits are the template's, whoever gave it."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, Undefined) else literal(value)


class Environment(ImmutableSandboxedEnvironment):
    """Blocks trimmed as everywhere in the ecosystem, its functions, and texts with origins."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    concat = staticmethod(concat)           # of a macro, a block, the whole template

    def __init__(self):
        self.clock = _Clock()
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=self.written,
                         extensions=[Generation, loopcontrols])
        self.marks_said = False             # until a template has {% generation %}
        self.code_generator_class = _Generator
        self.filters = {name: _refused(f"the filter {name!r}") for name in self.filters} \
            | {name: self.filters[name] for name in PASSING} | FILTERS
        self.filters |= {name: _of_a_width(self.filters[name])
                         for name in FILLING & self.filters.keys()}
        self.globals = {"range": self.globals["range"], "dict": _Dict(), "cycler": Cycler,
                        "joiner": Joiner, "namespace": _Namespace, "strftime_now": strftime_now,
                        "raise_exception": raise_exception}

    def render(self, program, values):
        """What a template of this environment writes; raises whatever goes wrong in it."""
        self.clock.begin()
        return program.render(values)

    def step(self):
        """True; raises TimeoutError in a template that has run for too long."""
        return self.clock.look()

    def _parse(self, source, name, filename):
        """As Jinja does; and all that may be done again looks at the clock."""
        tree = super()._parse(source, name, filename)
        for node in list(tree.find_all(REPEATED)):
            look = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(look))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(look, node.test)
            node.set_lineno(node.lineno)            # of what is new in it
        return tree.set_environment(self)

    def written(self, value):
        """What {{ value }} writes."""
        return self.clock.made(shown(value))

    def joined(self, values):
        """a ~ b ~ …"""
        return self.clock.made(concat(map(shown, values)))

    def getattr(self, obj, attribute):
        return self._of_text(obj, attribute) if isinstance(obj, str) \
            else super().getattr(obj, attribute)

    def getitem(self, obj, argument):
        return self._of_text(obj, argument) if isinstance(obj, str) and isinstance(argument, str) \
            else super().getitem(obj, argument)

    def _of_text(self, text, name):
        """What `name` is of a text: a method that keeps track, or undefined."""
        if not hasattr(str, name):
            return self.undefined(obj=plain(text), name=name)
        if name.startswith("_"):
            return self.unsafe_undefined(plain(text), name)
        if isinstance(text, _Safe):
            raise Untraceable(f"the method {name!r} of a text that is `safe`")
        if name in ("format", "format_map"):
            method = self.wrap_str_format(getattr(plain(text), name))
            return functools.partial(_formatted, method, text)
        if name not in METHODS:
            raise Untraceable(f"the method {name!r} of a text")
        method = getattr(Traced.of(text), name)
        return _of_a_width(method) if name in FILLING else method

    def call_binop(self, context, operator, left, right):
        if operator == "%" and isinstance(left, str):
            return percent(left, *right) if isinstance(right, tuple) else percent(left, right)
        _require_small(operator, left, right)
        return self.clock.made(super().call_binop(context, operator, left, right))


class _Generator(CodeGenerator):
    """The compiler of templates, in which nothing makes a str behind the environment's back."""

    def visit_Concat(self, node, frame):
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_EvalContextModifier(self, node, frame):
        self.fail("autoescape is not supported", node.lineno)

    visit_ScopedEvalContextModifier = visit_EvalContextModifier


class Generation(Extension):
    """{% generation %} … {% endgeneration %}: the assistant says what is inside."""

    tags = {"generation"}

    def parse(self, parser):
        self.environment.marks_said = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller):
        return said(caller())


# -- bounds ----------------------------------------------------------------------------------------


class _Clock(threading.local):
    """How long this thread has been at work in a template (its own time, so that other programs
    do not matter), and how much was made."""

    end, size = 0.0, 0

    def begin(self):
        self.end, self.size = time.thread_time() + SECONDS, 0

    def look(self):
        if time.thread_time() > self.end:
            raise TimeoutError(f"it runs for more than {SECONDS} seconds, and may never end")
        return True

    def made(self, value):
        """The value; raises OverflowError where all of them together are too much."""
        if isinstance(value, (str, list, tuple)):
            self.size += len(value)
            require_fewer(self.size, MADE, "characters or items made in all")
        return value


def _require_small(operator, left, right):
    """Raise OverflowError where left operator right would be too large."""
    sized = (str, list, tuple)
    if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        most = LONGEST if isinstance(left, str) else WIDEST
        require_fewer(len(left) + len(right), most, "characters or items together")
    if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
        bits = left.bit_length() + right.bit_length() if operator == "*" else \
            left.bit_length() * right
        require_fewer(bits, BITS, "bits in a number")
    for value, count in ((left, right), (right, left)):
        if operator == "*" and isinstance(value, sized) and isinstance(count, int):
            require_fewer(len(value) * count, WIDEST, "characters or items by *")


def _of_a_width(function):
    """The same, where the numbers that it is given are no wider than WIDEST."""
    @functools.wraps(function)
    def bounded(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, int):
                require_fewer(value, WIDEST, "characters or items")
        return function(*args, **kwargs)
    return bounded


_WIDE = re.compile(r"\d{7,}|\*")         # a width of millions, or one that is a value


def _require_narrow(specifications):
    """Raise OverflowError for a specification of a format that asks for a text of such a width."""
    for specification in specifications:
        if _WIDE.search(specification) or "{" in specification:
            raise OverflowError(f"a format of such a width, {specification!r:.60}")


# -- functions -----------------------------------------------------------------------------------


def raise_exception(message):
    raise Refusal(plain(shown(message)))


def strftime_now(format):
    """The time here and now, as strftime writes it."""
    return Traced.of(format).as_one(datetime.datetime.now().strftime(plain(format)))


class _Dict:
    """`dict`, of which a template may call what makes one, and nothing else."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args):
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, without attributes that begin with an underscore."""

    def __init__(*args, **kwargs):          # no `self`: a template may name an attribute so
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _require_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name):
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}: it begins with an underscore")


# -- filters -------------------------------------------------------------------------------------


class _Safe(Traced):
    """What `|safe` gives. Jinja would escape for HTML what is added to it, which no chat needs."""

    __slots__ = ()

    def __add__(self, other):
        raise Untraceable("+ with a text that is `safe` (~ joins it)")

    __radd__ = __add__


def safe(value):
    text = Traced.of(shown(value))
    return _Safe(text, text.origins)


def percent(format, *values):
    """format % values, of the template's own; the caller's are refused."""
    _require_narrow(re.findall(r"%(?:\(.*?\))?([^a-zA-Z%]*)", plain(format)))
    if len(values) == 1 and isinstance(values[0], dict):
        _require_own("% with a text on its left", format, *values[0].values())
        return plain(format) % values[0]
    _require_own("% with a text on its left", format, *values)
    return plain(format) % values


def format_(value, *args, **kwargs):
    """The filter `format`."""
    return percent(shown(value), kwargs) if kwargs else percent(shown(value), *args)


def _formatted(method, text, *args, **kwargs):
    """text.format(…), by the sandbox's `method`; the same."""
    mapped = args[0].values() if args and isinstance(args[0], dict) else args
    _require_own(f"the method {method.__name__!r}", text, *mapped, *kwargs.values())
    _require_narrow(spec or "" for _, _, spec, _ in string.Formatter().parse(plain(text)))
    return method(*args, **kwargs)


def _require_own(what, *values):
    """Raise Untraceable unless these are numbers and texts without a character of the caller's."""
    for value in values:
        ours = not any(value.origins) if isinstance(value, Traced) else \
            value is None or isinstance(value, (str, bool, int, float, Undefined))
        if not ours:
            raise Untraceable(f"{what}, of a value that is or holds text of the caller's")


@pass_environment
def join(environment, values, d="", attribute=None):
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return Traced.of(shown(d)).join(map(shown, values))


def replace(value, old, new, count=None):
    return Traced.of(shown(value)).replace(shown(old), shown(new), -1 if count is None else count)


def trim(value, chars=None):
    return Traced.of(shown(value)).strip(chars)


def upper(value):
    return Traced.of(shown(value)).upper()


def lower(value):
    return Traced.of(shown(value)).lower()


def capitalize(value):
    return Traced.of(shown(value)).capitalize()


def title(value):
    text = Traced.of(shown(value))
    return text.in_place(do_title(plain(text)))


def indent(value, width=4, first=False, blank=False):
    """Every line but the first behind `width` spaces, or behind the text `width`; empty lines only
    if `blank`. As Jinja has it, a line feed at the end of the text is left out."""
    front = width if isinstance(width, str) else " " * width
    lines = (Traced.of(shown(value)) + "\n").splitlines()
    indented = [front + line if (first if number == 0 else blank or line) else line
                for number, line in enumerate(lines)]
    return Traced.of("\n").join(indented)


def _refused(what):
    def refuse(*args, **kwargs):
        raise Untraceable(what)
    return refuse


FILTERS = {"string": shown, "join": join, "replace": replace, "trim": trim, "upper": upper,
           "lower": lower, "capitalize": capitalize, "title": title, "indent": indent,
           "tojson": to_json, "safe": safe, "format": format_}
