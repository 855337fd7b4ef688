"""One more class for a network that is told classes by a label: its table grows by a row."""

from dataclasses import replace

import numpy as np

from minifm import backends
from minifm.nn import Embedding

TABLE = "labels"            # what such a table is called in every network that has one


def class_tables(network):
    """{name: Embedding} of the tables of a network that hold a vector for each class; the last row
    stands for none. A DiT may have one in each block."""
    return {name: part for name, part in network.modules().items()
            if isinstance(part, Embedding) and name.rpartition(".")[2] == TABLE}


def with_class(network):
    """A network as this one, with one class more: the label of "none" moves up by one, and below it
    is the new one, which begins as the mean of the other classes. All other weights are shared with
    `network`."""
    classes = network.config.classes + 1
    made = type(network)(replace(network.config, classes=classes))
    own = network.parameters()
    tables = {f"{name}.weight" for name in class_tables(network)}
    for name, parameter in made.parameters().items():
        parameter.data = own[name].data
        if name in tables:
            rows = backends.active().to_numpy(own[name].data)               # [K + 1, C]
            known = rows[:-1] if len(rows) > 1 else rows
            grown = np.concatenate([rows[:-1], known.mean(0, keepdims=True), rows[-1:]])
            parameter.data = backends.active().from_numpy(grown.astype(rows.dtype))
    return made
