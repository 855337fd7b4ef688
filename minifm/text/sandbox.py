"""The language of chat templates: Jinja as the ecosystem sets it up, over texts that keep their
origins (provenance.py). Importing this imports Jinja; only `ChatTemplate` does.

A template is somebody else's program, so it runs in Jinja's sandbox. And a text may come out of it
only by ways that are listed here and keep its origin. Whatever Jinja has beside them (`|escape`,
`|urlize`, autoescaping, …) makes a new str that knows nothing, and is refused when it is used.
"""

import datetime
import functools

from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_title, make_attrgetter, pass_environment
from jinja2.nodes import CallBlock
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from minifm.text.provenance import (
    METHODS,
    Traced,
    Untraceable,
    concat,
    literal,
    plain,
    said,
    to_json,
)

LONGEST = 1 << 26           # characters that a text repeated by * may have
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

    intercepted_binops = frozenset("*%")
    concat = staticmethod(concat)           # of a macro, a block, the whole template

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=shown,
                         extensions=[Generation, loopcontrols])
        self.marks_said = False             # until a template has {% generation %}
        self.code_generator_class = _Generator
        self.filters = {name: _refused(f"the filter {name!r}") for name in self.filters} \
            | {name: self.filters[name] for name in PASSING} | FILTERS
        self.globals = {"range": self.globals["range"], "dict": _Dict(), "cycler": Cycler,
                        "joiner": Joiner, "namespace": _Namespace, "strftime_now": strftime_now,
                        "raise_exception": raise_exception}

    @staticmethod
    def joined(values):
        """a ~ b ~ …"""
        return concat(map(shown, values))

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
        return getattr(Traced.of(text), name)

    def call_binop(self, context, operator, left, right):
        if operator == "%" and isinstance(left, str):
            return percent(left, *right) if isinstance(right, tuple) else percent(left, right)
        for text, count in ((left, right), (right, left)):
            if operator == "*" and isinstance(text, str) and isinstance(count, int) \
                    and len(text) * count > LONGEST:
                raise OverflowError(f"a text of more than {LONGEST} characters")
        return super().call_binop(context, operator, left, right)


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


# -- functions -----------------------------------------------------------------------------------


def raise_exception(message):
    raise Refusal(message)


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
