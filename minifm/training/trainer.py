"""The training loop: batches in, better weights, a log and checkpoints out.

Every choice of a step (its data, its dropout) is a function of the seed and the step's number, so
a run resumed from any checkpoint goes on bitwise as if it had never stopped.
"""

import json
import math
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from minifm.atomic import exclusive
from minifm.errors import AnomalyError, ConfigError, UserError
from minifm.nn import adapter_config
from minifm.observe import FlopCounter, detect_anomaly
from minifm.ops.precision import precision
from minifm.picture import MISSING
from minifm.rng import Rng
from minifm.tensor import no_grad
from minifm.training import checkpoint, memory
from minifm.training.objectives import CausalLanguageModel
from minifm.training.optim import AdamW
from minifm.training.report import Metrics, Progress, Speed, plot_losses
from minifm.training.signals import Interrupted, StopSignals


class Diverged(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Trainer:
    """Trains `model` on `batches` by `config`, in the directory of one run.

    model      a Module with `config`; its parameters are written in place, but for frozen ones
    batches    `batch(step)` gives a tuple of arrays, the sequences along the first axis;
               `description` is a dictionary that names the data (what a resumed run compares)
    directory  runs/NAME; created, or resumed by `resume`
    objective  what the loss is (objectives.py)
    held_out   batches to evaluate on, `count` of them, or None
    tokenizer  saved with the model; gives bits per byte. May be None
    lengths    [V]: bytes of text that each token stands for (default: as the tokenizer says; where
               its tokens do not make up the text, bits per byte are left out)
    companion  what else is saved with the model, by companion.save(directory), or None
    measure    measure(model) gives {name: score} for each evaluation, of which the first says how
               good the model is; default: the held-out loss says it
    least      of that score, the less the better; else the more
    sketch     sketch(model, step) is called after each evaluation, with the weights evaluated
    settle     settle(model) is called before each checkpoint, with the weights that are saved: it
               gives model.config what follows from them
    shown      show a progress bar
    draw       draw loss.png with each checkpoint
    ceiling    FLOP/s of this machine, for the utilisation; None leaves it out
    check_memory  refuse at once what does not fit the machine (memory.py)

    step, tokens, best ({"loss", "step"}, with `measure` also "score", or None) and metrics tell
    how far it is.
    """

    def __init__(self, model, batches, config, *, directory, objective=None, held_out=None,
                 tokenizer=None, lengths=None, companion=None, measure=None, least=False,
                 sketch=None, settle=None, shown=True, draw=True, ceiling=None, check_memory=True):
        self.model, self.batches, self.config = model, batches, config
        self.directory = Path(directory)
        self.objective = objective or CausalLanguageModel(config.recompute)
        self.held_out, self.tokenizer, self.companion = held_out, tokenizer, companion
        self.measure, self.least, self.sketch, self.settle = measure, least, sketch, settle
        self.shown, self.draw = shown, draw
        first = batches.batch(0)
        if len(first[0]) != config.batch:
            raise ConfigError(f"batch: the data come {len(first[0])} sequences a step, "
                              f"the configuration says {config.batch}")
        if check_memory:
            memory.require(memory.estimate(model, self.objective, first, config), config)
        self.optimizer = AdamW(
            model.parameters(), beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon,
            weight_decay=config.weight_decay, average=config.average)
        self.schedule, self.rng = config.schedule, Rng(config.seed).child("training")
        self.metrics = Metrics(self.directory / "metrics.jsonl")
        self.speed = Speed(ceiling, self.objective.reads)
        self.computed = computed_part(model, self.objective, first)
        self.step = self.tokens = self.skipped = 0
        self.best = self._saved = None
        self._lengths = self._bytes_of_tokens(lengths)

    # -- the loop --------------------------------------------------------------------------------

    def train(self, until=None):
        """Run to step `until` (default: the configuration's steps), then save.

        Raises Interrupted after SIGINT or SIGTERM, once the step is finished and saved, and
        Diverged when more than `skip_limit` steps in a row were not finite, or the last of all;
        the last checkpoint is good.
        Raises UserError while another process trains in the same directory.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with exclusive(self.directory):
            self._train(until)

    def _train(self, until):
        self._claim_directory()
        last = self.config.steps if until is None else min(until, self.config.steps)
        with StopSignals() as stop, Progress(self.step, self.config.steps, self.shown) as bar:
            while self.step < last and not (stop.requested or self.exhausted):
                self.advance(bar)
            if self.exhausted and self.step < last:
                bar.say(f"step {self.step}: no evaluation was better than that of step "
                        f"{self.best['step']}; the run ends here")
            path = self.save()
            self._plot(bar)
        if stop.requested:
            raise Interrupted(stop.requested, self.step, path)
        if self.skipped and self.step == self.config.steps:
            raise Diverged(f"the last {self.skipped} of {self.step} steps were not finite and "
                           f"changed nothing (saved as {path}): lower learning_rate or clip, or "
                           "look at the weights that the run began with")

    @property
    def exhausted(self):
        """Whether the configuration's patience is at its end."""
        c = self.config
        return bool(c.patience and self.best and c.evaluate_every) and \
            self.step - self.best["step"] >= c.patience * c.evaluate_every

    def advance(self, bar):
        """One step and what is due after it: the log, an evaluation, a checkpoint. `bar`, a
        Progress, is told; raises Diverged as `train` does."""
        config = self.config
        with self.speed:
            line, problem = self._update()
        self.step += 1
        if problem:
            self.skipped += 1
            bar.say(problem)
            bar.advance(loss="skipped")
            self.metrics.append({"step": self.step, "skipped": problem})
            if self.skipped > config.skip_limit:
                saved = checkpoint.steps_in(self.directory)
                raise Diverged(f"{self.skipped} steps in a row were not finite; the last: "
                               f"{problem}. Lower learning_rate or clip, and "
                               + (f"resume: the checkpoint of step {saved[-1]} is good" if saved
                                  else "start again: there is no checkpoint yet"))
        else:
            self.skipped = 0
            figures = self.speed.figures()
            bar.advance(loss=f"{line['loss']:.4f}", **self._shown(figures))
            if self._due(config.log_every):
                self.metrics.append({"step": self.step, **line, **figures})
                self.speed.reset()
        improved = self.held_out is not None and self._due(config.evaluate_every) \
            and self._evaluate_and_log(bar)
        if improved or self._due(config.save_every):
            self.save()
            self._plot(bar)

    def _shown(self, figures):
        """Figures of speed as the progress bar prints them."""
        reads = f"{self.objective.reads}s"
        shown = {f"{reads}/s": f"{figures[f'{reads}_per_second']:,.0f}"}
        if "utilisation" in figures:
            shown["FLOPs"] = f"{figures['utilisation']:.0%}"
        return shown

    def _due(self, every):
        return every and (self.step % every == 0 or self.step == self.config.steps)

    def _update(self):
        """One update of the weights. Returns (its log line, None), or, where something was not
        finite and nothing has been changed, (None, what and where)."""
        batch = self.batches.batch(self.step)
        pieces, count = self._pieces(batch), self.objective.count(batch)
        tokens = self.objective.tokens(batch)
        loss, logged = 0.0, {}
        with np.errstate(all="ignore"):         # what is not finite is dealt with right here
            for i, piece in enumerate(pieces):
                part, figures = self._loss(piece, count, i)
                loss += part.item()
                for name, figure in ({"loss": part.item()} | figures).items():
                    logged[name] = logged.get(name, 0.0) + figure
                part.backward()
            norm = self.optimizer.gradient_norm()
            self.tokens += tokens
            self.speed.count(tokens, self.objective.flops(self.model, batch) * self.computed)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                return None, self._explain(pieces, count, loss, norm)
        rate, clip = self.schedule(self.step), self.config.clip
        self.optimizer.update(rate, clip / norm if clip and norm > clip else 1.0)
        self.optimizer.zero_grad()
        self.objective.constrain(self.model)
        # What a model adds to its loss, the held-out loss is without; they stand in one picture.
        return {**logged, "gradient_norm": norm, "learning_rate": rate,
                f"{self.objective.reads}s": self.tokens}, None

    def _pieces(self, batch):
        """The batch cut along its first axis into `accumulate` pieces."""
        return list(zip(*(np.array_split(x, self.config.accumulate) for x in batch)))

    def _loss(self, piece, count, i):
        with precision(self.config.precision):
            return self.objective.training_loss(
                self.model, piece, denominator=max(count, 1),
                rng=self.rng.child("step", self.step, "piece", i))

    def _explain(self, pieces, count, loss, norm):
        """Which op went wrong: the same pieces with the same noise once more, watched."""
        what = f"step {self.step + 1} skipped, loss {loss:g}, gradient norm {norm:g}: "
        for i, piece in enumerate(pieces):
            self.optimizer.zero_grad()
            try:
                with detect_anomaly():
                    self._loss(piece, count, i)[0].backward()
            except AnomalyError as anomaly:
                self.optimizer.zero_grad()
                return f"{what}{anomaly}"
        self.optimizer.zero_grad()
        return f"{what}every op of every piece is finite, but not the sum of their gradients"

    # -- evaluation ------------------------------------------------------------------------------

    def evaluate(self, batches=None):
        """{"held_out_loss": nats per counted target, "bits_per_byte": …} over the first `batches`
        held-out batches (default: the configuration's `evaluate_batches`) or as many as there
        are, with the averaged weights where there are some. Bits per byte need a tokenizer; they
        compare across tokenizers."""
        nats = count = size = 0
        with self.judged(), no_grad(), np.errstate(all="ignore"):
            for i in range(min(batches or self.config.evaluate_batches, self.held_out.count)):
                for piece in self._pieces(self.held_out.batch(i)):
                    n = self.objective.count(piece)
                    if n:
                        loss = self.objective.loss(self.model, piece, denominator=n, rng=None)
                        nats, count = nats + loss.item() * n, count + n
                    if self._lengths is not None:
                        size += self.objective.target_bytes(piece, self._lengths)
            found = {"held_out_loss": nats / max(count, 1)}
            if size:
                found["bits_per_byte"] = nats / math.log(2) / size
            if self.measure is not None:
                found["scores"] = self.measure(self.model)
        return found

    def judged(self):
        """A block in which the model has the weights that it is evaluated and saved with: the
        averaged ones, where there are some."""
        return self.optimizer.averaged() if self.optimizer.averages else nullcontext()

    def _evaluate_and_log(self, bar):
        """Evaluate; returns whether this is the best so far (a loss that is not finite never)."""
        found = self.evaluate()
        self.metrics.append({"step": self.step, **found})
        if self.sketch is not None:
            with self.judged():
                self.sketch(self.model, self.step)
        loss = found["held_out_loss"]
        if not math.isfinite(loss):
            bar.say(f"step {self.step}: the held-out loss is {loss}")
            return False
        new = {"loss": loss, "step": self.step}
        if "scores" in found:
            new["score"] = next(iter(found["scores"].values()))
        if self.best is None or self._badness(new) < self._badness(self.best):
            self.best = new
            return True
        return False

    def _badness(self, evaluation):
        """What is least of the best evaluation."""
        if self.measure is None:
            return evaluation["loss"]
        return evaluation["score"] if self.least else -evaluation["score"]

    def _bytes_of_tokens(self, lengths):
        """Bytes of text of each token, [V]; the end-of-text mark is none. None: not known."""
        if lengths is None and self.tokenizer is not None:
            lengths = self.tokenizer.token_lengths
        if lengths is not None:
            lengths = lengths.copy()
            if self.tokenizer.end_of_text is not None:
                lengths[self.tokenizer.end_of_text] = 0
        return lengths

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self):
        """Save a checkpoint of this step (once), then drop those no longer kept; its path."""
        if self._saved != self.step:
            self.metrics.sync()
            if self.settle is not None:
                with self.judged(), no_grad():
                    self.settle(self.model)
            checkpoint.write(self.directory, self.step, model=self.model, optimizer=self.optimizer,
                             tokenizer=self.tokenizer, companion=self.companion,
                             state=self._state())
            self._saved = self.step
            checkpoint.prune(self.directory, self.config.keep, self.best)
        return checkpoint.path_of(self.directory, self.step)

    def take_best(self):
        """Put the weights of the best checkpoint into the model, if there is one that is better
        than the last; the run does not go on from there. Returns its step."""
        if self.best is None or self.best["step"] == self.step:
            return self.step
        path = checkpoint.path_of(self.directory, self.best["step"])
        state = checkpoint.read_state(path)
        checkpoint.check_whole(path, state)
        checkpoint.read_weights(path, self.model, self.optimizer, state["updates"])
        return state["step"]

    def resume(self, path=None, *, force=False):
        """Go on from the newest checkpoint of this run, or from the one at `path`.

        With `force`, and other data, what was best by the old ones is no longer; nor is it where
        another measure says what is best.

        Raises ConfigError listing every difference between the checkpoint's run and this one
        (configuration, model, data), unless `force`; FormatError for damaged files.
        """
        steps = checkpoint.steps_in(self.directory)
        if path is None and not steps:
            raise ConfigError(f"{self.directory} holds no checkpoint to resume from")
        path = Path(path or checkpoint.path_of(self.directory, steps[-1])).resolve()
        state = checkpoint.read_state(path)
        checkpoint.check_whole(path, state)
        if any(step > state["step"] for step in steps):
            raise ConfigError(f"{self.directory} has gone on to step {steps[-1]}, beyond "
                              f"{path.name}: give the resumed run another directory")
        own = self._state()
        if not force:
            free = {f.name for f in fields(self.config) if f.metadata["free"]}
            checkpoint.refuse_differences(path, [
                f"{part}.{line}" for part in ("config", "model", "data")
                for line in checkpoint.differences(state[part], own[part], free)])
        checkpoint.read_weights(path, self.model, self.optimizer, state["updates"])
        self.step, self.tokens, self.skipped = state["step"], state["tokens"], state["skipped"]
        same = own["data"] == state["data"] and state["best"] is not None \
            and ("score" in state["best"]) == (self.measure is not None)
        self.best = state["best"] if same else None
        self._enter(path)

    def _enter(self, path):
        """Bring log and links in line with the checkpoint just read; its run may be another."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.metrics.rewind(self.step, Metrics(path.parent / "metrics.jsonl").read())
        own = checkpoint.path_of(self.directory, self.step)
        self._saved = self.step if own.resolve() == path else None
        checkpoint.link(self.directory, self.step, self.best)
        checkpoint.prune(self.directory, self.config.keep, self.best)   # should a kill have come

    def _state(self):
        """What state.json holds, as it reads back from JSON."""
        return json.loads(json.dumps({
            "step": self.step, "updates": self.optimizer.steps, "skipped": self.skipped,
            "tokens": self.tokens, "best": self.best, "config": asdict(self.config),
            "model": asdict(self.model.config) | self._adapters(),
            "data": {"training": self.batches.description,
                     "held_out": self.held_out and self.held_out.description},
        }))

    def _adapters(self):
        config = adapter_config(self.model)
        return {} if config is None else {"adapters": asdict(config)}

    def _claim_directory(self):
        """A new run must not mix with an old one of the same name; a log without a checkpoint is
        what a run left that was killed before its first, and starts again."""
        if self.step == 0 and self._saved is None:
            if checkpoint.steps_in(self.directory):
                raise ConfigError(f"{self.directory} already holds a run: resume it, or choose "
                                  "another name")
            self.metrics.rewind(0, [])

    def _plot(self, bar):
        if self.draw:
            self.draw = plot_losses(self.metrics.read(), self.directory / "loss.png",
                                    self.objective.scale)
            if not self.draw:
                bar.say(f"no loss.png: {MISSING}")


def computed_part(model, objective, batch):
    """Of the floating-point operations of a step in which all weights learn (objective.flops), the
    part that is computed: frozen weights have no gradients, and adapters have products of their
    own. Counted in a step over the first sequence of `batch`; 1 where nothing is frozen."""
    parameters = model.parameters().values()
    if all(p.requires_grad for p in parameters):
        return 1.0
    row, objective = tuple(x[:1] for x in batch), copy(objective)
    objective.recompute = False
    with FlopCounter() as counter, np.errstate(all="ignore"):
        objective.loss(model, row, denominator=max(objective.count(row), 1), rng=None).backward()
    for p in parameters:
        p.grad = None
    # What is computed twice is no useful work: so `recompute` is off, and the logits, which the
    # backward pass of the loss computes again, count once.
    counted = counter.total - counter.flops["LinearCrossEntropy", "forward"]
    return counted / max(objective.flops(model, row), 1)
