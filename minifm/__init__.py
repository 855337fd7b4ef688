"""minifm: a foundation-model stack to read, step through, and use.

    import minifm as mf
    x = mf.Tensor([[1.0, 2.0]], requires_grad=True)
    loss = (mf.gelu(x) ** 2).sum()
    loss.backward()                       # x.grad

Public names only; each module says what it holds.
"""

from minifm.backends import active as backend
from minifm.backends import use
from minifm.errors import UserError
from minifm.gradcheck import gradcheck
from minifm.observe import FlopCounter, MemoryMeter, OpTimer, detect_anomaly
from minifm.ops import *  # noqa: F403  (every op is a public name)
from minifm.rng import Rng
from minifm.tensor import Tensor, no_grad

__version__ = "0.1.0"
