"""What a language model makes of a task that stands in its prompt, by how many examples are solved
there before the one that it is asked about (Brown et al. 2020). Nothing is trained.

    config = PromptConfig(calibrate=True)
    task = prompt_task(("reviews.jsonl",), config)
    results = prompt_study(model, tokenizer, task, [0, 1, 2, 4, 8], config)
    results[-1].scores["calibrated"]["accuracy"]            # of each draw of 8 shots

It answers in one of two ways. Of labels it takes the one that is likeliest in its place; other
text it writes, greedily, and so it may labels. Which examples are shown is drawn several times:
the answers of a small model depend on that, often more than on how many there are, and on labels
that it would say after any text. What it says of a text without content can be divided out (Zhao
et al. 2021). The prompts themselves stand in tasks/prompts.py, and how kinds of models are asked
by them in asking.py.
"""

from dataclasses import dataclass

import numpy as np

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.evaluation.asking import asking
from minifm.rng import Rng
from minifm.tasks import check_labels, labels_of, read, sides, stdlib
from minifm.tasks.baselines import BASELINES
from minifm.tasks.examples import HELD_OUT, check_sides
from minifm.tasks.prompts import (
    AnyKind,
    Form,
    Template,
    draw_shots,
    form_of,
    none_of,
    require_form,
)
from minifm.text.bytelevel import as_bytes

CONTENT_FREE = ("N/A", "", "[MASK]")        # Zhao et al. 2021, section 5
WRITTEN = 32                                # tokens of an answer, where the user does not say


@dataclass(frozen=True)
class PromptConfig:
    """How a model is asked."""

    template: str | None = setting(
        None, "a file with the text of one example, fields in braces: {text} {label}; of pairs "
              "{text_pair}, too; of other texts {input} {output}, {context} {question} {answer}, "
              "or {text} {summary} (default: one for each kind). Only a model that guesses hidden "
              "tokens reads what stands behind the answer")
    instruction: str = setting("", r"a text before all examples; \n is a line feed")
    separator: str = setting(r"\n\n", r"stands between two examples; \n is a line feed")
    by: str | None = setting(
        None, "likelihood: of the labels the likeliest; text: what the model writes, which must be "
              "the label (default: likelihood for labels, text for all else)",
        choices=(None, "likelihood", "text"))
    normalize: str = setting("none", "divide the log-likelihood of a label by its tokens, its "
                             "bytes, or nothing", choices=("none", "tokens", "bytes"))
    together: bool = setting(
        False, "of a model that guesses hidden tokens: hide those of a label all at once (Schick "
        "and Schütze 2021), not one at a time (pseudo-log-likelihood, Salazar et al. 2020)")
    calibrate: bool = setting(False, "divide out what each label has after a text without content, "
                              "and show both (Zhao et al. 2021)")
    stop: str | None = setting(None, r"by text: an answer ends before this; \n is a line feed "
                               r"(default: \n, and what the template has behind the answer)")
    max_tokens: int | None = setting(None, f"by text: of an answer (default: {WRITTEN})", least=1)
    draws: int = setting(5, "how often the shots are drawn", least=1)
    examples: int = setting(200, "held-out examples to ask about, chosen by the seed; 0: all",
                            least=0)
    held_out_data: tuple[str, ...] = setting((), "files of examples to ask about (default: a part "
                                             "of the task's)")
    held_out: float | None = setting(
        None, f"the part of the groups of examples that is asked about, where there is no "
              f"--held-out-data (default: {HELD_OUT})", above=0, below=1)
    group: str | None = setting(None, "the field of examples that names what must not be on both "
                                "sides, such as a document (default: each text)")
    batch: int = setting(8, "prompts computed at a time; changes no result on the C backend",
                         least=1)
    seed: int = setting(0, "decides what is held out, and which shots are shown in which order")

    def __post_init__(self):
        check(self)
        check_sides(self)
        if self.stop == "":
            raise ConfigError("stop: expected a text to stop before, got an empty one")

    def text(self, name):
        """A setting with its line feeds."""
        return getattr(self, name).replace("\\n", "\n")


@dataclass(frozen=True)
class PromptTask:
    """What a model is asked.

    form, template
    labels   that there are; () where the examples have none
    chosen   whether the model chooses among them; else it writes
    pool     examples to show
    asked    examples to ask about, none of which is in the pool, nor a copy
    copies   how many were left out of the pool for that
    baseline {score: fraction} of the most frequent answers, as "majority" in tasks/baselines.py
    """

    form: Form
    template: Template
    labels: tuple
    chosen: bool
    pool: list
    asked: list
    copies: int
    baseline: dict

    @property
    def kind(self):
        return type(self.asked[0])


def prompt_task(data, config, *, cloze=False):
    """The PromptTask in `data`: files of examples, or one name of stdlib.DATASETS.

    cloze  whether the template may have something given behind the answer: for models that guess
           what is hidden, as BERT does

    Raises ConfigError, or FormatError with file and line.
    """
    training, held_out = _both_sides(data, config)
    form = form_of(training + held_out)
    template = Template(form.template, form) if config.template is None else \
        Template.read(config.template, form, cloze=cloze)
    labels = labels_of(training if config.held_out_data else training + held_out)
    check_labels(held_out, labels)
    by = config.by or ("likelihood" if labels else "text")
    _check_way(by, labels, config)
    asked = held_out[: config.examples or None]
    pool, kind = none_of(training, asked), type(asked[0])
    usual = BASELINES[kind][0](training, asked)
    return PromptTask(form, template, labels, by == "likelihood", pool, asked,
                      len(training) - len(pool), kind.scores(asked, usual).figures)


def _check_way(by, labels, config):
    """Raise ConfigError for settings that have no meaning beside each other."""
    if by == "likelihood" and len(labels) < 2:
        there = f"there is only {labels[0]!r}" if labels else "these examples have none"
        raise ConfigError(f"by: likelihood chooses among labels, and {there}")
    foreign = {"likelihood": ("stop", "max_tokens"),
               "text": ("normalize", "calibrate", "together")}[by]
    for name in foreign:
        if getattr(config, name) != getattr(PromptConfig(), name):
            raise ConfigError(f"{name}: has no meaning by {by}; leave it out")


def _both_sides(data, config):
    """(examples to show, examples to ask about)."""
    built = stdlib.named_in(data, "task")
    kind = AnyKind(stdlib.DATASETS[built].kind if built else None)
    if built:
        require_form(kind.kind)                     # before the source is read, which takes a while
    examples = stdlib.build([built])[built] if built else _read_all(data, kind, config)
    return sides(examples, _read_all(config.held_out_data, kind, config) or None,
                 fraction=config.held_out, seed=config.seed)


def _read_all(files, kind, config):
    return [found for file in files for found in read(file, kind, group=config.group)]


def asker_of(model, tokenizer, config):
    """How the model is asked (asking.py), as the settings say. Raises ConfigError."""
    return asking(model, tokenizer, together=config.together, batch=config.batch)


def prompter_of(task, asker, config):
    """The Prompter of the task's prompts, for the model of an `asker`; raises ConfigError for one
    that does not write, where it should."""
    if not (task.chosen or asker.writes):
        raise ConfigError(f"by: a {type(asker.model).__name__} guesses hidden tokens and does not "
                          "write; expected likelihood, and examples with labels")
    ends = {"answers": task.labels} if task.chosen else {"written": config.max_tokens or WRITTEN}
    return asker.prompter(
        task.template, asker.tokenizer, asker.model.config.context,
        separator=config.text("separator"), instruction=config.text("instruction"), **ends)


def shots_of(task, count, draw, config):
    """The examples that are shown in a draw, as a list; they are a function of the seed."""
    return draw_shots(task.pool, count, Rng(config.seed).child("shots", draw))


# -- the study -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of prompts with `shots` shots each, where they fitted.

    scores  {way to answer: {score: [a fraction for each draw]}}
    facts   {what: how many prompts of all draws}
    shown   how many shots the prompts had, on the average
    """

    shots: int
    scores: dict
    facts: dict
    shown: float


def prompt_study(model, tokenizer, task, counts, config, *, say=lambda result: None):
    """[Result], one for each number of shots, of a model that is asked after so many each: one that
    goes on with a text, answers one or guesses what is hidden in it.

    counts  of shots, from 0
    say     called with each Result when it is there

    Raises ConfigError for more shots than there are to draw, a template that does not fit, or a
    model that cannot be asked so.
    """
    counts = sorted(set(counts))
    if not counts or counts[0] < 0:
        raise ConfigError(f"shots: expected numbers from 0, got "
                          f"{', '.join(map(str, counts)) or 'none'}")
    shots_of(task, counts[-1], 0, config)               # there are so many, or nothing begins
    asker, results = asker_of(model, tokenizer, config), []
    prompter = prompter_of(task, asker, config)
    for count in counts:
        draws = [_asked(asker, prompter, task, shots_of(task, count, draw, config), config)
                 for draw in range(config.draws if count else 1)]   # of no shots there is one draw
        results.append(_together(count, draws))
        say(results[-1])
    return results


def _together(count, draws):
    """One Result of all draws, [(figures, facts, shots of each prompt)]."""
    figures, facts, shown = zip(*draws)
    scores = {way: {name: [draw[way][name] for draw in figures] for name in found}
              for way, found in figures[0].items()}
    return Result(count, scores, {what: sum(draw[what] for draw in facts) for what in facts[0]},
                  float(np.mean(shown)))


def _asked(asker, prompter, task, shots, config):
    """({way: {score: fraction}}, {what: how many}, [shots of each prompt]) of one draw."""
    prompts = [prompter(task.form.given(example), shots) for example in task.asked]
    facts = {"prompts": len(prompts), "fewer shots": sum(p.shots < len(shots) for p in prompts),
             "cut": sum(p.cut for p in prompts)}
    if task.chosen:
        found = _chosen(asker, prompter, task, prompts, shots, config)
    else:
        found = {"written": _written(asker, prompter, task, prompts, config)}
        facts["no label"] = sum(answer is None for answer in found["written"])
    return ({way: task.kind.scores(task.asked, answers).figures
             for way, answers in found.items()}, facts, [prompt.shots for prompt in prompts])


# -- by likelihood ---------------------------------------------------------------------------------


def _chosen(asker, prompter, task, prompts, shots, config):
    """{way: [a label for each prompt]}."""
    likely = log_probabilities(asker, prompts, task.labels, config)             # [N, K]
    found = {"likelihood": likely}
    if config.calibrate:
        found["calibrated"] = likely - _of_no_content(asker, prompter, task, prompts, shots, config)
    return {way: [task.labels[i] for i in x.argmax(1).tolist()] for way, x in found.items()}


def log_probabilities(asker, prompts, labels, config):
    """float64 [N, K]: log of how probable each label is in each prompt, among these labels; as
    `normalize` says, by what of a label's log-likelihood."""
    scores = asker.scores(prompts)
    x = np.array([s.log_likelihood for s in scores]).reshape(len(prompts), len(labels))
    if config.normalize == "tokens":
        x = x / np.array([s.tokens for s in scores]).reshape(x.shape)
    elif config.normalize == "bytes":
        x = x / np.array([len(as_bytes(label)) for label in labels])
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


def _of_no_content(asker, prompter, task, prompts, shots, config):
    """float64 [N, K]: log of the mean probability of each label where CONTENT_FREE stands in place
    of the text, behind the shots that the prompt has, or as many of them as leave room for it: a
    text of a character or two is shorter."""
    found = {}
    for kept in sorted({prompt.shots for prompt in prompts}):
        empty = [prompter(dict.fromkeys(task.form.fields, text), shots[len(shots) - kept :])
                 for text in CONTENT_FREE]
        found[kept] = np.logaddexp.reduce(
            log_probabilities(asker, empty, task.labels, config)) - np.log(len(empty))
    return np.stack([found[prompt.shots] for prompt in prompts])


# -- by text ---------------------------------------------------------------------------------------


def _written(asker, prompter, task, prompts, config):
    """What the model writes greedily for each prompt, without white space at its ends. Where
    there are labels, None for what is none of them."""
    usual = [text for text in ("\n", task.template.tail({})) if text]
    stop = usual if config.stop is None else [config.text("stop")]
    answers = [text.strip() for text in asker.written(prompts, prompter.written, stop)]
    return [answer if answer in task.labels or not task.labels else None for answer in answers]
