"""How long a training step takes here, for those who must say beforehand how far a time goes."""

import time

from minifm.rng import Rng
from minifm.training.optim import AdamW


def measured_step(model, batch, length):
    """The seconds of an update of the weights of a decoder of that configuration, with noise for
    text: the median of five."""
    model = model.model(model, Rng(0))
    ids = Rng(1).integers(0, model.config.vocabulary, (batch, length + 1))
    return seconds_of_update(model, lambda: model.loss(ids[:, :-1], ids[:, 1:]))


def seconds_of_update(model, loss):
    """The seconds that `loss()`, a scalar Tensor, and an update of the model by it take: the median
    of five. The weights stay as they are."""
    optimizer, times = AdamW(model.parameters()), []
    for _ in range(5):
        started = time.perf_counter()
        loss().backward()
        optimizer.update(0.0, 1 / max(1.0, optimizer.gradient_norm()))
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return sorted(times)[2]
