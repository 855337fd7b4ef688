"""Which weights training changes: all, unless some are frozen.

A frozen parameter (`requires_grad` False) gets no gradient and no moments of the optimizer, and
costs no product in the backward pass. It stays a parameter, and is saved with the others.
"""

from contextlib import contextmanager

from minifm.errors import ConfigError, listed
from minifm.nn.module import Module, Parameter


def trainable(model):
    """{name: Parameter} of those that training changes."""
    return {name: p for name, p in model.parameters().items() if p.requires_grad}


def freeze(part, frozen=True):
    """Freeze a Module or Parameter, or (`frozen` False) let training change it again."""
    for parameter in [part] if isinstance(part, Parameter) else part.parameters().values():
        parameter.requires_grad = not frozen
        parameter.grad = None


@contextmanager
def held(part):
    """A block in which what is computed passes gradients through `part`, and none to it; those that
    it has already, it keeps."""
    free = [p for p in part.parameters().values() if p.requires_grad]
    for parameter in free:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad = True


def train_only(model, names):
    """Freeze all but the parts of these names: ("sentence_head",) trains a head alone.

    Raises ConfigError, listing what there is, for a name that no part has.
    """
    parts = matching(model, names, "train_only")
    freeze(model)
    for part in parts.values():
        freeze(part, False)


def freeze_layers(model, count):
    """Freeze the first `count` blocks and what comes before them, the embeddings.

    Blocks are counted as the model lists them, an encoder's before a decoder's. Raises ConfigError
    for more of them than there are.
    """
    parts = list(_in_reading_order(model))
    blocks = sum(is_block for _, is_block in parts)
    if not 0 <= count <= blocks:
        raise ConfigError(f"layers to freeze: expected 0 … {blocks}, got {count}")
    passed = 0
    for part, is_block in parts:
        if passed == (count if is_block else blocks):
            return
        passed += is_block
        freeze(part)


def _in_reading_order(model):
    """(part, whether it is a block) of each part of a model: blocks are what stands in lists. A
    part that has lists itself, the body under a head, gives its own parts."""
    for part in vars(model).values():
        if isinstance(part, list):
            yield from ((block, True) for block in part)
        elif isinstance(part, Module) and any(isinstance(x, list) for x in vars(part).values()):
            yield from _in_reading_order(part)
        elif isinstance(part, (Module, Parameter)):
            yield part, False


def matching(model, names, setting):
    """{name: Module} of the parts that `names` mean: the part of that very name, or else all whose
    names end so, in whole words between dots. Raises ConfigError, naming `setting`, for one that
    means none."""
    parts, found = {name: part for name, part in model.modules().items() if name}, {}
    for wanted in names:
        meant = [wanted] if wanted in parts else [name for name in parts if matches(name, wanted)]
        if not meant:
            there = dict.fromkeys(name.partition(".")[0] for name in parts)
            raise ConfigError(f"{setting}: no part is called {wanted!r}; there are "
                              f"{listed(there)}, and their parts")
        found |= {name: parts[name] for name in meant}
    return found


def matches(name, ending):
    """Whether a dotted name is `ending` or ends in it: "a.b.c" in "b.c", not in ".c" or "bc"."""
    return name == ending or name.endswith("." + ending)
