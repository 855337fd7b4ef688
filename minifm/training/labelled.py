"""The tasks that a model can be fine-tuned for: of each its examples, the rows that they become,
the head that learns from them, and how well its answers agree with the labels.

    classify    a label for a text, or for two
    ner         entities in a text, by a tag for each word
    qa          where in a text the answer to a question stands
    summarize   a text made of a text, by a decoder or an encoder-decoder

What rows and scores are stands in tasks/, which knows no model; the heads stand in models/heads.py.
"""

from minifm.errors import ConfigError, listed, require_finite
from minifm.generation import Sampling, generate
from minifm.models.causal import CausalModel
from minifm.models.heads import QuestionAnswerer, SequenceClassifier, TokenClassifier, with_head
from minifm.models.seq2seq import Seq2SeqModel
from minifm.tasks import (
    Classified,
    ClassifiedRows,
    Question,
    QuestionRows,
    Summary,
    Tagged,
    TaggedRows,
    labels_of,
)
from minifm.tasks.batches import HeldOutTaskBatches
from minifm.tasks.spans import tag_names
from minifm.tasks.summarize import PairRows, SummaryRows
from minifm.tensor import no_grad
from minifm.training.objectives import CausalLanguageModel, Denoising, TokenObjective


class Labelled(TokenObjective):
    """Say the labels: the batch is (ids [B, T], targets [B, …], key_mask [B, T]), and types
    [B, T], where the model tells the texts of a pair apart."""

    name = "labelled"
    unit = "label"

    def loss(self, model, batch, *, denominator, rng):
        ids, targets, mask, *types = batch
        return model.loss(ids, targets, types=types[0] if types else None,
                          key_mask=None if mask.all() else mask, denominator=denominator,
                          rng=rng, recompute=self.recompute)


def tells_texts_apart(model):
    """Whether a Headed model has embeddings of types, as BERT does and RoBERTa does not."""
    return getattr(model.config.body, "types", 1) > 1


class Task:
    """What tasks do alike whose model is a body and a head."""

    example = None          # the kind of example
    head = None             # the kind of head

    def model(self, model, examples, tokenizer, rng):
        """`model`, with a head for the labels of the examples. Raises ConfigError where it has
        such a head already, for other labels."""
        labels = self.labels(examples)
        if isinstance(model, self.head):
            unknown = [label for label in labels if label not in model.config.labels]
            if unknown:
                raise ConfigError(
                    f"labels: the model knows {listed(model.config.labels)}, and the "
                    f"examples have {listed(unknown)}; start from the model before its "
                    "head to learn other labels")
            return model
        if isinstance(model, Seq2SeqModel):
            raise ConfigError(f"a {type(model).__name__} has no head for labels; only summarize "
                              "is for encoder-decoders")
        fills = tokenizer.end_of_text if tokenizer.padding is None else tokenizer.padding
        body = getattr(model, "body", model).config
        return with_head(model, self.head, labels, rng=rng,
                         padding=None if hasattr(body, "padding") else fills)

    def require(self, model):
        """Raise ConfigError for a model that has not learnt such a task."""
        if not isinstance(model, self.head):
            raise ConfigError(f"expected a {self.head.__name__}, got a {type(model).__name__}: "
                              "fine-tune it first")

    def labels(self, examples):
        """What the logits of the head stand for."""
        return labels_of(examples)

    def rows(self, model, examples, tokenizer, length):
        """The Rows of the examples."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its rows are")

    def objective(self, model, recompute=False):
        return Labelled(recompute)

    def answers(self, model, rows, tokenizer, batch):
        """What the model says of each example; `batch` rows are looked at together."""
        def said(ids, mask, types=None):
            with no_grad():
                x = model(ids, types=types, key_mask=None if mask.all() else mask).numpy()
            require_finite(x)
            return x
        return self.predictions(rows, HeldOutTaskBatches(rows, batch=batch).outputs(said))

    def predictions(self, rows, outputs):
        """What the head's outputs mean."""
        return rows.predictions(outputs)

    def scores(self, examples, answers):
        """Scores: `figures` {name: fraction}, the first of which counts most, and `table()`."""
        return self.example.scores(examples, answers)


class Classify(Task):
    """A label for a text, or for two."""

    example, head = Classified, SequenceClassifier

    def rows(self, model, examples, tokenizer, length):
        return ClassifiedRows(examples, tokenizer, model.config.labels, length=length,
                              typed=tells_texts_apart(model))


class Tag(Task):
    """Entities in a text; the head says a tag for each token: O, B-TYPE or I-TYPE."""

    example, head = Tagged, TokenClassifier

    def labels(self, examples):
        return tag_names(labels_of(examples))

    def rows(self, model, examples, tokenizer, length):
        types = tuple(tag.removeprefix("B-") for tag in model.config.labels if tag[:2] == "B-")
        if model.config.labels != tag_names(types):
            raise ConfigError("labels: expected tags O, B-TYPE, I-TYPE, … of the types in order, "
                              f"the model has {listed(model.config.labels)}")
        return TaggedRows(examples, tokenizer, types, length=length, overlap=length // 4)


class Answer(Task):
    """Where in a text the answer to a question stands."""

    example, head = Question, QuestionAnswerer

    def labels(self, examples):
        return ("start", "end")

    def rows(self, model, examples, tokenizer, length):
        return QuestionRows(examples, tokenizer, length=length, typed=tells_texts_apart(model))

    def predictions(self, rows, outputs):
        # A model that never met a question without an answer has learnt to point elsewhere.
        return rows.predictions(outputs, may_be_none=True)


class Summarize(Task):
    """A text made of a text. A decoder goes on behind it; an encoder-decoder reads it, and writes.
    Either learns to write as it has learnt to before: there is no other head."""

    example = Summary

    def require(self, model):
        if not isinstance(model, (CausalModel, Seq2SeqModel)):
            raise ConfigError(f"summarize: expected a model that writes, got a "
                              f"{type(model).__name__}")

    def model(self, model, examples, tokenizer, rng):
        self.require(model)
        return model

    def rows(self, model, examples, tokenizer, length):
        kind = PairRows if isinstance(model, Seq2SeqModel) else SummaryRows
        return kind(examples, tokenizer, length=length)

    def objective(self, model, recompute=False):
        kind = Denoising if isinstance(model, Seq2SeqModel) else CausalLanguageModel
        return kind(recompute)

    def answers(self, model, rows, tokenizer, batch):
        found = []
        for first in range(0, len(rows), batch):
            done = generate(model, tokenizer, rows.prompts[first : first + batch],
                            strategy=Sampling(temperature=0), max_tokens=rows.longest)
            found += [completion.text.strip() for completion in done]
        return found


TASKS = {"classify": Classify(), "ner": Tag(), "qa": Answer(), "summarize": Summarize()}
