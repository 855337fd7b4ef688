"""Five tasks with exact labels from the source of Python's own standard library: no annotator, no
download, no doubt. `ast` knows what every name in a program is; a model must tell from the text.

    stdlib-ner        what names in a function are: its parameters, modules, exceptions, …
    stdlib-qa         questions about one of several functions, whose answer stands in the source
    stdlib-kind       a docstring's first paragraph -> class, function, method or module
    stdlib-package    a function -> the package that it is from
    stdlib-summarize  a function without its docstring -> the docstring's first paragraph

Each is made so that no single keyword solves it; the function that makes it says how. The group of
an example is its module, so that held-out examples are from modules that training never saw.
The examples are the same each time with the same Python. Places are characters of the text.
"""

import ast
import hashlib
import re
from collections import defaultdict
from typing import NamedTuple

from minifm.errors import ConfigError
from minifm.tasks.classify import Classified
from minifm.tasks.ner import Tagged
from minifm.tasks.qa import Answer, Question
from minifm.tasks.source import (
    FUNCTIONS,
    PythonModule,
    bound_by,
    bound_name,
    defaults,
    docstring_node,
    first_paragraph,
    parameters,
)
from minifm.tasks.spans import Span
from minifm.tasks.summarize import Summary
from minifm.text.corpus import Corpus

SHORTEST, LONGEST = 60, 1200        # characters of a function, as a text
CONTEXT = 1600                      # characters of a context to ask about, at most
_FROM = re.compile(r"from\s+([\w.]+)")


def build(names=None, documents=None):
    """{name of a task: list of its examples}, in one walk over the source.

    names      of DATASETS (default: all)
    documents  of Python source (default: the standard library, as text/corpus.py lists it)
    Raises ConfigError for an unknown name and where the source has no example of a task.
    """
    names = list(DATASETS) if names is None else list(names)
    for name in names:
        if name not in DATASETS:
            raise ConfigError(f"task: expected one of {', '.join(DATASETS)}, got {name!r}")
    found = {name: [] for name in names}
    for document in Corpus() if documents is None else documents:
        module = PythonModule.parse(document)
        if module is not None:
            for name in names:
                found[name] += DATASETS[name].made_of(module)
    found = {name: DATASETS[name].chosen(examples) for name, examples in found.items()}
    for name, examples in found.items():
        if not examples:
            raise ConfigError(f"{name}: no example of it in the source")
    return found


def named_in(sources, setting):
    """The name of DATASETS that stands in `sources`, names of tasks and files; None: only files do.

    setting  what the user calls the sources. Raises ConfigError for a name beside others, one that
             is unknown, and for no source at all.
    """
    names = [name for name in sources if name.startswith("stdlib-") and "." not in name]
    if not sources or names and (len(sources) > 1 or names[0] not in DATASETS):
        got = f", got {' '.join(sources)}" if sources else ""
        raise ConfigError(f"{setting}: expected files of examples, or one of {', '.join(DATASETS)}"
                          f"{got}")
    return names[0] if names else None


def without_copies(examples):
    """The first of the examples that say the same: copies must not stand on both sides."""
    return list({example.content: example for example in reversed(examples)}.values())[::-1]


# -- entities --------------------------------------------------------------------------------------


def entities(module):
    """Tagged: a function, and in it

    PARAMETER  its parameters but self and cls, in the signature and wherever they are used
    DEFAULT    the expressions that are their defaults
    FUNCTION   its own name; functions of the module and methods of its class, where it uses them
    CLASS      classes of the module
    MODULE     imported modules
    EXCEPTION  what is raised or caught by name

    No keyword does it: the same word is a parameter here, an attribute or a keyword argument
    there (`x`, `a.x`, `f(x=1)`), or part of a comment; whether `code.f` begins with a module or a
    variable shows in what the rest of the function does with it.
    """
    examples = []
    for function, owner in module.functions:
        start, end = module.start(function), module.end(function)
        if not SHORTEST <= end - start <= LONGEST or rebinds_a_parameter(module, function):
            continue
        spans = _outermost(Entities(module, function, owner).spans)
        examples.append(Tagged(
            module.text[start:end],
            tuple(Span(s - start, e - start, label) for s, e, label in spans),
            **module.common(function)))
    return examples


SCOPES = (*FUNCTIONS, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp,
          ast.GeneratorExp)


def rebinds_a_parameter(module, function):
    """Whether an inner function, class or comprehension binds the name of a parameter anew, so
    that it is another variable there. Such functions are left out."""
    own = {arg.arg for arg in parameters(function)}
    return any(own & bound_by(module.walk(scope)) for scope in module.walk(function)
               if isinstance(scope, SCOPES) and scope is not function)


class Entities:
    """The `spans` (start, end, label) in one function, in characters of its module; some may lie
    within others."""

    def __init__(self, module, function, owner):
        self.module, self.function, self.spans = module, function, []
        self.parameters = {arg.arg for arg in parameters(function)} - {"self", "cls"}
        self.methods = {node.name for node in owner.body if isinstance(node, FUNCTIONS)} \
            if owner else set()
        parts = [function.args, *function.body, *filter(None, [function.returns])]
        nodes = [node for part in parts for node in module.walk(part)]  # without its decorators
        imported = [alias for node in nodes if isinstance(node, ast.Import)
                    for alias in node.names]
        self.local = bound_by(nodes)
        self.kinds = {name: kind for name, kind in module.names.items() if name not in self.local}
        self.kinds |= {bound_name(alias): "MODULE" for alias in imported}
        self._own_name()
        for node in nodes:
            visit = self.VISITS.get(type(node))
            if visit:
                visit(self, node)

    def _add(self, start, end, label):
        self.spans.append((start, end, label))

    def _own_name(self):
        self._add(*self.module.name_of(self.function), "FUNCTION")
        for _, value in defaults(self.function):
            self._add(self.module.start(value), self.module.end(value), "DEFAULT")
        for arg in parameters(self.function):
            if arg.arg in self.parameters:
                start = self.module.start(arg)
                self._add(start, start + len(arg.arg), "PARAMETER")

    def _name(self, node):
        label = "PARAMETER" if node.id in self.parameters else self.kinds.get(node.id)
        if label:
            self._add(self.module.start(node), self.module.end(node), label)

    def _attribute(self, node):
        if isinstance(node.value, ast.Name) and node.value.id == "self" \
                and node.attr in self.methods:
            end = self.module.end(node)
            self._add(end - len(node.attr), end, "FUNCTION")

    def _raise(self, node):
        self._exception(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)

    def _caught(self, node):
        for kind in node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]:
            self._exception(kind)

    def _exception(self, node):
        """A plain or dotted name, unless it begins with a variable of the function."""
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and (root.id not in self.local or root.id in self.kinds):
            self._add(self.module.start(node), self.module.end(node), "EXCEPTION")

    def _import(self, node):
        for alias in node.names:
            start = self.module.start(alias)
            self._add(start, start + len(alias.name), "MODULE")

    def _import_from(self, node):
        match = _FROM.match(self.module.text, self.module.start(node))
        if match and match[1] == node.module:
            self._add(*match.span(1), "MODULE")

    VISITS = {ast.Name: _name, ast.Attribute: _attribute, ast.Raise: _raise,
              ast.ExceptHandler: _caught, ast.Import: _import, ast.ImportFrom: _import_from}


def _outermost(spans):
    """Those that lie within no other, in order; of equal ones what it is here, not in general."""
    first = ("DEFAULT", "EXCEPTION")
    order = sorted(set(spans), key=lambda s: (s[0], -s[1], s[2] not in first, s[2]))
    found = []
    for span in order:
        if not found or span[0] >= found[-1][1]:
            found.append(span)
    return found


# -- questions -------------------------------------------------------------------------------------


def questions(module):
    """Question: about one of several functions that stand one after the other. There is more than
    one candidate for each answer, and only the function asked about tells which is right.

        What is the default of `p` in `f`?      where the context has other defaults
        Which exception does `f` raise?         one by name; it may raise it in several places
        What does `f` return?                   the expression, where others return something too
        Which function calls `g`?               the name, in its definition; exactly one does
    """
    examples = []
    for functions in _contexts(module):
        start, end = module.start(functions[0]), module.end(functions[-1])
        asked = [question for ask in (_defaults, _exceptions, _returns, _callers)
                 for question in _one(ask(module, functions))]
        for question, places in asked:
            answers = tuple(Answer(module.text[a:b], a - start) for a, b in places)
            examples.append(Question(question, module.text[start:end], answers,
                                     **module.common(functions[0])))
    return examples


def _contexts(module):
    """Lists of two or more functions, neighbours in a class or in the module, of different
    names, which together are at most CONTEXT characters long."""
    runs = defaultdict(list)
    for function, owner in module.functions:
        if function in (owner or module.tree).body:         # not within an `if`
            runs[owner].append(function)
    for functions in runs.values():
        group = []
        for function in functions:
            whole = group and module.end(function) - module.start(group[0]) <= CONTEXT \
                and function.name not in {other.name for other in group}
            if not whole:
                if len(group) > 1:
                    yield group
                group = []
            if module.end(function) - module.start(function) <= CONTEXT:
                group.append(function)
        if len(group) > 1:
            yield group


def _one(found):
    """At most one of the (question, places), whose digest is the least: as good as any."""
    return sorted(found, key=lambda pair: hashlib.sha256(repr(pair).encode()).digest())[:1]


def _span(module, node):
    return module.start(node), module.end(node)


def _defaults(module, functions):
    pairs = [(f, arg, value) for f in functions for arg, value in defaults(f)]
    if len({module.source(value) for _, _, value in pairs}) > 1:
        for function, arg, value in pairs:
            yield f"What is the default of `{arg.arg}` in `{function.name}`?", \
                [_span(module, value)]


def _exceptions(module, functions):
    for function in functions:
        raised = [node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                  for node in module.own(function, ast.Raise) if node.exc]
        places = [_span(module, node) for node in raised]
        plain = all(isinstance(node, ast.Name) for node in raised)
        names = {module.text[a:b] for a, b in places}
        if plain and len(names) == 1 and not names & bound_by(module.walk(function)):
            yield f"Which exception does `{function.name}` raise?", sorted(places)


def _returns(module, functions):
    returned = {function: [node.value for node in module.own(function, ast.Return)]
                for function in functions}
    if sum(map(bool, returned.values())) > 1:
        for function, values in returned.items():
            if len(values) == 1 and values[0] is not None and \
                    len(module.source(values[0])) <= 60:
                yield f"What does `{function.name}` return?", [_span(module, values[0])]


def _callers(module, functions):
    callers = defaultdict(set)
    for function in functions:
        for call in module.own(function, ast.Call):
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            if name:
                callers[name].add(function)
    for name, found in callers.items():
        function = next(iter(found))
        if len(found) == 1 and name != function.name:
            yield f"Which function calls `{name}`?", [module.name_of(function)]


# -- classes ---------------------------------------------------------------------------------------


def kinds(module):
    """Classified: the first paragraph of a docstring -> "class", "function", "method" or
    "module". Whole docstrings would tell by their length; "Return …" begins both functions and
    methods, and what begins with a noun may be any of three. Paragraphs of fewer than three words
    are left out."""
    methods = {function for function, owner in module.functions if owner}
    examples = []
    for node in module.walk(module.tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            found = docstring_node(node)
            text = first_paragraph(found.value) if found else ""
            if len(text.split()) >= 3:
                label = {ast.Module: "module", ast.ClassDef: "class"}.get(
                    type(node), "method" if node in methods else "function")
                examples.append(Classified(text, label, **module.common(node)))
    return examples


def packages(module):
    """Classified: a function's source -> its package. What names the package, in any case or
    compound, is left out: no keyword gives it away, only what the code is about. Of a module at
    most 25 functions are taken, and of the packages those that then have 100 in eight modules."""
    package, slash, _ = module.name.partition("/")
    if not slash:
        return []
    return [Classified(source, package, **module.common(function))
            for function, _ in module.functions
            if SHORTEST <= len(source := module.source(function)) <= LONGEST
            and package.lower() not in source.lower()]


def _of_frequent_packages(examples):
    """As `packages` says. Which functions of a module are taken is decided by a digest."""
    modules, by_package = defaultdict(list), defaultdict(list)
    for example in without_copies(examples):
        modules[example.group].append(example)
    for group in modules.values():
        taken = sorted(group, key=lambda e: hashlib.sha256(e.text.encode()).digest())[:25]
        by_package[group[0].label].append([e for e in group if e in taken])
    return [example for groups in by_package.values()
            if len(groups) >= 8 and sum(map(len, groups)) >= 100
            for group in groups for example in group]


# -- summaries -------------------------------------------------------------------------------------


def summaries(module):
    """Summary: a function without its docstring -> the docstring's first paragraph, of 4 to 40
    words. The text has the function's name, but not the words of whoever described it."""
    examples = []
    for function, _ in module.functions:
        found = docstring_node(function)
        summary = first_paragraph(found.value) if found else ""
        if len(function.body) < 2 or not 4 <= len(summary.split()) <= 40:
            continue
        before = module.text[module.start(function) : module.start(found)].rstrip()
        text = before + module.text[module.end(found) : module.end(function)]
        if SHORTEST <= len(text) <= LONGEST:
            examples.append(Summary(text, summary, **module.common(function)))
    return examples


class Dataset(NamedTuple):
    """One of the five.

    kind      the kind of its examples
    made_of   the function that makes them of a PythonModule
    chosen    which of those of all modules are taken
    """

    kind: type
    made_of: object
    chosen: object = without_copies


DATASETS = {"stdlib-ner": Dataset(Tagged, entities), "stdlib-qa": Dataset(Question, questions),
            "stdlib-kind": Dataset(Classified, kinds),
            "stdlib-package": Dataset(Classified, packages, _of_frequent_packages),
            "stdlib-summarize": Dataset(Summary, summaries)}
