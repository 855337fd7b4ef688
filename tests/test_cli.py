"""The command line as a user meets it: every verb, every mistake one line and status 2."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minifm import backends, cli
from minifm.errors import ConfigError
from minifm.models import GPT, packed_format
from minifm.text import Tokenizer
from minifm.training import checkpoint

TINY = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "2",
        "--tokenizer", "bytes", "--evaluate-batches", "1"]
TEXT = "".join(f"Line {i} of a text that is all about lines.\n\n" for i in range(2000))


@pytest.fixture
def book(tmp_path):
    """A text file of some 90 kB."""
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def minifm(capsys):
    """minifm(*words) runs a command here and gives (status, standard output, standard error)."""
    def run(*words):
        capsys.readouterr()
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as stop:          # argparse
            status = stop.code
        return (status, *capsys.readouterr())
    return run


def process(*words, **options):
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "minifm", *map(str, words)], text=True,
                          capture_output=True, timeout=120, check=False, **options)


def refused(result, *parts):
    """A user's mistake: status 2, and beside what is being done ("reading …") one line on
    standard error, which says all of `parts`."""
    status, out, err = result
    assert status == 2 and out == ""
    lines = [line for line in err.splitlines() if not line.endswith(" …")]
    assert len(lines) == 1 and lines[0].startswith("minifm: "), err
    for part in parts:
        assert part in err, err


# -- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_shows_defaults_and_an_example(minifm, verb):
    status, out, _ = minifm(verb, "--help")
    assert status == 0 and f"example:\n  minifm {verb}" in out.replace("MINIFM_ISA=avx2 ", "")
    assert verb == "env" or "(default: " in out


def test_examples_in_the_help_parse(minifm):
    import importlib
    import shlex
    for verb in cli.VERBS:
        module = importlib.import_module(f"minifm.cli.{verb}")
        commands = re.findall(r"^  (?:.*\| |[A-Z_]+=\w+ )*(minifm .*)$",
                              module.EXAMPLE.replace("\\\n", " "), re.M)
        assert commands
        for command in commands:
            assert cli.parse(shlex.split(command)[1:]).run is module.run, command


def test_help_and_import_leave_heavy_libraries_alone():
    """What takes long to import is imported when it is needed."""
    heavy = {"numba", "matplotlib", "tokenizers", "safetensors", "huggingface_hub", "tqdm",
             "hypothesis", "pytest", "PIL", "sklearn", "scipy"}
    for code in ("import minifm", "from minifm import cli\ntry: cli.main(['--help'])\n"
                 "except SystemExit: pass"):
        code += "\nimport sys\nprint(list(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              check=True)
        modules = set(re.findall(r"'(\w+)'", done.stdout.splitlines()[-1]))
        assert not modules & heavy and "minifm" in modules


def test_both_names_start_the_command_line():
    assert process("--version").stdout.startswith("minifm ")
    assert "expected a VERB" in process().stderr and process().returncode == 2


def test_debug_shows_the_traceback(monkeypatch):
    assert process("generate", "./nowhere").stderr.count("\n") == 1
    shown = process("generate", "./nowhere", env=os.environ | {"MINIFM_DEBUG": "1"}).stderr
    assert "Traceback" in shown


# -- pretrain and generate -------------------------------------------------------------------------


def test_pretrain_then_generate(minifm, book, tmp_path):
    run = tmp_path / "run"
    status, out, err = minifm("pretrain", "--data", book, "--out", run, "--steps", 6, *TINY,
                              "--evaluate-every", 3, "--save-every", 3)
    assert status == 0 and "bits a byte" in out and f"saved as   {run}/last" in out
    for part in ("text ", "tokens ", "model ", "training ", "backend ", "run "):
        assert f"\n{part}" in f"\n{err}"
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    for file in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (run / "last" / file).exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    described = json.loads((run / "run.json").read_text())
    assert described["settings"]["data"] == [book] and described["corpus"]["bytes"] == len(TEXT)
    status, out, _ = minifm("generate", run / "last", "Line 1", "--max-tokens", 5, "--seed", 3)
    assert status == 0 and out.startswith("Line 1") and len(out) > len("Line 1\n")
    assert minifm("generate", run, "Line 1", "--max-tokens", 5, "--seed", 3)[1] == out


def test_a_llama_learns_is_resumed_and_writes(minifm, book, tmp_path):
    run = tmp_path / "run"
    shape = ["--arch", "llama", *TINY, "--key-heads", 1, "--window", 8, "--tied", "--apart"]
    status, _, err = minifm("pretrain", "--data", book, "--out", run, "--steps", 4, *shape)
    assert status == 0 and "model      Llama, " in err
    described = json.loads((run / "run.json").read_text())["settings"]
    assert (described["arch"], described["key_heads"], described["apart"]) == ("llama", 1, True)
    assert json.loads((run / "last" / "config.json").read_text())["model_type"] == "mistral"
    assert minifm("pretrain", "--resume", "--out", run)[0] == 0
    status, out, _ = minifm("generate", run, "Line 1", "--max-tokens", 5)
    assert status == 0 and len(out) > len("Line 1\n")
    assert minifm("pretrain", "--init", run / "last", "--data", book, "--steps", 1, "--length", 16,
                  "--out", tmp_path / "further")[0] == 0
    assert json.loads((tmp_path / "further" / "run.json").read_text())["settings"]["arch"] == \
        "llama"
    refused(minifm("pretrain", "--init", run / "last", "--arch", "gpt", "--data", book, "--out",
                   tmp_path / "none"), "is of llama, not of gpt")


@pytest.mark.parametrize("words, model, learning", [
    (["--arch", "bert"], "BertForMaskedLM", "masked"),
    (["--arch", "roberta", "--diffusion", "--context", 16], "RobertaForMaskedLM", "diffusion"),
    (["--arch", "modernbert", "--diffusion", "--context", 16, "--every", 1],
     "ModernBertForMaskedLM", "diffusion"),
    (["--arch", "bert", "--next-sentence", "--whole-words"], "BertForPreTraining",
     "masked and next-sentence"),
    (["--arch", "roberta", "--apart"], "RobertaForMaskedLM", "masked"),
    (["--arch", "t5", "--head-width", 4], "T5ForConditionalGeneration", "denoising"),
    (["--arch", "t5", "--head-width", 4, "--prefix", "--apart"], "T5ForConditionalGeneration",
     "denoising"),
    (["--arch", "transformer", "--context", 16], "MarianMTModel", "denoising"),
])
def test_encoders_and_encoder_decoders_learn_and_are_resumed(minifm, book, tmp_path, words, model,
                                                             learning):
    run, whole = tmp_path / "run", tmp_path / "whole"
    common = ["--data", book, "--layers", 1, "--heads", 2, "--width", 16, "--length", 16,
              "--tokenizer", "bytes", "--batch", 4, "--evaluate-every", 2, "--save-every", 2,
              "--keep", 9, *words]
    status, out, err = minifm("pretrain", *common, "--steps", 4, "--out", whole)
    assert status == 0 and f"learning   {learning}: " in err
    assert re.search(
        r"held out   \d\.\d{4} nats a (masked token|token of the target|token, at most)", out)
    assert ("bits a byte" in out) == ("generate" in out) == (learning == "diffusion")
    assert json.loads((whole / "last/config.json").read_text())["architectures"] == [model]
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "step-00000004")
    assert minifm("pretrain", "--resume", "--out", run)[0] == 0
    for file in ("last/model.safetensors", "last/trainer_state/optimizer.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    # Go on from it as a model to start from, which needs no settings.
    assert minifm("pretrain", "--init", whole, "--data", book, "--steps", 1, "--length", 16,
                  "--batch", 2, "--out", tmp_path / "further",
                  *(word for word in words if word in ("--prefix", "--diffusion")))[0] == 0


def test_a_model_without_the_parts_to_learn_with_is_refused_at_once(minifm, book, tmp_path):
    run = tmp_path / "run"
    assert minifm("pretrain", "--arch", "roberta", "--data", book, "--layers", 1, "--heads", 2,
                  "--width", 16, "--length", 16, "--tokenizer", "bytes", "--steps", 1, "--out",
                  run)[0] == 0
    other = tmp_path / "other"
    refused(minifm("pretrain", "--init", run, "--next-sentence", "--data", book, "--out", other),
            "next-sentence objective needs a model with pooler, sentence_head, types of tokens")
    assert not other.exists()


@pytest.mark.parametrize("words, said", [
    (["--prefix"], "prefix: a model that learns by the causal objective has no such setting"),
    (["--arch", "t5", "--whole-words"], "whole_words: a model that learns by the denoising"),
    (["--arch", "bert", "--apart", "--next-sentence"], "apart: with next_sentence"),
    (["--arch", "bert", "--apart", "--diffusion"], "apart: with diffusion, rows are windows"),
    (["--arch", "bert", "--diffusion", "--next-sentence"], "next_sentence: a model that learns by "
     "the diffusion objective has no such setting"),
    (["--arch", "bert", "--diffusion", "--length", "8", "--context", "16"],
     "length: by the diffusion objective, rows are as long as the model's context of 16, got 8"),
    (["--diffusion"], "diffusion: a model that learns by the causal objective has no such"),
    (["--arch", "roberta", "--next-sentence"], "leave next_sentence out, or choose "
     "the architecture bert"),
    (["--arch", "bert", "--length", "2"], "length: a row of text between two marks needs at least"),
    (["--arch", "t5", "--length", "2"], "length: a source with a span left out needs at least 3"),
    (["--arch", "t5", "--prefix", "--length", "1"], "length: a text and how it goes on need at"),
    (["--arch", "t5", "--prefix", "--span", "4"], "span: with prefix, no spans are left out"),
    (["--arch", "t5", "--length", "20000", "--span", "60", "--held-out", "0.01", "--batch", "1",
      "--tokenizer", "bytes", "--layers", "1"], "held_out: in the"),
    (["--arch", "bert", "--tokenizer", "TOKENIZER"],
     "tokenizer: the masked objective needs <s>, <pad>, <mask>, and the vocabulary has no such"),
    (["--arch", "t5", "--tokenizer", "TOKENIZER"], "<pad>, <extra_id_0> … <extra_id_99>"),
    (["--arch", "bert", "--config", "CONFIG"], "padding: follows from the tokenizer"),
    (["--arch", "t5", "--vocabulary", "300"], "vocabulary: expected an integer from 358 "
     "(the bytes, end-of-text and 101 more special tokens)"),
])
def test_what_an_objective_cannot_do_is_refused(minifm, book, tmp_path, words, said):
    (tmp_path / "settings.json").write_text('{"padding": 4}')
    Tokenizer.bytes().save(tmp_path)
    named = {"CONFIG": tmp_path / "settings.json", "TOKENIZER": tmp_path / "tokenizer.json"}
    refused(minifm("pretrain", "--data", book, "--out", tmp_path / "run",
                   *(named.get(word, word) for word in words)), said)


def test_help_shows_the_settings_of_the_architecture(minifm):
    assert "--key-heads INT" not in minifm("pretrain", "--help")[1]
    for words in (["--arch", "llama"], ["--arch=llama"], ["--preset", "llama-tiny"]):
        out = minifm("pretrain", *words, "--help")[1]
        assert "--key-heads INT" in out and "model: llama" in out


@pytest.mark.parametrize("words, parts", [
    (["--arch", "gpt", "--preset", "llama-tiny"], ["preset: llama-tiny is of llama, not of gpt"]),
    (["--config", "CONFIG"], ["theta: gpt has no such setting (llama has)"]),
])
def test_settings_of_another_architecture_are_refused(minifm, book, tmp_path, words, parts):
    (tmp_path / "settings.json").write_text('{"theta": 500.0}')
    words = [str(tmp_path / "settings.json") if word == "CONFIG" else word for word in words]
    refused(minifm("pretrain", "--data", book, "--out", tmp_path / "run", *words), *parts)


@pytest.mark.parametrize("words, formats", [
    ([], ("fp32", None)), (["--cache", "bf16"], ("fp32", "bf16")),
    (["--format", "int4"], ("int4", None))])
def test_generate_packs_weights_and_keeps_its_cache_as_it_is_told(minifm, book, tmp_path,
                                                                  monkeypatch, words, formats):
    run, given, cache = tmp_path / "run", [], GPT.cache
    assert minifm("pretrain", "--data", book, *TINY, "--steps", 1, "--out", run)[0] == 0
    monkeypatch.setattr(GPT, "cache", lambda self, batch, capacity=None, format=None: (
        given.append((packed_format(self), format)), cache(self, batch, capacity, format))[1])
    status, out, _ = minifm("generate", run, "Line 1", "--max-tokens", 5, *words)
    assert status == 0 and len(out) > len("Line 1\n") and given == [formats]


def test_an_interrupted_run_resumes_to_the_same_weights(minifm, book, tmp_path):
    common = ["--data", book, *TINY, "--steps", 40, "--save-every", 10]
    assert minifm("pretrain", *common, "--out", tmp_path / "whole")[0] == 0
    run = tmp_path / "stopped"
    started = subprocess.Popen([sys.executable, "-m", "minifm", "pretrain", *map(str, common),
                                "--out", str(run)], stderr=subprocess.PIPE, text=True)
    while not checkpoint.steps_in(run):
        time.sleep(0.01)
        assert started.poll() is None
    started.send_signal(signal.SIGINT)
    err = started.communicate(timeout=60)[1]
    assert started.returncode in (130, 0)       # 0: it was faster than the signal
    if started.returncode:
        assert re.search(f"go on with: .*minifm pretrain --resume --out {run}", err)
    assert minifm("pretrain", "--resume", "--out", run)[0] == 0
    assert checkpoint.steps_in(run)[-1] == 40
    whole, resumed = ((tmp_path / name / "last/model.safetensors").read_bytes()
                      for name in ("whole", "stopped"))
    assert whole == resumed


def test_resuming_with_other_settings_lists_the_differences(minifm, book, tmp_path):
    run = tmp_path / "run"
    common = ["--data", book, *TINY, "--steps", 3, "--out", run]
    assert minifm("pretrain", *common)[0] == 0
    refused(minifm("pretrain", *common), "already holds a run of 3 steps", "--resume")
    resume = ["--resume", "--out", run]
    refused(minifm("pretrain", *resume, "--steps", 5, "--clip", 0.5, "--seed", 1), "--force",
            "config.steps: 3 in the checkpoint, 5 now", "config.seed: 0 in",
            "config.clip: 1.0 in the checkpoint, 0.5 now")
    refused(minifm("pretrain", *resume, "--width", 32), "width: 16 in")
    refused(minifm("pretrain", *resume, "--vocabulary", 300), "vocabulary: 4096 in")
    refused(minifm("pretrain", *resume, "--init", run), "init: ")
    other = tmp_path / "other.txt"
    other.write_text(TEXT.upper())
    refused(minifm("pretrain", "--resume", "--out", run, "--data", other),
            "(--force goes on anyway): the text is another one than in the checkpoint\n")
    refused(minifm("pretrain", *resume, "--steps", 5), "the run was planned for 3 steps, not 5; "
            "--force changes that")
    assert minifm("pretrain", "--resume", "--out", run, "--steps", 5, "--force")[0] == 0
    assert checkpoint.steps_in(run)[-1] == 5


def test_of_many_differences_the_first_are_told():
    found = [f"config.{name}: 1 in the checkpoint, 2 now" for name in "abcdefghijkl"]
    with pytest.raises(ConfigError) as caught:
        checkpoint.refuse_differences("here", found)
    assert str(caught.value).endswith("config.h: 1 in the checkpoint, 2 now; and 4 more")


@pytest.mark.parametrize("key, said", [
    ("corpus", "the text is another one"), ("tokenizer", "the vocabulary is another one"),
    ("sha256", "the examples, as rows of tokens, are other ones")])
def test_other_data_are_called_so_in_place_of_their_digests(key, said):
    stored, own = ({"data": {side: {key: digit * 64} for side in ("training", "held_out")}}
                   for digit in "01")
    with pytest.raises(ConfigError) as caught:
        checkpoint.refuse_differences("here", checkpoint.differences(stored, own))
    assert str(caught.value).endswith(f"anyway): {said} than in the checkpoint")


def test_digests_are_told_by_their_beginning():
    lines = checkpoint.differences({"words": "0" * 64}, {"words": None})
    assert lines == ["words: 00000000… in the checkpoint, None now"]


def test_a_run_that_was_better_before_names_its_best(minifm, book, tmp_path):
    run = tmp_path / "run"
    status, out, _ = minifm("pretrain", "--data", book, *TINY, "--steps", 4, "--evaluate-every", 2,
                            "--out", run)
    assert status == 0 and "best " not in out
    status, out, _ = minifm("pretrain", "--data", book, "--init", run, "--batch", 2, "--steps", 40,
                            "--evaluate-every", 1, "--evaluate-batches", 1, "--warmup", 0,
                            "--learning-rate", 3, "--clip", 0, "--out", tmp_path / "worse")
    found = re.search(r"best       (\d+\.\d{4}) after step (\d+): (.*)", out)
    assert status == 0 and found[3] == f"{tmp_path / 'worse'}/best"
    best = checkpoint.read_state((tmp_path / "worse/best").resolve())
    assert best["step"] == int(found[2]) < 40 and f"{best['best']['loss']:.4f}" == found[1]


@pytest.mark.parametrize("flags, said", [
    (["--heads", 7], "heads: 7 heads do not divide the width 16"),
    (["--activation", "foo"], "activation: "), (["--length", 17], "at most the model's context"),
    (["--out", "/proc/x"], "out: /proc/x: nothing can be written in /proc ("),
    (["--out", "BOOK/run"], "nothing can be written in "),
])
def test_what_cannot_be_is_refused_before_the_text_is_read(minifm, book, tmp_path, flags, said):
    if flags[-1] == "/proc/x" and not os.path.isdir("/proc"):
        pytest.skip("there is no /proc")
    flags = [str(flag).replace("BOOK", book) for flag in flags]
    result = minifm("pretrain", "--data", book, "--out", tmp_path / "run", *TINY, *flags)
    refused(result, said)
    assert "reading" not in result[2]
    assert [path.name for path in tmp_path.iterdir()] == ["book.txt"]


def test_pretraining_goes_on_from_a_given_model(minifm, book, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert minifm("pretrain", "--data", book, *TINY, "--steps", 2, "--out", first)[0] == 0
    flags = ["--init", first, "--data", book, "--batch", 2, "--out", second]
    refused(minifm("pretrain", *flags, "--layers", 3), "layers: the model to start from")
    refused(minifm("pretrain", *flags, "--tokenizer", "bytes"), "tokenizer: ")
    refused(minifm("pretrain", *flags, "--preset", "tiny"), "preset: the model to start from")
    assert minifm("pretrain", *flags, "--steps", 1, "--learning-rate", 0)[0] == 0
    weights = [(run / "last/model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]


def test_a_file_of_settings_under_flags(minifm, book, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(f'data = ["{book}"]\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n'
                      'tokenizer = "bytes"\nbatch = 2\nsteps = 9\nevaluate-every = 0\n')
    run = tmp_path / "run"
    assert minifm("pretrain", "--config", config, "--out", run, "--steps", 2)[0] == 0
    said = json.loads((run / "run.json").read_text())["settings"]
    assert (said["steps"], said["width"], said["evaluate_every"]) == (2, 16, 0)
    config.write_text("widht = 16\n")
    refused(minifm("pretrain", "--config", config, "--out", tmp_path / "b"),
            "unknown setting 'widht'; did you mean 'width'?")
    config.write_text("width = 'wide'\n")
    refused(minifm("pretrain", "--config", config, "--out", tmp_path / "b"),
            "width: expected an integer, got 'wide'")


def test_standard_input_is_a_corpus(book, tmp_path):
    done = process("pretrain", "--data", "-", *TINY, "--steps", 2, "--out", tmp_path / "run",
                   input=TEXT)
    assert done.returncode == 0 and "standard input" not in done.stdout
    assert "reading standard input …" in done.stderr
    assert "text       standard input: 6 documents, 0.09 MB" in done.stderr
    assert "model      GPT, " in done.stderr and ": 1 layer, 16 wide, 2 heads" in done.stderr
    again = process("pretrain", "--resume", "--out", tmp_path / "run", input="")
    assert again.returncode == 2 and "pipe the same text in again" in again.stderr
    assert "standard input: the corpus is empty" in again.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["corpus"]["bytes"] == len(TEXT)


def test_bytes_that_are_not_utf8_are_learnt_as_they_are(minifm, tmp_path):
    source = tmp_path / "latin.txt"
    source.write_bytes("Grüße und Füße.\n\n".encode("latin-1") * 2000)
    run = tmp_path / "run"
    assert minifm("pretrain", "--data", source, *TINY, "--steps", 1, "--out", run)[0] == 0
    assert json.loads((run / "run.json").read_text())["corpus"]["bytes"] == 17 * 2000


# -- mistakes --------------------------------------------------------------------------------------


def written(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("make, said", [
    (lambda d: d / "missing.txt", "missing.txt: no such file or directory"),
    (lambda d: written(d / "empty.txt", b""), "the corpus is empty"),
    (lambda d: written(d / "picture.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9), "PNG"),
    (lambda d: written(d / "zero.bin", b"a\x00b" * 999), "zero byte"),
    (lambda d: written(d / "short.txt", b"a few words\n\nand more\n"), "give more text"),
    (lambda d: written(d / "bad.jsonl", b'{"text": 1}\n'), "line 1: expected `text`"),
    (lambda d: d, "bad.jsonl: line 1: not JSON: Expecting value at column 1"),
    (lambda d: written(d / "program", b"\x7fELF" + bytes(99)), "an ELF file, not text"),
])
def test_a_corpus_that_cannot_be_read_is_refused(minifm, tmp_path, make, said):
    source = make(tmp_path)
    if source == tmp_path:
        written(tmp_path / "bad.jsonl", b"not json\n")
    out = tmp_path.parent / f"{tmp_path.name}-run"
    refused(minifm("pretrain", "--data", source, *TINY, "--out", out), said)
    assert not checkpoint.steps_in(out)


@pytest.mark.parametrize("flags, said", [
    (["--heads", "3"], "heads: 3 heads do not divide the width 16"),
    (["--steps", "0"], "steps: expected at least 1, got 0"),
    (["--length", "17"], "length: expected at most the model's context of 16, got 17"),
    (["--dropout", "1"], "dropout: expected at least 0 and less than 1"),
    (["--held-out", "0"], "held_out: expected more than 0"),
    (["--vocabulary", "9"], "vocabulary: expected at least 257"),
    (["--tokenizer", "./nothing"], "./nothing"),
    (["--width", "1000000"], "memory: "),
    (["--resume"], "there is no run to resume"),
    (["--preset", "gpt3-175b", "--width", "12288", "--layers", "96", "--heads", "96"], "memory: "),
])
def test_impossible_settings_are_refused_in_one_line(minifm, book, tmp_path, flags, said):
    if "--resume" in flags:
        flags = [*flags, "--data", book]
    out = tmp_path / "run"
    result = minifm("pretrain", "--data", book, *TINY, "--out", out, *flags)
    refused(result, said)
    assert not checkpoint.steps_in(out)


def test_a_context_that_the_text_cannot_fill_is_refused(minifm, tmp_path):
    source = written(tmp_path / "short.txt", "\n\n".join(map(str, range(300))).encode())
    result = minifm("pretrain", "--data", source, "--separator", "\n\n", *TINY, "--context", 4096,
                    "--out", tmp_path / "run")
    refused(result, "windows of 4096 tokens", "lower the context")


@pytest.mark.parametrize("words, said", [
    (["pretrain", "--steps", "many"], "--steps: expected an integer, got 'many'; see minifm"),
    (["pretrain", "--clip", "x"], "--clip: expected a number, got 'x'"),
    (["pretrain", "--layer", 3], "--layer is unknown (did you mean --layers?)"),
    (["pretrain", "--layer=3"], "--layer is unknown (did you mean --layers?)"),
    (["pretrain", "--zzz"], "--zzz is unknown; see minifm pretrain --help"),
    (["pretrain", "--key-heads", 1], "--key-heads: gpt has no such setting (llama has: --arch"),
    (["pretrain", "--no-tied"], "--no-tied: gpt has no such setting (llama"),
    (["pretrain", "--arch", "lama"], "--arch: invalid choice: 'lama'"),
    (["generate", "x", "--temperatur", 1], "did you mean --temperature?)"),
    (["env", "more"], "'more' is one argument too many; see minifm env --help"),
    (["pretrian"], "got 'pretrian'; did you mean pretrain?"), (["x"], "there are pretrain, "),
    ([], "expected a VERB"), (["--nothing"], "--nothing is unknown"),
])
def test_words_that_are_not_known_are_refused_in_one_line(minifm, tmp_path, words, said):
    refused(minifm(*words), said)


def test_a_required_flag_that_is_missing_is_named(minifm):
    refused(minifm("pretrain"), "--out", "see minifm pretrain --help")


@pytest.mark.parametrize("words, said", [
    (["./nowhere", "x"], "./nowhere"),
    (["RUN", ""], "the prompt is empty"),
    (["RUN", "x" * 16], "context of 16"),
    (["RUN", "x", "--temperature", "-1"], "temperature: expected at least 0"),
    (["RUN", "x", "--max-tokens", "0"], "max_tokens"),
    (["RUN", "x", "--stop", ""], "stop: expected strings to stop before, got an empty one"),
])
def test_generate_refuses_what_it_cannot_do(minifm, book, tmp_path, words, said):
    run = tmp_path / "run"
    assert minifm("pretrain", "--data", book, *TINY, "--steps", 1, "--out", run)[0] == 0
    refused(minifm("generate", *(run if word == "RUN" else word for word in words)), said)


def test_generate_reads_standard_input_and_writes_several(book, tmp_path, minifm):
    run = tmp_path / "run"
    assert minifm("pretrain", "--data", book, *TINY, "--steps", 1, "--out", run)[0] == 0
    alone = process("generate", run, "--max-tokens", 3, input="Lin\n")
    assert alone.returncode == 0 and alone.stdout.startswith("Lin")
    several = process("generate", run, "Lin", "Li", "--max-tokens", 3)
    assert "--- 1 of 2 (length)" in several.stdout and "--- 2 of 2 (length)" in several.stdout


def test_a_damaged_model_is_refused(minifm, book, tmp_path):
    run = tmp_path / "run"
    assert minifm("pretrain", "--data", book, *TINY, "--steps", 1, "--out", run)[0] == 0
    weights = run / "last/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    refused(minifm("generate", run, "x"), "model.safetensors")
    weights.write_bytes(whole)
    config = run / "last/config.json"
    described = json.loads(config.read_text())
    for change, said in (({"model_type": "mamba"}, "mamba"), ({"n_layer": 10**9}, "config.json"),
                         ({"n_head": 3}, "heads"), ({"n_embd": -1}, "width")):
        config.write_text(json.dumps(described | change))
        refused(minifm("generate", run, "x"), said)


@pytest.mark.parametrize("text, said", [
    ('{"init": 3}', "init: expected a string"), ('{"preset": []}', "preset: expected a string"),
    ('{"preset": "huge"}', "preset: expected one of tiny"),
    ('{"learning_rate": 1%s}' % ("0" * 400), "learning_rate: expected a number that a float"),
    ('{"separator": "\\ud800"}', "separator: "), ("[" * 5000, "not a valid JSON"),
])
def test_a_file_of_settings_that_makes_no_sense_is_refused(minifm, book, tmp_path, text, said):
    config = tmp_path / "c.json"
    config.write_text(text)
    flags = ["--data", book, "--out", tmp_path / "run"]
    refused(minifm("pretrain", "--config", config, *flags), said)


@pytest.mark.parametrize("text", ['{"max_tokens": "5"}', '{"max_tokens": null}', '{"stop": "abc"}',
                                  '{"stop": [3]}', '{"cache": "int8"}',
                                  '{"temperature": 1%s}' % ("0" * 400)])
def test_generate_refuses_settings_of_another_type(minifm, tmp_path, text):
    config = tmp_path / "c.json"
    config.write_text(text)
    refused(minifm("generate", "./nowhere", "x", "--config", config), "expected")


def test_places_that_cannot_hold_a_run_are_refused(minifm, book, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text(TEXT)
    (tmp_path / "link").symlink_to("nowhere")
    flags = ["--data", book, *TINY]
    refused(minifm("pretrain", *flags, "--out", ""), "out: expected a directory")
    refused(minifm("pretrain", *flags, "--out", book), "expected a directory")
    refused(minifm("pretrain", *flags, "--out", tmp_path / "link"), "expected a directory")
    refused(minifm("pretrain", *flags, "--out", tmp_path / ("x" * 300)), "long")
    refused(minifm("pretrain", "--data", tmp_path / "text", *TINY, "--out", tmp_path / "text/run"),
            "lies within the text")
    refused(minifm("pretrain", *flags, "--batch", 10**30, "--out", tmp_path / "a"), "lower batch")
    refused(minifm("pretrain", "--data", tmp_path / "fif?", *TINY, "--out", tmp_path / "b"), "no ")


def test_closed_and_full_streams_are_no_crash(book, tmp_path):
    for shell in ("env >&-", "env 2>&-", "pretrain --data - --out x <&-", "env > /dev/full"):
        done = subprocess.run(f"{sys.executable} -m minifm {shell}", shell=True, text=True,
                              capture_output=True, timeout=60, cwd=tmp_path, check=False)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr, shell
        assert done.returncode == (2 if "full" in shell or "<&-" in shell else 0), shell
    shown = process("generate", "./nowhere", env=os.environ | {"MINIFM_DEBUG": "0"}).stderr
    assert shown.count("\n") == 1


# -- env -------------------------------------------------------------------------------------------


def test_env_says_what_is_there_and_why_something_is_not(minifm):
    status, out, _ = minifm("env")
    assert status == 0
    for part in ("python", "numpy", "active", "cuda", "no: "):
        assert part in out
    status, out, _ = minifm("env", "--json")
    found = json.loads(out)
    assert found["backends"]["cuda"].startswith("no: ")
    assert found["packages"]["numpy"] == np.__version__


@pytest.mark.parametrize("setting, active, of_c", [
    ("MINIFM_ISA=foo", "MINIFM_ISA: this machine offers", "no: MINIFM_ISA: this machine offers"),
    ("MINIFM_THREADS=0", "MINIFM_THREADS: expected", "no: MINIFM_THREADS: expected"),
    ("MINIFM_BACKEND=torch", "MINIFM_BACKEND: expected numpy or c, got 'torch'", "c ("),
])
def test_env_says_which_setting_is_in_the_way(setting, active, of_c):
    name, _, value = setting.partition("=")
    if backends.why_not("c"):
        of_c = "no: backend 'c'"
        active = active if name != "MINIFM_ISA" else ""
    unset = {key: val for key, val in os.environ.items() if not key.startswith("MINIFM_")}
    done = process("env", "--json", env=unset | {name: value})
    found = json.loads(done.stdout)["backends"]
    assert done.returncode == 0 and found["c"].startswith(of_c)
    assert not active or found["active"].startswith(f"none: {active}")


def test_the_model_that_was_saved_is_the_one_that_was_trained(minifm, book, tmp_path):
    from minifm.hub import load_model
    run = tmp_path / "run"
    assert minifm("pretrain", "--data", book, *TINY, "--steps", 1, "--out", run)[0] == 0
    model = load_model(run / "last")
    assert isinstance(model, GPT) and model.config.width == 16
    assert all(np.isfinite(p.numpy()).all() for p in model.parameters().values())
