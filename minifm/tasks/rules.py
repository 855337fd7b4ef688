"""What regular expressions make of the tasks of stdlib.py: rules written by hand, with care.

A model that does not beat them has learnt no more than what can be written down in an hour. Where
the labels follow from Python's grammar, as names and answers in source do, rules come close to all
of it; what a docstring describes, or where a function is from, they do not know.

Each rule takes an example, does not look at its label, and returns a prediction.
"""

import builtins
import re
import sys

from minifm.tasks.spans import Span

_QUOTED = re.compile(r"(?s)(\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
                     r"|#[^\n]*")
_VALUE = r"(?:[^,()\[\]{}\n]|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\})+"      # brackets one level deep
_PARAMETER = re.compile(rf"\*{{0,2}}(\w+)\s*(?::\s*(?:[^,=\[\]]|\[[^\]]*\])+)?(?:=\s*({_VALUE}))?")
_SIGNATURE = re.compile(r"(?:async\s+)?def\s+(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)")
_RAISED = re.compile(r"\b(?:raise|except)\s+\(?((?:\w+\.)*[A-Z]\w*(?:\s*,\s*[A-Z][\w.]*)*)")
_MODULE = re.compile(r"(?<![\w.])([a-z_]\w*)(?=\.\w)|\b(?:import|from)\s+([\w.]+)")
_METHOD = re.compile(r"\bself\.(\w+)(?=\()")
_CALL = re.compile(r"(?<![\w.])([a-z_]\w*)(?=\()")
_CLASS = re.compile(r"(?<![\w.])_*[A-Z]+[a-z]\w*")
_WORDS = {"if", "while", "for", "in", "and", "or", "not", "is", "return", "yield", "print", "with",
          "assert", "del", "lambda", "elif", "except", "raise", "await", "super", "import", "from"}


# -- stdlib-ner ------------------------------------------------------------------------------------


def entities(example):
    """The Spans of a function: its signature is taken apart; each other name is judged by the
    characters beside it. Strings and comments hold none."""
    text = _QUOTED.sub(lambda match: " " * len(match[0]), example.text)
    found = []
    signature = _SIGNATURE.match(text)
    names, body = set(), 0
    if signature:
        found.append(Span(*signature.span(1), "FUNCTION"))
        body = signature.end()
        for match in _PARAMETER.finditer(example.text, signature.start(2), signature.end(2)):
            if match[1] not in ("self", "cls"):
                names.add(match[1])
                found.append(Span(*match.span(1), "PARAMETER"))
            if match[2] and match[2].strip():
                start = match.start(2) + len(match[2]) - len(match[2].lstrip())
                found.append(Span(start, start + len(match[2].strip()), "DEFAULT"))
    for match in _RAISED.finditer(text, body):
        found += [Span(match.start(1) + m.start(), match.start(1) + m.end(), "EXCEPTION")
                  for m in re.finditer(r"[\w.]+", match[1])]
    for match in re.finditer(r"(?<![\w.])\w+(?!=(?!=)|\w)", text[body:]):
        if match[0] in names:
            found.append(Span(body + match.start(), body + match.end(), "PARAMETER"))
    found += _others(text, body, names)
    return _apart(found)


def _others(text, body, names):
    """Names of modules, functions and classes, told by what stands beside them."""
    known = set(dir(builtins)) | _WORDS | names
    for match in _MODULE.finditer(text, body):
        group = 1 if match[1] else 2
        if match[group].split(".")[0] in sys.stdlib_module_names - names:
            yield Span(*match.span(group), "MODULE")
    for pattern in (_METHOD, _CALL):
        for match in pattern.finditer(text, body):
            if pattern is _METHOD or match[1] not in known:
                yield Span(*match.span(1), "FUNCTION")
    for match in _CLASS.finditer(text, body):
        if match[0] not in known:
            yield Span(*match.span(), "CLASS")


def _apart(spans):
    """Those that overlap none that stands before them in the list, in order."""
    taken, found = set(), []
    for span in spans:
        places = range(span.start, span.end)
        if taken.isdisjoint(places):
            taken.update(places)
            found.append(span)
    return tuple(sorted(found))


# -- stdlib-qa -------------------------------------------------------------------------------------

def answer(example):
    """The answer to a question, a str; "" where no rule finds one."""
    for pattern, rule in ASKED.items():
        match = re.fullmatch(pattern, example.question)
        if match:
            return rule(example.context, *match.groups())
    return ""


def _definition(context, name):
    """The text from `def name` to the next `def`."""
    match = re.search(rf"(?s)\bdef\s+{name}\s*\(.*?(?=\n[ \t]*(?:@|async\s+def|def)\s|\Z)", context)
    return match[0] if match else ""


def _default(context, parameter, function):
    match = re.search(rf"(?<!\w){parameter}\s*(?::[^,=]+)?=\s*({_VALUE})",
                      _definition(context, function))
    return match[1].strip() if match else ""


def _raised(context, function):
    match = re.search(r"\braise\s+([A-Z]\w+)", _definition(context, function))
    return match[1] if match else ""


def _returned(context, function):
    found = re.findall(r"\breturn[ \t]+(.+)", _definition(context, function))
    return found[-1].strip() if found else ""


def _caller(context, name):
    for match in re.finditer(rf"(?<!\w){name}\(", context):
        before = context[: match.start()]
        defined = re.findall(r"\bdef\s+(\w+)", before)
        if defined and not before.endswith("def "):
            return defined[-1]
    return ""


ASKED = {r"What is the default of `(\w+)` in `(\w+)`\?": _default,
         r"Which exception does `(\w+)` raise\?": _raised,
         r"What does `(\w+)` return\?": _returned,
         r"Which function calls `(\w+)`\?": _caller}


# -- stdlib-kind and stdlib-package ----------------------------------------------------------------


def first_match(patterns, otherwise):
    """A rule: the label of the first of [(label, pattern)] that the text has, else `otherwise`."""
    compiled = [(label, re.compile(pattern)) for label, pattern in patterns]
    return lambda example: next((label for label, pattern in compiled
                                 if pattern.search(example.text)), otherwise)


kind = first_match([
    ("module", r"(?i)\b(this|the) (module|package|file)\b|^\W*\w+ (module|package)\b"
               r"|\b(utilities|routines|tools|constants|functions|classes)\b.{0,40}$"
               r"|^(Support|Interface|Implementation|Common|Basic|Generic|Drop-in)\b|^\w+ - "),
    ("class", r"^(An?|The|This|Abstract|Base|Generic|Mix-?in|Simple|Helper)\b(?! (list|string)\b)"
              r"|\b(class|exception|mixin|subclass)\b|^(Raised|Exception|Error|Represents?)\b"
              r"|^[A-Z]\w+(?<!s) (that|for|which|to)\b|\binstances?\b of this"),
    ("method", r"\b(self|instance|widget|event|connection|socket|stream|queue|handler)\b"
               r"|\bthis (object|node|process|server|message|test)\b|^(Called|Handle|Override)\b"),
    ("function", r"\([\w, =\[\]*]*\) ?(->|-|:)|\b(string|list|dictionary|iterable|path|file ?name|"
                 r"sequence|argument|arguments|function)s?\b"),
], "method")

package = first_match([
    ("asyncio", r"\bawait\b|async def|_loop\b|\bfutures?\b|\btransport\b|call_soon|coroutine"),
    ("tkinter", r"\.tk\b|\btkinter|_w\b|\bwidget\b|TclError|\bmaster\b"),
    ("turtledemo", r"\bpenup|\bpendown|\bgoto\(|\bshape\(|\bht\(|turtle|\bseth\("),
    ("unittest", r"\bassert[A-Z]|\btest(Case|Suite|case|suite|s)?\b|\bresult\.(add|st)|\bmock\b"),
    ("lib2to3", r"\bleaf\b|\bnode\b.*\bchildren\b|\bsyms\.|\bpytree\b|prefix|\bgrammar\b"),
    ("xml", r"\bDOM|ownerDocument|namespaceURI|\bElement\b|\bexpat\b|parentNode|\battrs\b|\bsax\b"),
    ("encodings", r"\bcodecs\.|\binput, *errors|\bdef (en|de)code\(|IncrementalDecoder"),
    ("email", r"\bmsg\b|\bheaders?\b|charset|\bpayload\b|\bmime|\bmailbox\b|\bdefects\b"),
    ("importlib", r"\bspec\b|\bloader\b|\bfullname\b|\bfinder\b|_bootstrap|\bsys\.modules\b"),
    ("distutils", r"set_undefined_options|\bdist\b|\bbuild_|\bcompiler\b|ext\b|\blog\.|\bcmd\b"),
    ("multiprocessing", r"\bpid\b|\bprocess\b|_semlock|\bsemaphore|\bctx\b|\bpool\b|\bmanager\b"),
], "idlelib")


# -- stdlib-summarize ------------------------------------------------------------------------------


def summary(example):
    """The words of the function's name: "def get_default_size" -> "Get default size."."""
    match = re.search(r"\bdef\s+(\w+)", example.text)
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", match[1]) if match else []
    return (" ".join(words).capitalize() or "Return the value") + "."


RULES = {"stdlib-ner": entities, "stdlib-qa": answer, "stdlib-kind": kind,
         "stdlib-package": package, "stdlib-summarize": summary}
