"""What a training run takes before it is begun: operations, memory, devices, time, money.

`plan` asks the model's own configuration what it has and does, divides it among devices as
memory.py says, and looks for the layout with the least division in which it fits. Every figure
of a Plan says how it comes about, with its numbers put in.

Sources: Kaplan et al. 2020 (C = 6 N D), Hoffmann et al. 2022 (20 tokens a parameter), Rajbhandari
et al. 2020 (ZeRO), Korthikanti et al. 2022 (activations), Narayanan et al. 2021 (layouts, the
pipeline's idle time).
"""

import difflib
import itertools
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.models import ARCHITECTURES
from minifm.models.causal import CausalModel
from minifm.scaling.devices import DEVICES
from minifm.scaling.memory import (
    GRADIENT,
    OPTIMIZER,
    RECOMPUTE,
    WEIGHT,
    Layout,
    Memory,
    activation_bytes,
    block_bytes,
    block_parameters,
    memory,
    stage_parameters,
)

HOUR, GIGABYTE = 3600, 1e9
MOST_COPIES = 1 << 20       # data-parallel copies in the search for the fewest devices


@dataclass(frozen=True)
class PlanConfig:
    """How the run is to be done; what is None follows from the model or is searched for."""

    count: int | None = setting(None, "devices (default: the fewest that hold the run)", least=1)
    data: int | None = setting(None, "copies of the model (default: searched)", least=1)
    tensor: int | None = setting(
        None, "devices among which every matrix is divided (default: searched)", least=1)
    pipeline: int | None = setting(
        None, "stages among which the blocks are divided (default: searched)", least=1)
    zero: int = setting(
        1, "stage of ZeRO: copies divide nothing (0), the optimizer's state (1), gradients too "
        "(2), weights too (3)", least=0, most=3)
    recompute: str = setting(
        "selective", "what the backward pass computes again: none, selective (attention matrices, "
        "as fused attention does), full (whole blocks)", choices=RECOMPUTE)
    sequence_parallel: bool = setting(
        True, "the tensor devices divide along the sequence what they else all keep")
    length: int | None = setting(
        None, "tokens of a sequence (default: the model's context)", least=1)
    micro_batch: int = setting(1, "sequences that a device computes at a time", least=1)
    batch: int | None = setting(
        None, "sequences in one update of the weights; steps and the pipeline's idle time follow",
        least=1)
    utilisation: float = setting(
        0.4, "part of the peak that goes into the model's operations, all waiting included; large "
        "published runs reached 0.3 to 0.55", above=0, most=1)
    headroom: float = setting(
        0.1, "part of the memory left to buffers, fragments and the driver", least=0, below=1)
    price: float | None = setting(None, "of one device for one hour (default: no cost is told)",
                                  above=0)

    __post_init__ = check


class Figure(NamedTuple):
    """One number, its formula, the formula with its numbers put in, and who says so."""

    value: float
    unit: str
    formula: str
    numbers: str
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """All that `minifm plan` tells.

    layout     the Layout that `memory` is of
    limit      bytes of a device that may be filled
    smallest   the Layout with the fewest devices in which the run fits; None: no layout does
    figures    {name: Figure} of operations, time, cost and what the batch decides
    by_zero    {stage: Memory} for the four stages of ZeRO
    by_recompute  {what is computed again: bytes of activations}
    """

    arch: str
    model: object
    device_name: str
    tokens: float
    config: PlanConfig
    layout: Layout
    memory: Memory
    limit: float
    smallest: Layout | None
    figures: dict
    by_zero: dict
    by_recompute: dict

    @property
    def fits(self):
        return self.memory.total <= self.limit


def plan(arch, tokens, device, config):
    """The Plan of training the preset `arch` on `tokens` tokens with devices of the name `device`.

    Raises ConfigError for a preset or device that is not known, and for counts that do not divide.
    """
    model, hardware = preset(arch), known("device", device, DEVICES)
    if not 0 < tokens < float("inf"):
        raise ConfigError(f"tokens: expected a number above 0, got {tokens:g}")
    config = replace(config, length=config.length or model.context)
    if config.length > model.context:
        raise ConfigError(f"length: expected at most the model's context of {model.context:,}, "
                          f"got {config.length:,}")
    limit = hardware.memory * (1 - config.headroom)
    smallest = fewest_devices(model, config, hardware, limit)
    layout = least_division(model, config, hardware, limit, smallest)
    return Plan(
        arch, model, device, tokens, config, layout, need(model, layout, config), limit, smallest,
        figures=operations(model, tokens, config.length)
        | duration(model, tokens, layout, config, hardware) | batch(tokens, layout, config)
        | occupation(model, layout, config, hardware),
        by_zero={zero: need(model, replace(layout, zero=zero), config) for zero in range(4)},
        by_recompute={what: activation_bytes(model, layout, recompute=what, **_sizes(config))
                      for what in RECOMPUTE})


def preset(name):
    """The configuration of the published model, or of minifm's own, that is called `name`: of a
    decoder, since what a block of others keeps memory.py does not know."""
    presets = {key: (kind.config, shape) for kind in ARCHITECTURES.values()
               if issubclass(kind.model, CausalModel) for key, shape in kind.presets.items()}
    make, shape = known("arch", name, presets)
    return make(**shape)


def known(what, name, table):
    """table[name]; ConfigError with what is there, the nearest first, where it is not."""
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{what}: expected one of {', '.join(table)}, got {name!r}{hint}")
    return table[name]


# -- layouts -------------------------------------------------------------------------------------


def need(model, layout, config):
    """The Memory of this layout."""
    return memory(model, layout, recompute=config.recompute, **_sizes(config))


def _sizes(config):
    return {"length": config.length, "micro_batch": config.micro_batch,
            "sequence_parallel": config.sequence_parallel}


def divisions(model, config, hardware):
    """Every (tensor, pipeline) that the model and what the user has said allow, the least first:
    by their product, and among equals first within a server, then along the pipeline (takeaway 1
    of Narayanan et al.). Raises ConfigError where what was said does not divide the model."""
    Layout(1, config.tensor or 1, config.pipeline or 1).check(model)
    tensors = [config.tensor] if config.tensor else range(1, hardware.server + 1)
    pipelines = [config.pipeline] if config.pipeline else range(1, model.layers + 1)
    shared = (model.heads, model.key_heads, model.hidden)
    found = [(t, p) for t, p in itertools.product(tensors, pipelines)
             if model.layers % p == 0 and all(n % t == 0 for n in shared)]
    return sorted(found, key=lambda pair: (pair[0] * pair[1], pair[1]))


def least_division(model, config, hardware, limit, smallest):
    """The Layout of all `count` devices with the least tensor × pipeline in which the run fits;
    where it fits in none, the one that needs the least memory."""
    if config.count is None:
        if smallest is not None:
            return smallest
        divided = divisions(model, config, hardware)
        layouts = [Layout(config.data or 1, t, p, config.zero) for t, p in divided]
    else:
        layouts = [Layout(config.count // (t * p), t, p, config.zero)
                   for t, p in divisions(model, config, hardware) if config.count % (t * p) == 0
                   and config.data in (None, config.count // (t * p))]
    if not layouts:
        said = [f"{name} {getattr(config, name)}" for name in ("data", "tensor", "pipeline")
                if getattr(config, name)]
        raise ConfigError(f"count: {config.count:,} devices are no multiple of what the layout "
                          f"asks for ({', '.join(said) or 'nothing'})")
    needs = [need(model, layout, config).total for layout in layouts]
    fitting = [layout for layout, total in zip(layouts, needs) if total <= limit]
    return fitting[0] if fitting else layouts[needs.index(min(needs))]


def fewest_devices(model, config, hardware, limit):
    """The Layout of the fewest devices in which the run fits, however long it takes; among equals
    that with the least division. None where there is none."""
    best = None
    for t, p in divisions(model, config, hardware):
        copies = fewest_copies(model, config, Layout(1, t, p, config.zero), limit)
        if copies and (best is None or copies * t * p < best.count):
            best = Layout(copies, t, p, config.zero)
    return best


def fewest_copies(model, config, layout, limit):
    """How many data-parallel copies the run needs to fit, each then holding a smaller part of what
    ZeRO divides; None where even MOST_COPIES do not help."""
    def fits(data):
        return need(model, replace(layout, data=data), config).total <= limit
    if config.data or not fits(MOST_COPIES):
        return config.data if config.data and fits(config.data) else None
    low, high = 0, MOST_COPIES              # it does not fit in low copies, and fits in high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


# -- operations, time, money ---------------------------------------------------------------------


def operations(model, tokens, length):
    """{name: Figure} of what the run computes."""
    N, each = model.parameters, model.flops_per_token(length, training=True)
    forward = model.flops_per_token(length)
    found = {
        "parameters": Figure(N, "", "N", f"{N:,}"),
        "FLOPs a token": Figure(
            each, "", "3 × products + 3.5 × causal attention, forward and backward",
            f"{forward:.4g} forward, at {length:,} tokens a sequence"),
        "FLOPs": Figure(tokens * each, "", "D × FLOPs a token", f"{tokens:.4g} × {each:.4g}"),
    }
    active = _active(model)
    rule = "6 N D" if active == N else "6 D × the parameters that a token meets"
    return found | {
        "by the rule": Figure(6 * active * tokens, "", rule,
                              f"6 × {active:.4g} × {tokens:.4g}", "Kaplan et al. 2020"),
        "tokens a parameter": Figure(tokens / N, "", "D / N", f"{tokens:.4g} / {N:.4g}; about 20 "
                                     "is compute-optimal", "Hoffmann et al. 2022"),
    }


def _active(model):
    """The parameters that a token meets: all but those of experts that it does not choose."""
    if not getattr(model, "experts", 0):
        return model.parameters
    idle = model.experts - model.experts_chosen
    return model.parameters - model.layers * idle * 3 * model.width * model.hidden


def duration(model, tokens, layout, config, hardware):
    """{name: Figure} of time and cost."""
    flops = tokens * model.flops_per_token(config.length, training=True)
    rate = layout.count * hardware.peak * config.utilisation
    hours = flops / rate / HOUR
    found = {
        "time": Figure(hours * HOUR, "s", "FLOPs / (devices × peak × utilisation)",
                       f"{flops:.4g} / ({layout.count:,} × {hardware.peak:.4g} × "
                       f"{config.utilisation:g})", hardware.source),
        "device-hours": Figure(hours * layout.count, "h", "devices × time",
                               f"{layout.count:,} × {hours:,.4g} h"),
    }
    if config.price is not None:
        found["cost"] = Figure(hours * layout.count * config.price, "", "device-hours × price",
                               f"{hours * layout.count:,.4g} × {config.price:g}")
    return found


def batch(tokens, layout, config):
    """{name: Figure} of what the batch decides; nothing where it is not said. Raises ConfigError
    for a batch that the copies cannot share."""
    if config.batch is None:
        return {}
    together = layout.data * config.micro_batch
    if config.batch % together:
        raise ConfigError(f"batch: {config.batch:,} sequences are no multiple of {layout.data:,} "
                          f"copies × {config.micro_batch} at a time")
    m, p = config.batch // together, layout.pipeline
    return {
        "steps": Figure(tokens / (config.batch * config.length), "", "D / (batch × length)",
                        f"{tokens:.4g} / ({config.batch:,} × {config.length:,})"),
        "micro-batches": Figure(m, "", "m = batch / (data × micro-batch)",
                                f"{config.batch:,} / ({layout.data:,} × {config.micro_batch})"),
        "pipeline idle": Figure((p - 1) / m, "", "(p - 1) / m, of the time of its work",
                                f"({p} - 1) / {m}", "Narayanan et al. 2021"),
    }


def occupation(model, layout, config, hardware):
    """{name: Figure} of what lies on the fullest device, and of how much work keeps it busy."""
    t, p, tokens = layout.tensor, layout.pipeline, config.micro_batch * config.length
    stage, found = stage_parameters(model, p), need(model, layout, config)
    block = block_bytes(model, config.length, t, config.recompute, config.sequence_parallel)
    rest = found.activations / tokens - model.layers * block

    def state(name, each, stage_of_zero):
        shared = layout.zero >= stage_of_zero
        return Figure(getattr(found, name), "B", f"{each} Ψ" + " / data" * shared,
                      f"{each} × {stage / t:.4g}" + f" / {layout.data:,}" * shared,
                      "Rajbhandari et al. 2020")
    return {
        "Ψ, of a device": Figure(
            stage / t, "", "(layers / pipeline × block + tables) / tensor",
            f"({model.layers // p} × {block_parameters(model):.4g} + "
            f"{stage - model.layers // p * block_parameters(model):.4g}) / {t}"),
        "weights": state("weights", WEIGHT, 3), "gradients": state("gradients", GRADIENT, 2),
        "optimizer": state("optimizer", OPTIMIZER, 1),
        "activations": Figure(
            found.activations, "B", "micro-batch × length × (layers × block + ends)",
            f"{config.micro_batch} × {config.length:,} × ({model.layers} × {block:,.0f} + "
            f"{rest:,.0f})", "Korthikanti et al. 2022"),
        "tokens to be busy": Figure(
            hardware.peak / hardware.bandwidth, "", "peak / bandwidth: fewer at a time wait for "
            "the weights", f"{hardware.peak:.4g} / {hardware.bandwidth:.4g}; here {tokens:,}"),
    }


def as_json(found):
    """The Plan as plain dictionaries of numbers: bytes, seconds, FLOPs."""
    return {
        "arch": found.arch, "device": {"name": found.device_name}
        | DEVICES[found.device_name]._asdict(), "tokens": found.tokens,
        "model": asdict(found.model), "settings": asdict(found.config),
        "layout": asdict(found.layout), "fits": found.fits, "limit": found.limit,
        "memory": found.memory._asdict() | {"total": found.memory.total},
        "by_zero": {zero: m._asdict() | {"total": m.total} for zero, m in found.by_zero.items()},
        "activations_by_recompute": found.by_recompute,
        "smallest": found.smallest and asdict(found.smallest) | {"count": found.smallest.count},
        "figures": {name: {"value": f.value, "unit": f.unit, "formula": f.formula,
                           "numbers": f.numbers, "source": f.source}
                    for name, f in found.figures.items()},
    }
