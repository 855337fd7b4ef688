"""What is reached without a model: the scores that one has to beat.

    majority     the most frequent answer of the training examples
    TF-IDF + …   scikit-learn's logistic regression on words and their neighbours, weighted by how
                 rare they are (Spärck Jones 1972); for summaries and free text the nearest training
                 example's
    rules        by hand, where there are some (rules.py)

Each takes (training, held out) and returns a prediction for each held-out example, which is scored
as a model's are. Labels of held-out examples are not looked at. What scikit-learn does here is
deterministic.
"""

import hashlib
import itertools
import re
from collections import Counter, defaultdict

from minifm.errors import ConfigError
from minifm.tasks.classify import Classified
from minifm.tasks.freetext import Answered
from minifm.tasks.ner import Tagged
from minifm.tasks.qa import Question
from minifm.tasks.spans import OUTSIDE, parts, spans_of, tags_of, words_in
from minifm.tasks.summarize import Summary

WORDS = 60_000          # that taggers learn from, at most: seconds, not hours
_TOKEN = re.compile(r"\w+|[^\w\s]")


def compare(training, held_out, rule=None):
    """{name of a baseline: its scores} on the held-out examples. `rule(example)` is a prediction.

    Raises ConfigError where scikit-learn is not installed.
    """
    majority, learn, name = BASELINES[type(held_out[0])]
    found = {"majority": majority(training, held_out)}
    if rule is not None:
        found["regular expressions"] = [rule(example) for example in held_out]
    found[name] = learn(training, held_out)
    return {name: type(held_out[0]).scores(held_out, predicted)
            for name, predicted in found.items()}


def _most_frequent(items, otherwise=""):
    """The most frequent item; of equally frequent ones the first in sorted order."""
    counts = Counter(items)
    return min(counts, key=lambda item: (-counts[item], item)) if counts else otherwise


# -- majority --------------------------------------------------------------------------------------


def majority_class(training, held_out):
    """The most frequent label."""
    return [_most_frequent(example.label for example in training)] * len(held_out)


def majority_tags(training, held_out):
    """Each word's most frequent tag; O for words never seen. Close to the baseline of CoNLL-2003,
    which knew the entities of the training text by heart."""
    seen = defaultdict(list)
    for example in training:
        for word, tag in zip(words_of(example), tags_of(example.entities, example.word_spans)[0]):
            seen[word].append(tag)
    usual = {word: _most_frequent(tags) for word, tags in seen.items()}
    return [spans_of([usual.get(word, OUTSIDE) for word in words_of(example)], example.word_spans)
            for example in held_out]


def words_of(example):
    """The words of a Tagged, as str."""
    return [example.text[start:end] for start, end in example.word_spans]


def majority_answer(training, held_out):
    """The most frequent training answer that the context has."""
    counts = Counter(answer.text for example in training for answer in example.answers[:1])
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    return [next((text for text in ordered if text in example.context), "")
            for example in held_out]


def majority_summary(training, held_out):
    """The most frequent summary."""
    return [_most_frequent(example.summary for example in training)] * len(held_out)


def majority_output(training, held_out):
    """The most frequent answer."""
    return [_most_frequent(example.output for example in training)] * len(held_out)


# -- TF-IDF ----------------------------------------------------------------------------------------


def _sklearn():
    try:
        import sklearn.feature_extraction.text as text
        import sklearn.linear_model as linear
    except ImportError:
        raise ConfigError("baselines: scikit-learn is not installed; pip install 'minifm[data]' or "
                          "pip install scikit-learn") from None
    return text, linear


class _Learnt:
    """Logistic regression on TF-IDF of features; `analyse` makes a list of str of an input."""

    def __init__(self, inputs, labels, analyse, *, rarest, strength):
        """`rarest`: features of fewer inputs are not looked at; `strength`: C, the inverse of the
        penalty on squared weights."""
        text, linear = _sklearn()
        self.single = labels[0] if len(set(labels)) == 1 else None
        if self.single is not None:             # nothing to tell apart
            return
        self.weights = text.TfidfVectorizer(analyzer=analyse, min_df=rarest, sublinear_tf=True)
        self.regression = linear.LogisticRegression(C=strength, max_iter=200, tol=1e-3)
        self.regression.fit(self.weights.fit_transform(inputs), labels)

    def predict(self, inputs):
        if self.single is not None or not inputs:
            return [self.single] * len(inputs)
        return self.regression.predict(self.weights.transform(inputs)).tolist()

    def probability(self, inputs, label):
        """Of `label`, for each input."""
        column = self.regression.classes_.tolist().index(label)
        return self.regression.predict_proba(self.weights.transform(inputs))[:, column]


def words_and_pairs(text):
    """The words of a text in lower case, and each two neighbours."""
    words = _TOKEN.findall(text.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def learnt_class(training, held_out):
    """Words and pairs of words."""
    learnt = _Learnt([e.content for e in training], [e.label for e in training], words_and_pairs,
                     rarest=1 if len(training) < 1000 else 2, strength=10.0)
    return learnt.predict([example.content for example in held_out])


def learnt_tags(training, held_out):
    """A tag for each word by itself, from the word, its shape, and three neighbours on each side;
    learnt from the first WORDS of the training words, in an order by digest."""
    inputs, labels = [], []
    for example in _shuffled(training):
        if len(inputs) >= WORDS:
            break
        inputs += neighbourhoods(words_of(example))
        labels += tags_of(example.entities, example.word_spans)[0]
    learnt = _Learnt(inputs, labels, list, rarest=1 if len(inputs) < 1000 else 3, strength=10.0)
    lists = [neighbourhoods(words_of(example)) for example in held_out]
    said = iter(learnt.predict(list(itertools.chain.from_iterable(lists))))
    return [spans_of([next(said) for _ in words], example.word_spans)
            for example, words in zip(held_out, lists)]


def neighbourhoods(words):
    """[what tells of each word]: lists of str."""
    padded = ["", "", "", *words, "", "", ""]
    return [[f"{k - 3}={padded[i + k]}" for k in range(7)] + [
        f"shape={shape(word)}", f"end={word[-3:]}", f"before={padded[i + 1]} {padded[i + 2]}",
        f"behind={padded[i + 4]} {padded[i + 5]}"] for i, word in enumerate(words)]


def shape(word):
    """"Xx" for Word, "x_x" for a_word, "9" for 12: which kinds of characters follow each other."""
    kinds = "".join("X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else c
                    for c in word)
    return "".join(kind for kind, _ in itertools.groupby(kinds))


def _shuffled(examples):
    return sorted(examples,
                  key=lambda e: hashlib.sha256(e.content.encode("utf-8", "replace")).digest())


def learnt_answer(training, held_out):
    """Whether each word is in the answer, from its neighbourhood together with how the question
    begins, and which words of the question stand before it. The answer begins at the word that
    most probably begins one, and goes on while the next ones are predicted to."""
    inputs, labels = [], []
    for example in _shuffled(training):
        if len(inputs) >= WORDS:
            break
        words = words_in(example.context)
        inside = tags_of([(a.start, a.start + len(a.text), "A") for a in example.answers[:1]],
                         words)[0]
        inputs += asked_neighbourhoods(example, words)
        labels += inside
    learnt = _Learnt(inputs, labels, list, rarest=1 if len(inputs) < 1000 else 3, strength=10.0)
    return [_answer(learnt, example) for example in held_out]


def asked_neighbourhoods(example, words):
    """[what tells of each word of the context, given the question]: lists of str."""
    texts = [example.context[start:end] for start, end in words]
    question = _TOKEN.findall(example.question)
    opening, asked = " ".join(question[:3]), set(question[3:])
    found, since = [], 99
    for text, features in zip(texts, neighbourhoods(texts)):
        if text in asked:
            since = 0
        near = "no" if since >= 99 else str(since) if since < 6 else str(10 * (since // 10))
        since += 1
        found.append([f"{opening}|{feature}" for feature in
                      (*features, f"asked={text in asked}", f"since={near}",
                       f"since,word={near},{text if text in asked else shape(text)}")])
    return found


def _answer(learnt, example):
    words = words_in(example.context)
    features = asked_neighbourhoods(example, words)
    if learnt.single is not None or "B-A" not in learnt.regression.classes_:
        return ""
    first = int(learnt.probability(features, "B-A").argmax())
    last = first
    for tag in learnt.predict(features[first + 1 : first + 40]):
        if parts(tag)[0] != "I":
            break
        last += 1
    return example.context[words[first][0] : words[last][1]]


def nearest_summary(training, held_out):
    """The summary of the training example whose words and pairs have the largest cosine."""
    return [example.summary for example in _nearest(training, held_out)]


def nearest_output(training, held_out):
    """The answer of that example."""
    return [example.output for example in _nearest(training, held_out)]


def _nearest(training, held_out):
    text, _ = _sklearn()
    weights = text.TfidfVectorizer(analyzer=words_and_pairs, sublinear_tf=True)
    known = weights.fit_transform([example.content for example in training])
    near = (weights.transform([example.content for example in held_out]) @ known.T).toarray()
    return [training[i] for i in near.argmax(axis=1).tolist()]


_REGRESSION, _NEAREST = "TF-IDF + logistic regression", "TF-IDF, nearest example"
BASELINES = {Classified: (majority_class, learnt_class, _REGRESSION),
             Tagged: (majority_tags, learnt_tags, _REGRESSION),
             Question: (majority_answer, learnt_answer, _REGRESSION),
             Summary: (majority_summary, nearest_summary, _NEAREST),
             Answered: (majority_output, nearest_output, _NEAREST)}
