"""Prompts: the text by what templates say, shots by their balance, answers against the plain
forward in float64, and every mistake of the user's one line."""

import json
import string
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import randomised
from test_cli import minifm, refused  # noqa: F401
from test_evaluation import log_probabilities as of_every_token

import minifm as mf
from minifm.errors import AnomalyError, ConfigError, FormatError
from minifm.evaluation.prompting import (
    PromptConfig,
    asker_of,
    log_probabilities,
    prompt_study,
    prompt_task,
    prompter_of,
    shots_of,
)
from minifm.evaluation.score import Hidden, score_hidden, score_targets
from minifm.generation import Completion, Sampling, generate
from minifm.hub import save_model
from minifm.models import (
    GPT,
    T5,
    Bert,
    BertConfig,
    GPTConfig,
    ModernBert,
    ModernBertConfig,
    T5Config,
    packed_format,
)
from minifm.models.heads import SequenceClassifier, with_head
from minifm.picture import MISSING
from minifm.tasks import Answered, Classified, Question, Summary, Tagged, read
from minifm.tasks.prompts import (
    CUT,
    FORMS,
    PAIRS,
    ClozePrompter,
    Prompter,
    SourcePrompter,
    Template,
    draw_shots,
    form_of,
    largest,
    none_of,
    shortened,
)
from minifm.text import Tokenizer
from minifm.text.offsets import Frame
from minifm.text.rows import common_prefix
from minifm.text.tokenizer import FIRST, MASK, PADDING

BYTES = Tokenizer.bytes()
TEXT = FORMS[Classified]
WORDS = {"pet": ("cat", "dog", "hen"), "tree": ("oak", "elm", "fir"), "sky": ("sun", "moon")}
EXAMPLES = [Classified(f"{word} {n}", label) for label, words in WORDS.items() for word in words
            for n in range(4)]


def model_of(tokenizer=BYTES, context=96, seed=0):
    config = GPTConfig(vocabulary=tokenizer.vocabulary, context=context, layers=1, heads=2, width=8)
    return randomised(GPT(config), seed, 0.7)


def prompter(text="{text}: {label}", tokenizer=BYTES, context=96, **options):
    return Prompter(Template(text, TEXT), tokenizer, context, **options)


# -- templates -------------------------------------------------------------------------------------

literals = st.text(st.sampled_from("a:{} \té\n"), max_size=6)


@given(literals, literals, literals, st.sampled_from([" ", "", "x{label}", "{text} \n"]))
def test_a_solved_example_is_what_str_format_makes(front, middle, back, text):
    """Whatever stands in the texts, fields and braces too."""
    example = Classified("é " + text + "{", "{label}")
    escaped = [part.replace("{", "{{").replace("}", "}}") for part in (front, middle, back)]
    written = "{}{{text}}{}{{label}}{}".format(*escaped)
    template = Template(written, TEXT)
    whole = written.format(text=example.text, label=example.label).rstrip("\n") \
        if back.rstrip("\n") == "" else \
        written.rstrip("\n").format(text=example.text, label=example.label)
    assert template.solved(example) == whole
    question = template.question(TEXT.given(example))
    assert whole == question + template.gap + example.label + template.tail({})
    assert template.gap.strip(" \t") == "" and template.tail({}) == back.rstrip("\n")
    ends_in_space = middle.endswith((" ", "\t"))
    assert bool(template.gap) == ends_in_space


def test_each_kind_has_a_template_with_all_its_fields():
    examples = {
        Classified("t", "L"): "Text: t\nLabel: L", Answered("i", "o"): "Input: i\nOutput: o",
        Question("q?", "c a", [("a", 2)]): "c a\nQuestion: q?\nAnswer: a",
        Question("q?", "c", ()): "c\nQuestion: q?\nAnswer: ",
        Summary("t", "s"): "t\nTL;DR: s",
        Classified("t", "L", "p"): "Text: t\nSecond text: p\nLabel: L"}
    for example, text in examples.items():
        form = form_of([example])
        assert Template(form.template, form).solved(example) == text
        names = {name for _, name, _, _ in string.Formatter().parse(form.template) if name}
        assert names == {*form.fields, form.answer}
    assert form_of([Classified("t", "L", "p")]) is PAIRS


@pytest.mark.parametrize("text, said", [
    ("{text}\n", "t.txt: expected the field {label} once, .* it is there 0 times"),
    ("{text} {label} {label}", "t.txt: expected the field {label} once, .* there 2 times"),
    ("a {label}", "t.txt: expected a field of what is given: {text}"),
    ("{text}\n\n{lable}", "t.txt: line 3: {lable} is no field of these examples; expected {text} "
                          "or {label}"),
    ("{text!r} {label}", "line 1: {text!r} is no field"),
    ("{text:>9} {label}", "line 1: {text:>9} is no field"),
    ("{} {label}", "line 1: {} is no field"),
    ("{text.upper} {label}", "line 1: {text.upper} is no field"),
    ("{text}\n{label} }", "line 2: a single '}'"),
    ("{label} {text\n}", "line 1: a single '{'; expected a field such as {text}"),
    ("a\n{label}\n{text}", "line 3: {text} stands behind {label}, where a model"),
])
def test_a_template_that_cannot_be(text, said, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(text)
    escaped = said.replace("{", r"\{").replace("}", r"\}")
    with pytest.raises(FormatError, match=escaped) as caught:
        Template.read(path, TEXT)
    assert "\n" not in str(caught.value)


def test_kinds_that_prompts_do_not_know():
    with pytest.raises(ConfigError, match="examples of Tagged have no such"):
        form_of([Tagged("a b", ())])
    with pytest.raises(ConfigError, match="examples of Tagged have no such"):
        prompt_task(("stdlib-ner",), PromptConfig())
    mixed = [Classified("a", "x"), Classified("b", "x", "c")]
    with pytest.raises(FormatError, match="expected no 'text_pair', as of the examples before it"):
        form_of(mixed)
    with pytest.raises(FormatError, match="expected a 'text_pair'"):
        form_of(mixed[::-1])


# -- shots -----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("aabc"), min_size=1, max_size=12), st.integers(0, 99))
def test_shots_are_balanced_nested_and_follow_from_the_seed(labels, seed):
    pool = [Classified(f"text {i}", label) for i, label in enumerate(labels)]
    there, before = Counter(labels), set()
    for count in range(len(pool) + 1):
        shots = draw_shots(pool, count, mf.Rng(seed))
        assert shots == draw_shots(pool, count, mf.Rng(seed))
        found = {shot.text for shot in shots}
        assert len(found) == count and before <= found <= {e.text for e in pool}
        before, counts = found, Counter(shot.label for shot in shots)
        for label in there:             # no label is behind another by more than 1, but for want
            assert counts[label] == there[label] or \
                max(counts.values(), default=0) - counts[label] <= 1
    with pytest.raises(ConfigError, match=f"at most the {len(pool)} examples .* got {count + 1}"):
        draw_shots(pool, count + 1, mf.Rng(seed))


def test_draws_differ_in_what_they_show_and_in_its_order():
    drawn = [draw_shots(EXAMPLES, 6, mf.Rng(seed)) for seed in range(9)]
    assert len({tuple(e.text for e in shots) for shots in drawn}) == 9
    few = [Classified("a", "x"), Classified("b", "y"), Classified("c", "z")]
    assert len({tuple(e.text for e in draw_shots(few, 3, mf.Rng(s))) for s in range(40)}) == 6
    assert len({draw_shots(EXAMPLES, 1, mf.Rng(s))[0].label for s in range(40)}) == 3
    first = [[e.label for e in draw_shots(EXAMPLES, 6, mf.Rng(s))[:3]] for s in range(40)]
    assert any(len(set(labels)) < 3 for labels in first)        # labels do not take turns


def test_copies_of_what_is_asked_are_not_shown():
    pool = [Classified("a  b", "x"), Classified("a b", "y"), Classified("ab", "x")]
    assert none_of(pool, [Classified(" a\nb ", "z")]) == pool[2:]


# -- prompts ---------------------------------------------------------------------------------------


def test_a_prompt_is_the_shots_and_the_question():
    make = prompter(answers=("pet", "tree"), separator="\n--\n", instruction="Say which.")
    prompt = make({"text": "cow"}, EXAMPLES[:2])
    assert BYTES.decode(prompt.ids) == b"Say which.\n--\ncat 0: pet\n--\ncat 1: pet\n--\ncow:"
    assert [BYTES.decode(row[prompt.start :]) for row in prompt.rows] == [b" pet", b" tree"]
    assert (prompt.shots, prompt.cut) == (2, False)
    writing = prompter(written=5)({"text": "cow"})
    assert writing.ids == [*b"cow:"] and writing.rows == []


@given(st.integers(8, 80), st.integers(0, 6), st.text("ab é", max_size=30), st.integers(0, 9))
def test_a_prompt_fits_and_no_more_would(context, count, text, written):
    """Against trying every number of shots, and of characters, in turn."""
    answers = () if written else ("pet", "a tree")
    make = prompter(context=context, answers=answers, written=written)

    def taken(text, shots):
        whole = "\n\n".join([*(f"{e.text}: {e.label}" for e in shots), f"{text}:"])
        return len(whole.encode()) + (written or len(" a tree") - 1)

    shots = EXAMPLES[:count]
    fits = [n for n in range(count + 1) if taken(text, shots[count - n :]) <= context]
    if taken(CUT, []) > context and not fits:
        room = context - len(f"{CUT}:".encode())
        said = f"max_tokens: expected at most {room}, .* context of {context}, got {written}" \
            if 0 < room < written else \
            f"it takes {taken(CUT, [])} tokens, and the model's context is {context}"
        with pytest.raises(ConfigError, match=said):
            make({"text": text}, shots)
        return
    prompt = make({"text": text}, shots)
    if fits:
        assert (prompt.shots, prompt.cut) == (max(fits), False)
        kept = shots[count - max(fits) :]
        assert BYTES.decode(prompt.ids).decode().startswith(f"{kept[0].text}: " if kept else text)
        assert BYTES.decode(prompt.ids).decode().endswith(f"{text}:")
    else:
        assert (prompt.shots, prompt.cut) == (0, True)
        kept = BYTES.decode(prompt.ids).decode().removesuffix(":").removesuffix(CUT)
        assert text.startswith(kept) and len(kept) < len(text)
        longer = [n for n in range(len(text)) if taken(shortened(text, n), []) <= context]
        assert kept == text[: max(longer)].rstrip()


def test_of_several_texts_the_longest_are_cut():
    make = Prompter(Template("{context}|{question}|{answer}", FORMS[Question]), BYTES, 40,
                    written=5)
    prompt = make({"context": "c" * 99, "question": "why?"})
    assert BYTES.decode(prompt.ids).decode() == "c" * 23 + CUT + "|why?|" and prompt.cut


@given(st.integers(0, 40), st.integers(-1, 45))
def test_the_largest_that_works(most, limit):
    assert largest(most, lambda n: n if n <= limit else None) == \
        (None if limit < 0 else min(limit, most))


def test_an_answer_that_shares_a_token_with_the_question():
    """All answers are scored behind the same ids, from the first that one of them changes."""
    joined = Tokenizer.train(["is cowpet is cowpet is cowoak "] * 9, 300)
    make = prompter("is {text}{label}", joined, answers=("pet", "oak"))
    prompt, alone = make({"text": "cow"}), joined.encode("is cow").tolist()
    assert prompt.ids == alone[: prompt.start] and 0 < prompt.start < len(alone)
    for row, answer in zip(prompt.rows, ("pet", "oak")):
        assert row == joined.encode(f"is cow{answer}").tolist()
        assert row[: prompt.start] == prompt.ids
    assert prompt.rows[0][prompt.start] != prompt.rows[1][prompt.start]


def test_an_empty_prompt_follows_an_end_of_text():
    prompt = prompter("{text}{label}", answers=("a", "b"))({"text": ""})
    assert prompt.rows == [[256, 97], [256, 98]] and prompt.start == 1
    first = Tokenizer.bytes((FIRST, PADDING, MASK))
    prompt = prompter("{text}{label}", first, answers=("a", "b"))({"text": ""})
    assert prompt.ids == [first.first]          # what the tokenizer's file puts in front


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=4))
def test_a_common_prefix(rows):
    n = common_prefix(rows)
    assert len({tuple(row[:n]) for row in rows}) == 1 and n <= min(map(len, rows))
    assert n == min(map(len, rows)) or len({row[n] for row in rows}) > 1


# -- answers by likelihood -------------------------------------------------------------------------

LABELS = ("pet", "tree", "sky")


def by_hand(model, text, labels, normalize):
    """log of how probable each label is behind a text of bytes, in float64 and one by one."""
    found = []
    for label in labels:
        ids = [*text.encode(), *f" {label}".encode()]
        logp, start = of_every_token(model, ids), len(text.encode())
        nats = sum(logp[i - 1, ids[i]] for i in range(start, len(ids)))
        found.append(nats / {"none": 1, "tokens": len(label) + 1, "bytes": len(label)}[normalize])
    return np.array(found) - np.log(np.exp(found).sum())


@pytest.mark.parametrize("normalize", ["none", "tokens", "bytes"])
def test_the_likelihood_of_labels_is_what_the_plain_forward_says(backend, normalize):
    model, make = model_of(seed=3), prompter(answers=LABELS)
    prompts = [make({"text": e.text}, EXAMPLES[:2]) for e in EXAMPLES[8:12]]
    config = PromptConfig(normalize=normalize)
    found = log_probabilities(asker_of(model, BYTES, config), prompts, LABELS, config)
    wanted = [by_hand(model, f"cat 0: pet\n\ncat 1: pet\n\n{e.text}:", LABELS, normalize)
              for e in EXAMPLES[8:12]]
    assert found == pytest.approx(np.array(wanted), rel=1e-4, abs=1e-4)
    assert np.exp(found).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("count, context, kept", [(0, 96, 0), (3, 96, 3), (2, 44, 1)])
def test_a_study_answers_and_calibrates_by_definition(count, context, kept, tmp_path):
    """Labels, scores and calibration, each computed again from the plain forward. In a context of
    44, texts without content would leave room for both shots; they follow one, as the others do."""
    (tmp_path / "t.txt").write_text("{text}: {label}\n")
    config = PromptConfig(calibrate=True, draws=2, template=str(tmp_path / "t.txt"), held_out=0.4)
    records = [{"text": f"{n:2} letters", "label": ("ab", "cd")[n % 2]} for n in range(20)]
    task, model = prompt_task(data(tmp_path, records), config), model_of(seed=5, context=context)
    result = prompt_study(model, BYTES, task, [count], config)[0]
    assert result.shown == kept
    for draw in range(2 if count else 1):
        shots = shots_of(task, count, draw, config)[count - kept :]
        front = "".join(f"{e.text}: {e.label}\n\n" for e in shots)
        free = np.mean([np.exp(by_hand(model, f"{front}{text}:", task.labels, "none"))
                        for text in ("N/A", "", "[MASK]")], axis=0)
        right = {"likelihood": 0, "calibrated": 0}
        for example in task.asked:
            p = np.exp(by_hand(model, f"{front}{example.text}:", task.labels, "none"))
            for way, q in (("likelihood", p), ("calibrated", p / free)):
                first, second = np.sort(q)[:-3:-1]
                assert first > second * (1 + 1e-3)          # rounding does not decide
                right[way] += task.labels[int(q.argmax())] == example.label
        for way, n in right.items():
            assert result.scores[way]["accuracy"][draw] == pytest.approx(n / len(task.asked))


def data(tmp_path, records=None, name="data.jsonl"):
    path = tmp_path / name
    records = [e.record() for e in EXAMPLES] if records is None else records
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return (str(path),)


@pytest.mark.parametrize("by", ["likelihood", "text"])
def test_no_result_depends_on_the_batch(backend, by, tmp_path):
    found = []
    for batch in (1, 3, 8):
        config = PromptConfig(by=by, batch=batch, draws=1, examples=7, held_out=0.4,
                              max_tokens=4 if by == "text" else None)
        task = prompt_task(data(tmp_path), config)
        found.append(prompt_study(model_of(), BYTES, task, [2], config))
        if by == "likelihood":
            asker = asker_of(model_of(), BYTES, config)
            prompts = [prompter_of(task, asker, config)(task.form.given(e), EXAMPLES[:2])
                       for e in task.asked]
            likely = log_probabilities(asker, prompts, LABELS, config)
            found[-1] = (found[-1], likely.tobytes())
    if mf.backend().name == "c":
        assert found[0] == found[1] == found[2]         # bitwise


def test_the_seed_decides_all(tmp_path):
    def asked(seed):
        config = PromptConfig(seed=seed, draws=3)
        task = prompt_task(data(tmp_path), config)
        return task.asked, [shots_of(task, 3, draw, config) for draw in range(3)]
    assert asked(1) == asked(1)
    assert asked(1)[0] != asked(2)[0]
    shown = asked(1)[1]
    assert shown[0] != shown[1] != shown[2]


def test_what_is_asked_is_never_shown(tmp_path):
    """Copies in another group are on another side, and are left out."""
    records = [e.record() | {"group": "a"} for e in EXAMPLES]
    records += [e.record() | {"group": "b"} for e in EXAMPLES[:10]]
    left_out = set()
    for seed in range(6):
        task = prompt_task(data(tmp_path, records), PromptConfig(group="group", held_out=0.5,
                                                             examples=6, seed=seed))
        assert len(task.asked) == 6
        assert not {e.text for e in task.asked} & {e.text for e in task.pool}
        assert len(task.pool) + task.copies in (10, 32)
        left_out.add(task.copies)
    assert 6 in left_out        # where group a is shown, it has all that group b asks


def test_shots_that_do_not_fit_are_counted(tmp_path):
    config = PromptConfig(calibrate=True, draws=2, held_out=0.5)
    task = prompt_task(data(tmp_path), config)
    result = prompt_study(model_of(context=50), BYTES, task, [2], config)[0]
    assert result.facts == {"prompts": 2 * len(task.asked), "fewer shots": 2 * len(task.asked),
                            "cut": 0}
    assert result.shown == 1
    # The same as with one shot that is the last of the two: what is divided out, too.
    one = [[shots_of(task, 2, draw, config)[1]] for draw in range(2)]
    make = prompter_of(task, asker_of(model_of(context=50), BYTES, config), config)
    for shots, draw in zip(one, range(2)):
        both = shots_of(task, 2, draw, config)
        for example in task.asked:
            given_fields = task.form.given(example)
            assert make(given_fields, both) == make(given_fields, shots)


def test_texts_that_do_not_fit_are_counted(tmp_path):
    records = [{"text": f"{n} " + "long " * n, "label": "ab"[n % 2]} for n in range(20)]
    config = PromptConfig(held_out=0.5)
    task = prompt_task(data(tmp_path, records), config)
    result = prompt_study(model_of(context=40), BYTES, task, [0], config)[0]
    long = sum(len(f"Text: {e.text}\nLabel:") + 1 > 40 for e in task.asked)
    assert result.facts["cut"] == long and 0 < long < len(task.asked)


# -- answers by text -------------------------------------------------------------------------------


def test_what_is_written_is_compared(tmp_path):
    """With what `generate` writes, one prompt at a time."""
    model = model_of(seed=2)
    template = "{input} is {output}."
    (tmp_path / "t.txt").write_text(template)
    first = prompt_task(data(tmp_path, [{"question": f"say {n}", "answer": n} for n in range(10)]),
                    PromptConfig(held_out=0.5, template=str(tmp_path / "t.txt"), max_tokens=4))
    said = {e.input: generate(model, BYTES, [f"{e.input} is"], strategy=Sampling(temperature=0),
                              max_tokens=4, stop=["\n", "."])[0].text.strip()
            for e in first.asked}
    known = [e.input for e in first.asked][:2]
    records = [{"input": e.input, "output": said[e.input] if e.input in known else "no"}
               for e in first.pool + first.asked if said.get(e.input, "x")]
    config = PromptConfig(held_out=0.5, template=str(tmp_path / "t.txt"), max_tokens=4)
    task = prompt_task(data(tmp_path, records), config)
    assert not task.chosen and task.kind is Answered
    found = prompt_study(model, BYTES, task, [0], config)
    right = sum(e.output == said[e.input] for e in task.asked)
    assert right == len([k for k in known if said[k]]) > 0
    assert found[0].scores == {"written": {"accuracy": [right / len(task.asked)]}}


def test_what_is_written_ends_and_is_a_label_without_its_white_space(tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("{text}: {label}.")
    config = PromptConfig(by="text", template=str(tmp_path / "t.txt"), max_tokens=6, batch=3)
    task, said = prompt_task(data(tmp_path), config), []

    def written(model, tokenizer, prompts, *, strategy, max_tokens, stop):
        assert (strategy, max_tokens) == (Sampling(temperature=0), 6) and len(prompts) <= 3
        said.append(stop)
        asked = [bytes(ids).decode().removesuffix(":") for ids in prompts]
        return [Completion(f" {next(e.label for e in EXAMPLES if e.text == text)}\t")
                for text in asked]

    monkeypatch.setattr("minifm.evaluation.asking.generate", written)
    result = prompt_study(model_of(), BYTES, task, [0], config)[0]
    assert result.scores["written"] == {"accuracy": [1.0], "macro_f1": [1.0]}
    assert result.facts["no label"] == 0 and said[0] == ["\n", "."]
    prompt_study(model_of(), BYTES, task, [0], replace(config, stop=r"\n\n"))
    assert said[-1] == ["\n\n"]


def test_a_text_that_is_no_label_is_counted(tmp_path):
    config = PromptConfig(by="text", draws=1, max_tokens=3)
    task = prompt_task(data(tmp_path), config)
    result = prompt_study(model_of(), BYTES, task, [0], config)[0]
    assert result.facts["no label"] == len(task.asked)
    assert result.scores == {"written": {"accuracy": [0.0], "macro_f1": [0.0]}}


# -- other kinds of models -------------------------------------------------------------------------

SPECIAL = Tokenizer.bytes((FIRST, PADDING, MASK))
CLOZE = Template("{label} is what {text} is", TEXT, cloze=True)


def bert(seed=0, context=64):
    config = BertConfig(vocabulary=SPECIAL.vocabulary, layers=1, heads=2, width=8, context=context,
                        padding=SPECIAL.padding, layout="roberta", dropout=0.0)
    return randomised(Bert(config), seed, 0.7)


def modernbert(seed=0):
    config = ModernBertConfig(vocabulary=SPECIAL.vocabulary, layers=2, heads=2, width=8, context=64,
                              window=8, every=2, padding=SPECIAL.padding)
    return randomised(ModernBert(config), seed, 0.7)


def t5(seed=0):
    start = SPECIAL.padding
    config = T5Config(vocabulary=SPECIAL.vocabulary, layers=1, heads=2, width=8, head_width=4,
                      padding=start, start=start, end=SPECIAL.end_of_text)
    return randomised(T5(config), seed, 0.7)


def of_all(logits):
    """[T, V] log-probabilities in float64."""
    x = logits.numpy()[0].astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def test_an_encoder_decoder_reads_the_prompt_and_says_the_target(backend):
    """Each label with its end, by the plain forward of one source and one target."""
    model, config = t5(3), PromptConfig()
    make = SourcePrompter(Template("{text}: {label}.", TEXT), SPECIAL, None, answers=LABELS)
    prompts = [make({"text": e.text}, EXAMPLES[:n]) for n, e in enumerate(EXAMPLES[8:12])]
    asker, end = asker_of(model, SPECIAL, config), SPECIAL.end_of_text
    found = [score.log_likelihood for score in asker.scores(prompts)]
    wanted = []
    for n, example in enumerate(EXAMPLES[8:12]):
        text = "".join(f"{e.text}: {e.label}.\n\n" for e in EXAMPLES[:n]) + f"{example.text}:"
        source = [*SPECIAL.encode(text), end]
        assert prompts[n].ids == source and prompts[n].shots == n
        for label in LABELS:
            target = [*SPECIAL.encode(label), end]
            with mf.no_grad():
                logp = of_all(model(np.array([source]), np.array([[model.config.start,
                                                                    *target[:-1]]])))
            wanted.append(logp[np.arange(len(target)), target].sum())
    assert found == pytest.approx(wanted, rel=1e-4)
    tokens = [score.tokens for score in asker.scores(prompts)]
    assert tokens == [len(label) + 1 for label in LABELS] * 4


@pytest.mark.parametrize("make_model", [bert, modernbert])
@pytest.mark.parametrize("together", [False, True])
def test_a_masked_model_guesses_what_stands_between_both_sides(backend, together, make_model):
    """Against hiding by hand, each row alone; behind the answer stands what is asked about."""
    model, config = make_model(5), PromptConfig(together=together)
    make = ClozePrompter(CLOZE, SPECIAL, 64, answers=LABELS)
    prompts = [make({"text": e.text}, EXAMPLES[:n]) for n, e in enumerate(EXAMPLES[8:10])]
    found = [score.log_likelihood for score in asker_of(model, SPECIAL, config).scores(prompts)]
    wanted = []
    for n, example in enumerate(EXAMPLES[8:10]):
        front = "".join(f"{e.label} is what {e.text} is\n\n" for e in EXAMPLES[:n])
        before, behind = SPECIAL.encode(front), SPECIAL.encode(f" is what {example.text} is")
        frame = Frame.of(SPECIAL)
        for label in LABELS:
            ids = np.array([*frame.before, *before, *SPECIAL.encode(label), *behind,
                            *frame.behind])
            places = len(frame.before) + len(before) + np.arange(len(label))
            nats = 0
            for hidden in ([places] if together else [[place] for place in places]):
                masked = ids.copy()
                masked[hidden] = SPECIAL.mask
                with mf.no_grad():
                    logp = of_all(model(masked[None]))
                nats += logp[hidden, ids[hidden]].sum()
            wanted.append(nats)
        prompt = prompts[n]
        assert [SPECIAL.decode(prompt.answer(row)).decode() for row in prompt.rows] == [*LABELS]
        assert prompt.ids.count(SPECIAL.mask) == len(LABELS[0])
    assert found == pytest.approx(wanted, rel=1e-4)


@given(st.text("ab ", max_size=6), st.text("ab ", max_size=6),
       st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_is_hidden_holds_the_answer_and_no_token_that_all_rows_share(front, back, answers):
    """With merges across the borders: around what is hidden, all rows are the same, and the hidden
    bytes hold the answer."""
    answers = [answer for answer in answers if answer.strip()] or ["a"]
    tokenizer = Tokenizer.train(["abab aab bba " * 9], 290, (FIRST, PADDING, MASK))
    make = ClozePrompter(Template(f"{{text}}{front}|{{label}}{back}", TEXT, cloze=True), tokenizer,
                         99, answers=answers)
    prompt = make({"text": "ab"})
    for row, answer in zip(prompt.rows, answers):
        stop = len(row) - prompt.behind
        assert row[: prompt.start] == prompt.rows[0][: prompt.start] and prompt.start < stop
        assert row[stop:] == prompt.rows[0][len(prompt.rows[0]) - prompt.behind :]
        whole = f"ab{front}|{answer}{back}".rstrip("\n").encode()
        assert tokenizer.decode(row).removeprefix(b"<s>").startswith(whole)
        before, behind = tokenizer.decode(row[: prompt.start]), tokenizer.decode(row[stop:])
        said = tokenizer.decode(prompt.answer(row)).decode()
        assert answer in said and (before + said.encode() + behind) == tokenizer.decode(row)
        assert before.removeprefix(b"<s>").decode() in f"ab{front}|"


@pytest.mark.parametrize("make, way", [(bert, "likelihood"), (t5, "likelihood"), (t5, "text")])
def test_other_kinds_of_models_are_studied_alike(backend, tmp_path, make, way):
    found = []
    for batch in (1, 3, 8):
        calibrate = way == "likelihood"
        config = PromptConfig(by=way, batch=batch, draws=2, examples=5, calibrate=calibrate,
                              max_tokens=None if calibrate else 3)
        task = prompt_task(data(tmp_path), config, cloze=make is bert)
        found.append(prompt_study(make(1), SPECIAL, task, [0, 1], config))
    assert set(found[0][1].scores) == ({"likelihood", "calibrated"} if calibrate else {"written"})
    for result in found[0]:
        for scores in result.scores.values():
            assert all(0 <= value <= 1 for values in scores.values() for value in values)
    if mf.backend().name == "c":
        assert found[0] == found[1] == found[2]         # bitwise


def test_what_an_encoder_decoder_writes_is_what_generate_does(tmp_path):
    model, config = t5(2), PromptConfig(by="text", max_tokens=4, held_out=0.4)
    task = prompt_task(data(tmp_path), config)
    asker = asker_of(model, SPECIAL, config)
    make = prompter_of(task, asker, config)
    prompts = [make(task.form.given(e), EXAMPLES[:1]) for e in task.asked]
    alone = [generate(model, SPECIAL, [f"Text: {EXAMPLES[0].text}\nLabel: {EXAMPLES[0].label}\n\n"
                                       f"Text: {e.text}\nLabel:"],
                      strategy=Sampling(temperature=0), max_tokens=4, stop=["\n"])[0].text
             for e in task.asked]
    assert asker.written(prompts, 4, ["\n"]) == alone and len(set(alone)) > 1


def test_scores_refuse_what_cannot_be_scored():
    for call, said in [
            (lambda: score_targets(t5(), [([], [[1]])]), "expected a source of 1 … any number of"),
            (lambda: score_targets(t5(), [([1], [[1], []])]), "a target of 1 … any number of"),
            (lambda: score_targets(t5(), [([1], [[1]])], batch=0), "batch: expected at least 1"),
            (lambda: score_hidden(bert(), [Hidden([1, 2], 1, 1)], mask=3), "got 1 … 1 of 2"),
            (lambda: score_hidden(bert(), [Hidden([1] * 65, 1, 2)], mask=3), "within at most 64"),
            (lambda: score_hidden(bert(), [Hidden([1], 0, 1)], mask=3, batch=0), "batch: exp")]:
        with pytest.raises(ConfigError, match=said):
            call()
    for model, call in [(bert(), lambda m: score_hidden(m, [Hidden([1, 2], 0, 1)], mask=3)),
                        (t5(), lambda m: score_targets(m, [([1], [[1]])]))]:
        model.token_embedding.weight.data[:] = np.nan
        with pytest.raises(AnomalyError, match="logits are not finite"):
            call(model)


@pytest.mark.parametrize("make, said", [(bert, "in its place are scored 'pet', 'sky', 'tree'"),
                                        (t5, "behind it are scored 'pet<|endoftext|>', ")])
def test_the_command_asks_other_kinds_of_models(minifm, tmp_path, make, said):  # noqa: F811
    (tmp_path / "model").mkdir()
    save_model(make(), tmp_path / "model", SPECIAL)
    words = ["prompt", tmp_path / "model", "--task", *data(tmp_path), "--shots", 0, "1"]
    status, out, err = minifm(*words, "--show")
    assert status == 0 and said in err, err
    if make is bert:
        assert out.count("<mask>") == 3 and "the model's context is 64" in err
    else:
        assert out.endswith("Label:<|endoftext|>\n") and "context has no limit" in err
    status, out, err = minifm(*words, "--draws", 2, "--calibrate", "--normalize", "tokens")
    assert status == 0 and [line.split()[1] for line in out.splitlines()[1:-1]] \
        == ["likelihood", "calibrated"] * 2, err


# -- files -----------------------------------------------------------------------------------------


def test_free_text_by_either_name(tmp_path):
    records = [{"input": "a", "output": "b"}, {"question": "a", "answer": 7},
               {"question": "c", "output": "d"}]
    found = read(data(tmp_path, records)[0], Answered)
    assert found == [Answered("a", "b"), Answered("a", "7"), Answered("c", "d")]
    assert read(data(tmp_path, [found[0].record()])[0], Answered) == found[:1]
    assert found[0].content == "a" and found[0].labels == []


@pytest.mark.parametrize("records, kind", [
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], Classified),
    ([{"question": "a", "answer": "x"}, {"input": "b", "output": "y"}], Answered),
    ([{"question": "q", "context": "a", "answers": [{"text": "a", "start": 0}]},
      {"question": "q", "context": "b", "answers": []}], Question),
    ([{"text": "a", "summary": "x"}, {"text": "b", "summary": "y"}], Summary),
])
def test_the_fields_say_which_kind_it_is(tmp_path, records, kind):
    task = prompt_task(data(tmp_path, records), PromptConfig(held_out=0.5))
    assert task.kind is kind and task.chosen == (kind is Classified)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def gpt(tmp_path):
    """A directory with a GPT of random weights over bytes."""
    (tmp_path / "gpt").mkdir()
    save_model(model_of(context=64), tmp_path / "gpt", BYTES)
    return tmp_path / "gpt"


def test_the_command_shows_a_table_and_writes_it(minifm, gpt, tmp_path):  # noqa: F811
    words = ["prompt", gpt, "--task", *data(tmp_path), "--draws", 3, "--calibrate"]
    status, out, err = minifm(*words, "--shots", "0,1", "4", "--out", tmp_path / "out")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["shots", "accuracy", "macro", "F1", "shown"]
    assert [line.split()[:2] for line in lines[1:-1]] == [
        [n, way] for n in "014" for way in ("likelihood", "calibrated")]
    assert lines[-1].split()[0] == "majority" and " ± " not in lines[1] and " ± " in lines[3]
    assert "prompts had fewer" in err and "to show    " in err and "saved as " in err
    assert (tmp_path / "out" / "prompt.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "out" / "prompt.json").read_text())
    status, out, _ = minifm(*words, "--shots", "0", "1", "4", "--json", "--batch", 3)
    again = json.loads(out)
    assert again.pop("settings")["batch"] == 3 and stored.pop("settings")["batch"] == 8
    if mf.backend().name == "c":
        assert again == stored
    one = stored["results"][1]
    draws = one["scores"]["likelihood"]["accuracy"]["draws"]
    assert one["shots"] == 1 and len(draws) == 3
    assert one["scores"]["likelihood"]["accuracy"]["mean"] == pytest.approx(np.mean(draws))
    assert one["scores"]["likelihood"]["accuracy"]["spread"] == pytest.approx(np.std(draws, ddof=1))
    gold = Counter(e.label for e in prompt_task(data(tmp_path), PromptConfig()).asked)
    assert stored["majority"]["accuracy"] in [n / gold.total() for n in gold.values()]


def test_without_matplotlib_no_picture_is_promised(minifm, gpt, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = minifm("prompt", gpt, "--task", *data(tmp_path), "--shots", 0, "--examples", 2,
                            "--out", tmp_path / "out")
    assert status == 0 and err.endswith(f"/prompt.json; no picture: {MISSING}\n")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["prompt.json"]


@pytest.mark.parametrize("name", ["prompt.json", "prompt.png"])
def test_where_nothing_can_be_saved_no_study_begins(minifm, gpt, tmp_path, monkeypatch,  # noqa: F811
                                                    name):
    def never(*args, **options):
        raise AssertionError("the study has begun")
    monkeypatch.setattr("minifm.evaluation.prompting.prompt_study", never)
    (tmp_path / "out" / name).mkdir(parents=True)
    words = ["prompt", gpt, "--task", *data(tmp_path), "--out"]
    refused(minifm(*words, tmp_path / "out"), f"{name}: expected a file, or a name that is free")
    refused(minifm(*words, "/proc/nowhere"), "out: /proc/nowhere: nothing can be written in /proc")


def test_weights_are_packed_as_the_user_says(minifm, gpt, tmp_path, monkeypatch):  # noqa: F811
    formats = []

    def asked(model, tokenizer, task, counts, config, say):
        formats.append(packed_format(model))
        return prompt_study(model, tokenizer, task, counts, config, say=say)

    monkeypatch.setattr("minifm.evaluation.prompting.prompt_study", asked)
    words = ["prompt", gpt, "--task", *data(tmp_path), "--shots", 0, "--examples", 2]
    assert minifm(*words, "--format", "int8")[0] == minifm(*words)[0] == 0
    assert formats == ["int8", None]


def test_the_command_shows_a_prompt(minifm, gpt, tmp_path):  # noqa: F811
    status, out, err = minifm("prompt", gpt, "--task", *data(tmp_path), "--shots", 1, "--show",
                              "--instruction", r"Name it.\n")
    config = PromptConfig()
    task = prompt_task(data(tmp_path), config)
    shot, asked = shots_of(task, 1, 0, config)[0], task.asked[0]
    assert status == 0 and "1 of 1 shot;" in err and f"the right one is {asked.label!r}" in err
    assert out == f"Name it.\n\n\nText: {shot.text}\nLabel: {shot.label}\n\n" \
                  f"Text: {asked.text}\nLabel:\n"


def test_mistakes_are_one_line(minifm, gpt, tmp_path):  # noqa: F811
    task = data(tmp_path)[0]
    template = tmp_path / "t.txt"
    template.write_text("{text}\n{lable}")
    only = data(tmp_path, [{"text": f"a {i}", "label": "x"} for i in range(9)], "only.jsonl")[0]
    free = data(tmp_path, [{"input": f"a {i}", "output": "x"} for i in range(9)], "free.jsonl")[0]
    bare = data(tmp_path, [{"text": "a"}], "bare.jsonl")[0]
    empty = data(tmp_path, [{"text": "a", "label": "x"}, {"text": "a", "label": ""}],
                 "empty.jsonl")[0]
    other = data(tmp_path, [{"text": "a", "label": "cow"}], "other.jsonl")[0]
    twice = data(tmp_path, [{"input": "a", "question": "b", "output": "c"}], "twice.jsonl")[0]
    conll = tmp_path / "x.conll"
    conll.write_text("a O\n")
    for words, parts in [
        (["--task", task, "--shots", "1,x"], ["shots: expected integers from 0, got 'x'"]),
        (["--task", task, "--shots", ","], ["shots: expected integers from 0, got none"]),
        (["--task", task, "--shots", "0", "-2"], ["shots: expected integers from 0, got '-2'"]),
        (["--task", task, "--shots", "99"], ["shots: expected at most the ", ", got 99"]),
        (["--task", task, "--template", template], ["t.txt: line 2: {lable} is no field"]),
        (["--task", task, "--template", "nowhere"], ["template: nowhere: cannot be read"]),
        (["--task", bare], ["bare.jsonl: line 1: expected text and label, or ", "are: text"]),
        (["--task", conll], ["x.conll: line 1: expected text and label", "tokens, tags"]),
        (["--task", empty], ["empty.jsonl: line 2: 'label' is empty"]),
        (["--task", task, empty], ["empty.jsonl: line 2"]),
        (["--task", task, free], ["free.jsonl: line 1: expected a field 'text'"]),
        (["--task", twice], ["twice.jsonl: line 1: 'input' and 'question' are names of the same"]),
        (["--task", task, "--held-out-data", other], ["other.jsonl: line 1: label 'cow' is unk"]),
        (["--task", only], ["by: likelihood chooses among labels, and there is only 'x'"]),
        (["--task", free, "--by", "likelihood"], ["and these examples have none"]),
        (["--task", free, "--calibrate"], ["calibrate: has no meaning by text"]),
        (["--task", task, "--stop", "x"], ["stop: has no meaning by likelihood"]),
        (["--task", task, "--by", "text", "--normalize", "bytes"], ["normalize: has no meaning"]),
        (["--task", "stdlib-ner"], ["task: a prompt asks for one answer", "Tagged"]),
        (["--task", "stdlib-kind", task], ["task: expected files of examples, or one of stdlib"]),
        (["--task", task, "--instruction", "x" * 70], ["template: by itself", "context is 64"]),
        (["--task", task, "--draws", 0], ["draws: expected at least 1"]),
        (["--task", task, "--by", "text", "--stop", ""], ["stop: expected a text to stop before"]),
        (["--task", free, "--shots", 0, "--max-tokens", 99_999],
         ["max_tokens: expected at most ", "context of 64, got 99999"]),
        (["--task", task, "--held-out-data", task, "--held-out", 0.3], ["held_out: what is held"]),
        (["--task", task, "--show", "--json"], ["json: --show prints a prompt and stops"]),
        (["--task", task, "--show", "--out", tmp_path / "o"], ["out: --show prints a prompt"]),
        (["--task", task, "--out", ""], ["out: expected a directory, got an empty name"]),
        (["--task", task, "--out", template], ["t.txt: expected a directory"]),
    ]:
        status, out, err = minifm("prompt", gpt, *words)
        err = "\n".join(line for line in err.splitlines() if line[:9] not in
                        ("to show  ", "to ask   "))
        refused((status, out, err), *parts)


def test_models_that_cannot_be_asked(minifm, gpt, tmp_path):  # noqa: F811
    classes = with_head(model_of(context=64), SequenceClassifier, ("a", "b"), rng=mf.Rng(0))
    bare = Bert(replace(bert().config, masked_head=False, pooler=True))
    modern = ModernBert(replace(modernbert().config, masked_head=False, reader=False))
    for name, model, tokenizer in (("head", classes, BYTES), ("bare", bare, SPECIAL),
                                   ("modern", modern, SPECIAL),
                                   ("bert", bert(), SPECIAL), ("maskless", bert(), BYTES)):
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name, tokenizer)
    task, free = data(tmp_path), data(tmp_path, [{"input": f"a {i}", "output": "x"}
                                                 for i in range(9)], "free.jsonl")
    behind = tmp_path / "behind.txt"
    behind.write_text("{label}: {text}")
    for words, said in [
            (["head", "--task", *task], "answers one or guesses what is hidden in it, got a Seq"),
            (["bare", "--task", *task], "masked_head: this model has none"),
            (["modern", "--task", *task], "masked_head: this model has none"),
            (["maskless", "--task", *task], "tokenizer: has no token that hides others"),
            (["bert", "--task", *free], "by: a Bert guesses hidden tokens and does not write"),
            (["bert", "--task", *task, "--by", "text"], "by: a Bert guesses hidden tokens"),
            (["gpt", "--task", *task, "--together"], "together: a GPT guesses no hidden tokens"),
            (["gpt", "--task", *task, "--template", behind], "{text} stands behind {label}"),
            (["bert", "--task", *task, "--instruction", "x" * 60], "the model's context is 64"),
            (["nowhere", "--task", *task], "nowhere': no such directory")]:
        status, out, err = minifm("prompt", tmp_path / words[0], *words[1:], "--shots", 0)
        err = "\n".join(line for line in err.splitlines() if line[:9] not in
                        ("to show  ", "to ask   "))
        refused((status, out, err), said)
