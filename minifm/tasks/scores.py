"""How well answers agree with labels: one function a task, and what it gives can be printed.

    class_scores     accuracy, precision, recall, F1 of each class, and the confusion matrix
    entity_scores    the same of entities that agree in place and type (CoNLL-2003)
    answer_scores    exact match and F1 over words (SQuAD)
    summary_scores   ROUGE-1, ROUGE-2 and ROUGE-L
    text_scores      whether two texts are the same

Each gives an object with `figures`, {name: fraction}, the first the one to look at, and
`table()`, text. All scores are fractions in [0, 1]. A ratio of nothing to nothing is 0.
"""

import re
import string
from collections import Counter
from dataclasses import dataclass

import numpy as np

from minifm.errors import ConfigError


def ratio(numerator, denominator):
    """float64, elementwise; 0 where the denominator is."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator + denominator),
                     where=denominator != 0)


def precision_recall_f1(correct, predicted, gold):
    """(correct / predicted, correct / gold, their harmonic mean) of counts, elementwise."""
    return (ratio(correct, predicted), ratio(correct, gold),
            ratio(2 * np.asarray(correct), np.asarray(predicted) + gold))


def _same_length(gold, predicted):
    if len(gold) != len(predicted) or not gold:
        raise ConfigError(f"scores: expected an answer for each of one or more examples, got "
                          f"{len(predicted)} for {len(gold)}")


def table(header, rows):
    """Columns as text: strings to the left, fractions with three digits and counts to the
    right."""
    def shown(cell):
        return f"{cell:.3f}" if isinstance(cell, float) else \
            f"{cell:,}" if isinstance(cell, (int, np.integer)) else str(cell)
    cells = [list(map(shown, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    left = [all(isinstance(cell, str) for cell in column) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) if text else cell.rjust(width) for
                               cell, width, text in zip(row, widths, left)).rstrip()
                     for row in cells)


@dataclass(frozen=True)
class Means:
    """Scores that are means over examples: `figures` {name: fraction}."""

    figures: dict

    def table(self):
        return table(("", "mean"), list(self.figures.items()))


@dataclass(frozen=True, eq=False)
class Counts:
    """Precision, recall and F1 of each label, from int arrays [K]: how often it was `correct`,
    `predicted`, and there (`gold`)."""

    labels: tuple
    correct: np.ndarray
    predicted: np.ndarray
    gold: np.ndarray

    @property
    def each(self):
        """(precision, recall, F1), float64 [K] each."""
        return precision_recall_f1(self.correct, self.predicted, self.gold)

    @property
    def micro(self):
        """(precision, recall, F1) of all labels' counts together."""
        return tuple(map(float, precision_recall_f1(
            self.correct.sum(), self.predicted.sum(), self.gold.sum())))

    @property
    def macro(self):
        """The means over the labels that are there or were predicted; 0 of none."""
        seen = (self.predicted + self.gold) > 0
        return tuple(float(x[seen].mean()) if seen.any() else 0.0 for x in self.each)

    @property
    def figures(self):
        """{name: fraction}, for a line of metrics."""
        return dict(zip(("f1", "precision", "recall"), (self.micro[2], *self.micro[:2]))) | {
            "macro_f1": self.macro[2]}

    def table(self):
        """The scores of each label and their means, as text."""
        return self._table(("macro mean", self.macro), ("micro mean", self.micro))

    def _table(self, *means):
        rows = [(label, *map(float, row), int(gold)) for label, *row, gold
                in zip(self.labels, *self.each, self.gold)]
        rows += [(name, *mean, int(self.gold.sum())) for name, mean in means]
        return table(("", "precision", "recall", "F1", "labelled"), rows)


# -- classes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClassScores(Counts):
    """And `matrix` int64 [K, K]: how often label i (row) was said to be label j (column). Of a row
    the labels may be more than its sum: where no label was said."""

    matrix: np.ndarray

    @property
    def accuracy(self):
        return float(self.correct.sum() / self.gold.sum())

    @property
    def figures(self):
        return {"accuracy": self.accuracy, "macro_f1": self.macro[2]}

    def table(self):
        return self._table(("macro mean", self.macro)) + f"\naccuracy {self.accuracy:.3f}"


def class_scores(gold, predicted, labels=None):
    """ClassScores of two lists of labels. A prediction may be None, which is no label: it counts
    against its example, and is no class by itself.

    labels  in what order to show them, those first that may not occur (default: sorted)
    """
    _same_length(gold, predicted)
    names = tuple(dict.fromkeys([*(labels or ()), *sorted({*gold, *predicted} - {None})]))
    number = {label: i for i, label in enumerate(names)}
    rows = np.array([number[label] for label in gold])
    columns = np.array([number.get(label, -1) for label in predicted])
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (rows[columns >= 0], columns[columns >= 0]), 1)
    return ClassScores(names, np.diag(matrix).copy(), matrix.sum(0),
                       np.bincount(rows, minlength=len(names)), matrix)


# -- entities --------------------------------------------------------------------------------------


def entity_scores(gold, predicted):
    """Counts of two lists that have, for each example, its entities as (start, end, label).

    An entity is right if start, end and label are (Tjong Kim Sang and De Meulder 2003): half of
    it is nothing, and counts against precision and recall.
    """
    _same_length(gold, predicted)
    tallies = [Counter(), Counter(), Counter()]
    for right, said in zip(gold, predicted):
        right, said = set(map(tuple, right)), set(map(tuple, said))
        for tally, spans in zip(tallies, (right & said, said, right)):
            tally.update(label for _, _, label in spans)
    labels = tuple(sorted(tallies[1].keys() | tallies[2].keys()))
    return Counts(labels, *(np.array([tally[label] for label in labels], np.int64)
                            for tally in tallies))


# -- answers ---------------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text):
    """As SQuAD compares answers: lower case, no ASCII punctuation, no articles, single spaces
    (Rajpurkar et al. 2016, section 5)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(gold, predicted):
    """1.0 if two answers are equal once normalised, else 0.0."""
    return float(normalise_answer(gold) == normalise_answer(predicted))


def word_f1(gold, predicted):
    """F1 of the words of two answers, as bags. Where one has none, whether both have none."""
    gold, predicted = (normalise_answer(text).split() for text in (gold, predicted))
    if not gold or not predicted:
        return float(gold == predicted)
    return overlap_f1(Counter(gold), Counter(predicted))


def answer_scores(gold, predicted):
    """Means "exact_match", "f1" and "same_text" over the examples of the best agreement with one
    of the gold answers. `gold` has a list of str for each example, an empty one if nothing answers;
    `predicted` a str for each, "" for no answer.

    same_text   equality without any normalisation, by which -1 is not 1: for code
    """
    _same_length(gold, predicted)
    measures = {"exact_match": exact_match, "f1": word_f1,
                "same_text": lambda text, said: float(text == said)}
    return Means({name: float(np.mean([max(measure(text, said) for text in texts or [""])
                                       for texts, said in zip(gold, predicted)]))
                  for name, measure in measures.items()})


# -- summaries -------------------------------------------------------------------------------------


def rouge_words(text):
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def overlap_f1(gold, predicted):
    """F1 of two Counters, each item counted as often as both have it."""
    common = (gold & predicted).total()
    return float(precision_recall_f1(common, predicted.total(), gold.total())[2])


def rouge_n(reference, summary, n):
    """F1 of the n-grams of two texts: ROUGE-N (Lin 2004, section 2), with precision beside the
    recall of the paper, as is usual since."""
    return overlap_f1(*(Counter(zip(*(words[i:] for i in range(n))))
                        for words in map(rouge_words, (reference, summary))))


def rouge_l(reference, summary):
    """F1 by the longest common subsequence of words: ROUGE-L of two texts as one sentence each
    (Lin 2004, section 3.1, with β = 1)."""
    a, b = rouge_words(reference), rouge_words(summary)
    return float(precision_recall_f1(longest_common_subsequence(a, b), len(b), len(a))[2])


def longest_common_subsequence(a, b):
    """Its length, in len(a) · len(b) steps and one row of memory."""
    row = [0] * (len(b) + 1)            # row[j]: of what of a has been seen and b[:j]
    for item in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if item == other else max(row[j], row[j - 1])
    return row[-1]


def summary_scores(references, summaries):
    """Means "rouge1", "rouge2" and "rougeL": F1 over the pairs of texts, without stemming."""
    _same_length(references, summaries)
    measures = {"rouge1": lambda a, b: rouge_n(a, b, 1), "rouge2": lambda a, b: rouge_n(a, b, 2),
                "rougeL": rouge_l}
    return Means({name: float(np.mean(list(map(measure, references, summaries))))
                  for name, measure in measures.items()})


# -- texts -----------------------------------------------------------------------------------------


def text_scores(gold, predicted):
    """Means "accuracy": how many of the texts are the same, but for white space at their ends."""
    _same_length(gold, predicted)
    return Means({"accuracy": float(np.mean([a.strip() == b.strip()
                                             for a, b in zip(gold, predicted)]))})
