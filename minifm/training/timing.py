"""How long a training step takes here, for those who must say beforehand how far a time goes."""

import time

from minifm.rng import Rng
from minifm.training.optim import AdamW


def measured_step(model, batch, length):
    """The seconds of an update of the weights of a decoder of that configuration, with noise for
    text: the median of five."""
    model = model.model(model, Rng(0))
    optimizer = AdamW(model.parameters())
    ids = Rng(1).integers(0, model.config.vocabulary, (batch, length + 1))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.update(0.0, 1 / max(1.0, optimizer.gradient_norm()))
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return sorted(times)[2]
