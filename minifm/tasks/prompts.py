"""Prompts: a few solved examples and one to solve, as one text that a language model goes on with
(Brown et al. 2020). No weight learns; what the model knows of the task is what it has just read.

    form = form_of(examples)                        # which fields such examples have
    template = Template("Review: {text}\\nVerdict: {label}", form)
    prompter = Prompter(template, tokenizer, 1024, answers=("bad", "good"))
    prompt = prompter(form.given(example), shots)   # as many of the shots as the model can look at

A model goes on with it (Prompter), or reads it as a source and writes a target (SourcePrompter), or
guesses what is hidden in it (ClozePrompter). No model is known here: evaluation/asking.py asks one.
"""

import re
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from minifm.errors import ConfigError, FormatError, why
from minifm.tasks.classify import Classified
from minifm.tasks.freetext import NAMES, Answered
from minifm.tasks.qa import Question
from minifm.tasks.summarize import SEPARATOR, Summary
from minifm.text import end_of_text_of
from minifm.text.offsets import Frame
from minifm.text.rows import common_prefix

CUT = " […]"            # where the rest of a text is left out
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}|[{}]")


# -- what kinds of examples give to a prompt -------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a kind of example stands in a prompt.

    fields    the attributes that a model is given
    answer    the name of what it is to say
    said      of an example, its answer, a str
    template  the text of one example, where the user has none
    """

    fields: tuple
    answer: str
    said: object
    template: str

    def given(self, example):
        """{field: its text}."""
        return {field: getattr(example, field) for field in self.fields}


def _answer(question):
    """The first; "" where nothing answers."""
    return question.answers[0].text if question.answers else ""


FORMS = {
    Classified: Form(("text",), "label", attrgetter("label"), "Text: {text}\nLabel: {label}"),
    Answered: Form(("input",), "output", attrgetter("output"), "Input: {input}\nOutput: {output}"),
    Question: Form(("context", "question"), "answer", _answer,
                   "{context}\nQuestion: {question}\nAnswer: {answer}"),
    Summary: Form(("text",), "summary", attrgetter("summary"), f"{{text}}{SEPARATOR} {{summary}}")}
PAIRS = replace(FORMS[Classified], fields=("text", "text_pair"), template=(
    "Text: {text}\nSecond text: {text_pair}\nLabel: {label}"))


def require_form(kind):
    """Raise ConfigError for a kind of examples that does not come in prompts."""
    if kind not in FORMS:
        raise ConfigError(f"task: a prompt asks for one answer, a label or a text; examples of "
                          f"{kind.__name__} have no such")


def form_of(examples):
    """The Form of examples of one kind; raises ConfigError for a kind that has none, FormatError
    where some are pairs of texts and others are not."""
    kind = type(examples[0])
    require_form(kind)
    if kind is not Classified:
        return FORMS[kind]
    paired = examples[0].text_pair is not None
    for example in examples:
        if (example.text_pair is not None) != paired:
            raise example.origin.error(f"expected {'a' if paired else 'no'} 'text_pair', as of the "
                                       f"examples before it")
    return PAIRS if paired else FORMS[kind]


class AnyKind:
    """What `read` takes for a kind, where the fields of the first record say which it is, or
    `kind` does."""

    def __init__(self, kind=None):
        self.kind = kind

    def parse(self, record, **common):
        if self.kind is None:
            self.kind = _kind_of(record, common["origin"])
        return self.kind.parse(record, **common)


def _kind_of(record, origin):
    if {"question", "context"} <= record.keys():
        return Question
    if "label" in record:
        return Classified
    if "summary" in record:
        return Summary
    if all(any(name in record for name in names) for names in NAMES.values()):
        return Answered
    raise origin.error(
        "expected text and label, or input and output (question and answer), or question, context "
        f"and answers, or text and summary; the fields here are: {', '.join(record) or 'none'}")


# -- the text of one example -----------------------------------------------------------------------


class Template:
    """The text of one example with fields in braces, as in str.format; {{ and }} are braces.

    What stands before the answer is the question, what stands behind it the tail. White space
    between the two belongs to the answer, as it does to a word in byte-level BPE: a prompt that
    ended in a space would be one that the model has hardly ever seen.
    """

    def __init__(self, text, form, file="template", *, cloze=False):
        """Raises FormatError by `file` and line for a field that the examples do not have, one
        without the answer or anything given, or with something given behind the answer, unless it
        is for a `cloze`: what guesses a hidden answer sees both sides of it."""
        self.form, self.file = form, str(file)
        pieces = list(_pieces(text.replace("\r\n", "\n").rstrip("\n"), self.file))
        self._check([piece for piece in pieces if piece.is_field], cloze)
        place = next(i for i, piece in enumerate(pieces) if piece[:2] == (True, form.answer))
        self.behind = pieces[place + 1 :]
        self.before, self.gap = pieces[:place], ""
        if self.before and not (last := self.before[-1]).is_field:
            kept = last.text.rstrip(" \t")
            self.before[-1], self.gap = last._replace(text=kept), last.text[len(kept) :]

    def _check(self, fields, cloze):
        given, answer = self.form.fields, self.form.answer
        known = ", ".join(f"{{{name}}}" for name in given)
        for _, name, line in fields:
            if name not in (*given, answer):
                raise self._error(line, f"{{{name}}} is no field of these examples; expected "
                                  f"{known} or {{{answer}}} ({{{{ for a brace)")
        names = [field.text for field in fields]
        if names.count(answer) != 1:
            raise self._error(None, f"expected the field {{{answer}}} once, which a model is to "
                              f"fill in; it is there {names.count(answer)} times")
        if len(names) == 1:
            raise self._error(None, f"expected a field of what is given: {known}")
        if names[-1] != answer and not cloze:
            raise self._error(fields[-1].line, f"{{{names[-1]}}} stands behind {{{answer}}}, where "
                              "a model that is to answer would not see it")

    def _error(self, line, reason):
        return FormatError(self.file, line and f"line {line}", reason)

    @classmethod
    def read(cls, path, form, *, cloze=False):
        """From a file; the line ends at its end are not part of it."""
        try:
            return cls(Path(path).read_text("utf-8"), form, path, cloze=cloze)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"template: {path}: cannot be read: {why(error)}") from error

    def question(self, given):
        """The text up to the answer; `given` {field: text}."""
        return _filled(self.before, given)

    def tail(self, given):
        """The text behind the answer."""
        return _filled(self.behind, given)

    def solved(self, example):
        """The whole text of an example."""
        given = self.form.given(example)
        return self.question(given) + self.gap + self.form.said(example) + self.tail(given)


def _filled(pieces, given):
    return "".join(given[piece.text] if piece.is_field else piece.text for piece in pieces)


class Piece(NamedTuple):
    """A part of a template: a field's name or a text, and its line."""

    is_field: bool
    text: str
    line: int


def _pieces(text, file):
    """The Pieces one after the other; raises FormatError for a single brace."""
    end = 0
    for match in _FIELD.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if end < match.start():
            yield Piece(False, text[end : match.start()], line)
        end = match.end()
        if match[0] in ("{{", "}}"):
            yield Piece(False, match[0][0], line)
        elif match[1] is None:
            raise FormatError(file, f"line {line}", f"a single {match[0]!r}; expected a field such "
                              "as {text}, or {{ or }} for a brace")
        else:
            yield Piece(True, match[1], line)
    if end < len(text):
        yield Piece(False, text[end:], text.count("\n") + 1)


# -- which examples are shown ----------------------------------------------------------------------


def none_of(pool, asked):
    """Those of `pool` whose text none of the `asked` examples has, whatever the white space."""
    texts = {_plain(example) for example in asked}
    return [example for example in pool if _plain(example) not in texts]


def _plain(example):
    return " ".join(example.content.split())


def draw_shots(pool, count, rng):
    """`count` examples in the order in which they are shown. Of each label there are as many as of
    any other, or one fewer, while the pool has them. Of one `rng`, the fewer shots are among the
    more: only their order differs.

    Raises ConfigError for more than there are.
    """
    if count > len(pool):
        raise ConfigError(f"shots: expected at most the {len(pool):,} examples that there are to "
                          f"draw from, got {count:,}")
    waiting, drawn, turn = {}, [], 0
    for place in rng.child("pool").permutation(len(pool)).tolist():
        waiting.setdefault(tuple(pool[place].labels), []).append(pool[place])
    while len(drawn) < count:                           # a turn takes one of each label
        labels = sorted(label for label, examples in waiting.items() if len(examples) > turn)
        order = rng.child("turn", turn).permutation(len(labels)).tolist()
        drawn += [waiting[labels[i]][turn] for i in order]
        turn += 1
    order = rng.child("order", count).permutation(count).tolist()
    return [drawn[i] for i in order]


# -- the prompt ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """What a model reads.

    rows    lists of ids, one for each answer, with all that stands around it; none, where the model
            writes
    ids     what it reads where there is no answer yet
    start   in all rows, the first id of the answer; those before it are the same
    behind  in all rows, how many ids stand behind the answer
    shots   how many of the shots are in it, the last ones
    cut     whether a text was cut, as CUT shows
    """

    rows: list
    ids: list
    start: int
    behind: int = 0
    shots: int = 0
    cut: bool = False

    def answer(self, row):
        """The ids of a row that are the answer."""
        return row[self.start : len(row) - self.behind]


class Prompter:
    """Makes prompts of at most `context` tokens (None: of any number), which a model goes on with.

    answers      what may be said, each of which is to be scored; none: the model writes
    written      where it writes, how many tokens there must be room for
    separator    stands between two examples
    instruction  stands before the first, if it is not empty
    """

    def __init__(self, template, tokenizer, context, *, answers=(), written=0, separator="\n\n",
                 instruction=""):
        self.template, self.tokenizer, self.context = template, tokenizer, context
        self.answers, self.written = tuple(answers), written
        self.separator, self.instruction = separator, instruction
        self.frame = Frame.of(tokenizer)

    def __call__(self, given, shots=()):
        """The Prompt for `given` {field: text} after `shots`, examples. Where they do not fit, the
        first ones are left out; where none fits, the longest texts are cut.

        Raises ConfigError where even that is not enough.
        """
        parts = [self.template.solved(shot) for shot in shots]
        prompt = largest(len(parts), lambda n: self._prompt(given, parts[len(parts) - n :]))
        if prompt is not None:
            return prompt
        longest = max(map(len, given.values()))
        prompt = largest(longest, lambda n: self._prompt(
            {field: shortened(text, n) for field, text in given.items()}))
        if prompt is None:
            self._refuse(self._laid(dict.fromkeys(given, CUT), []))
        return replace(prompt, cut=True)

    def _refuse(self, least):
        """Raise ConfigError: `least`, the prompt with next to nothing in it, is too long."""
        room = self.context - self._taken(least, 0)
        if 0 < room < self.written:
            raise ConfigError(f"max_tokens: expected at most {room}, which the template leaves of "
                              f"the model's context of {self.context}, got {self.written}")
        taken = self._taken(least, self.written)
        raise ConfigError(f"template: by itself, without an example but with room for an answer, "
                          f"it takes {taken} tokens, and the model's context is {self.context}")

    def _prompt(self, given, parts=()):
        """The Prompt with all that, or None where it does not fit."""
        prompt = self._laid(given, parts)
        fits = self.context is None or self._taken(prompt, self.written) <= self.context
        return replace(prompt, shots=len(parts)) if fits else None

    def _text(self, given, parts):
        """All that stands before the answer."""
        instruction = [self.instruction] if self.instruction else []
        return self.separator.join([*instruction, *parts, self.template.question(given)])

    # -- what a kind of model reads, and how much of its context that takes ------------------------

    def _laid(self, given, parts):
        """The Prompt, whatever its length. Text and answer are encoded together, as a model has
        read them; where a token holds the end of one and the beginning of the other, it is
        scored."""
        text = self._text(given, parts)
        texts = [text, *(text + self.template.gap + answer for answer in self.answers)]
        front = list(self.frame.before)
        rows = [front + ids.tolist() for ids in self.tokenizer.encode_all(texts)]
        start = common_prefix(rows)
        if start == 0:                  # an answer follows something
            end = end_of_text_of(self.tokenizer, "with which an empty prompt begins")
            rows, start = [[end, *row] for row in rows], 1
        return Prompt(rows[1:], rows[0][:start], start)

    def _taken(self, prompt, written):
        """Tokens that the model looks at: the last of an answer is only guessed."""
        return max(map(len, prompt.rows)) - 1 if self.answers else len(prompt.ids) + written


class SourcePrompter(Prompter):
    """The same for an encoder-decoder: it reads the text and an end, the source, and each answer
    with an end is a target."""

    def _laid(self, given, parts):
        end = end_of_text_of(self.tokenizer, "with which sources and targets end")
        texts = [self._text(given, parts), *self.answers]
        source, *targets = [[*ids.tolist(), end] for ids in self.tokenizer.encode_all(texts)]
        return Prompt(targets, source, 0)

    def _taken(self, prompt, written):
        """A target has a context of its own, as long as the source's."""
        return max(map(len, [prompt.ids, *prompt.rows]))


class ClozePrompter(Prompter):
    """The same for a model that guesses what is hidden: it sees both sides of the answer. Where a
    token holds a part of the answer and of what stands beside it, it is hidden, too."""

    def _laid(self, given, parts):
        text, tail = self._text(given, parts) + self.template.gap, self.template.tail(given)
        texts = [text, tail, *(text + answer + tail for answer in self.answers)]
        before, behind, *rows = [ids.tolist() for ids in self.tokenizer.encode_all(texts)]
        start = common_prefix([before, *rows])
        least = min(map(len, rows)) - start - 1         # an answer has one token, or more
        stop = min(common_prefix([ids[::-1] for ids in (behind, *rows)]), least)
        front, back = list(self.frame.before), list(self.frame.behind)
        rows = [front + row + back for row in rows]
        start, stop = start + len(front), stop + len(back)
        hidden = len(rows[0]) - start - stop
        seen = [*rows[0][:start], *[self.tokenizer.mask] * hidden, *rows[0][len(rows[0]) - stop :]]
        return Prompt(rows, seen, start, stop)

    def _taken(self, prompt, written):
        return max(map(len, prompt.rows))


def shortened(text, length):
    """The first `length` characters and a mark, or the text if it has no more."""
    return text if len(text) <= length else text[:length].rstrip() + CUT


def largest(most, attempt):
    """attempt(n) for the largest n of 0 … most that gives something, not None; None where 0 does
    not. It is taken for granted that what fails goes on to fail."""
    low, high, found = -1, most + 1, None       # low: the largest known to succeed
    n = most                                    # mostly all goes well at once
    while high - low > 1:
        tried = attempt(n)
        if tried is None:
            high = n
        else:
            low, found = n, tried
        n = (low + high) // 2
    return found
