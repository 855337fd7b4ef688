"""Python source as `ast` sees it, with every node's place in the text: what a module's functions
are, what its names stand for, and which names are bound where.

Places are characters of the text; nothing that is read here is run.
"""

import ast
import inspect
import re
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from minifm.tasks.examples import Origin

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEF = re.compile(r"(async\s+)?def\s+")
# Nodes that stand for a symbol; the parser gives out one object for all of a kind.
_SYMBOLS = (ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop)


@dataclass
class PythonModule:
    """A module's text and tree, and where nodes stand in it."""

    name: str           # "email/parser.py"
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, document):
        """None where the source is not UTF-8 or not of this Python's grammar."""
        try:
            text = document.text.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")         # of escapes that a string does not know
                return cls(document.name, text, ast.parse(text))
        except (UnicodeDecodeError, SyntaxError, ValueError):
            return None

    @cached_property
    def _walked(self):
        """([all nodes, each before what is within it], {node: (its place, one after its last)}).
        Walked once, since each task asks for many overlapping parts."""
        nodes, extents, left = [], {}, [self.tree]
        while left:
            node = left.pop()
            if isinstance(node, tuple):         # all within it has been seen
                extents[node[0]] = node[1], len(nodes)
                continue
            left.append((node, len(nodes)))
            nodes.append(node)
            left += reversed(children(node))
        return nodes, extents

    def walk(self, node):
        """`node` and all within it, in the order of its fields."""
        nodes, extents = self._walked
        start, stop = extents[node]
        return nodes[start:stop]

    def own(self, function, kind):
        """Nodes of a kind in the body of a function or of the module, not in functions or classes
        within it."""
        nodes, extents = self._walked
        if not function.body:
            return
        place, stop = extents[function.body[0]][0], extents[function.body[-1]][1]
        while place < stop:
            node = nodes[place]
            if isinstance(node, kind):
                yield node
            inner = isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda))
            place = extents[node][1] if inner else place + 1

    @cached_property
    def _lines(self):
        """[(the character at which the line begins, the line)]."""
        found, start = [], 0
        for line in self.text.split("\n"):
            found.append((start, line))
            start += len(line) + 1
        return found

    def place(self, line, column):
        """The character at a line (from 1) and a column in bytes (from 0), as `ast` counts."""
        start, text = self._lines[line - 1]
        return start + (column if text.isascii() else len(text.encode()[:column].decode()))

    def start(self, node):
        return self.place(node.lineno, node.col_offset)

    def end(self, node):
        return self.place(node.end_lineno, node.end_col_offset)

    def source(self, node):
        return self.text[self.start(node) : self.end(node)]

    def name_of(self, function):
        """Where its name stands in its definition: (start, end)."""
        start = _DEF.match(self.text, self.start(function)).end()
        return start, start + len(function.name)

    def common(self, node=None):
        """What an example of this module, or of a node in it, says of itself."""
        line = getattr(node, "lineno", 1)
        return {"origin": Origin(self.name, f"line {line}"), "group": self.name}

    @cached_property
    def functions(self):
        """[(function, the class it is a method of, or None)], without those within functions."""
        found, left = [], [(node, None) for node in reversed(self.tree.body)]
        while left:
            node, owner = left.pop()
            if isinstance(node, FUNCTIONS):
                found.append((node, owner))
            elif not isinstance(node, ast.expr):
                owner = node if isinstance(node, ast.ClassDef) else owner
                left += [(child, owner) for child in reversed(children(node))]
        return found

    @cached_property
    def names(self):
        """{name: "MODULE", "CLASS" or "FUNCTION"} of what the module's top level binds, and
        binds to nothing else."""
        kinds = defaultdict(list)
        for node in self.tree.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    kinds[bound_name(alias)].append("MODULE")
            elif isinstance(node, ast.ClassDef):
                kinds[node.name].append("CLASS")
            elif isinstance(node, FUNCTIONS):
                kinds[node.name].append("FUNCTION")
        bound = list(self.own(self.tree, (ast.Name, ast.ImportFrom)))
        others = bound_by(bound) | {bound_name(alias) for node in bound
                                    if isinstance(node, ast.ImportFrom) for alias in node.names}
        others |= {name for node in self.walk(self.tree) if isinstance(node, ast.Global)
                   for name in node.names}
        return {name: found[0] for name, found in kinds.items()
                if len(set(found)) == 1 and name not in others}


def children(node):
    """The nodes right below it, without those that stand for a symbol."""
    found = []
    for name in node._fields:
        value = getattr(node, name, None)
        found += [item for item in (value if isinstance(value, list) else [value])
                  if isinstance(item, ast.AST) and not isinstance(item, _SYMBOLS)]
    return found


def bound_name(alias):
    return alias.asname or alias.name.partition(".")[0]


def bound_by(nodes):
    """The names that these nodes bind."""
    bound = set()
    for child in nodes:
        if isinstance(child, ast.Name) and not isinstance(child.ctx, ast.Load):
            bound.add(child.id)
        elif isinstance(child, ast.arg):
            bound.add(child.arg)
        elif isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            bound.add(child.name)
        elif isinstance(child, ast.alias):
            bound.add(bound_name(child))
        elif isinstance(child, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and child.name:
            bound.add(child.name)
    return bound


def parameters(function):
    """[ast.arg] in the order of the signature."""
    a = function.args
    return [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs,
            *filter(None, [a.kwarg])]


def defaults(function):
    """[(ast.arg, the expression that is its default)]."""
    a = function.args
    places = [*a.posonlyargs, *a.args]
    pairs = list(zip(places[len(places) - len(a.defaults) :], a.defaults))
    return pairs + [(arg, value) for arg, value in zip(a.kwonlyargs, a.kw_defaults) if value]


def docstring_node(node):
    """The expression that is its docstring, or None."""
    if not node.body or not isinstance(node.body[0], ast.Expr):
        return None
    value = node.body[0].value
    return value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def first_paragraph(docstring):
    """On one line; "" of one that is empty."""
    return " ".join(re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip())[0].split())
