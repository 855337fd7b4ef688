"""What minifm raises when a user, a file or a machine is not as expected.

Every message says what was expected, what came, and where. The command line prints it as one
line and exits with status 2; library users catch `UserError` or one of its kinds.
"""

import numpy as np


class UserError(Exception):
    """The base of every error that the user, not minifm, can mend."""


class ConfigError(UserError):
    """A configuration that is not possible: the message names the field."""


class ShapeError(UserError, ValueError):
    """Operands whose shapes or dtypes do not fit an op's signature."""


class FormatError(UserError):
    """A file that is not what it should be. `file`, `key` and `reason` say what and where."""

    def __init__(self, file, key, reason):
        self.file, self.key, self.reason = str(file), key, reason
        where = f"{file}: {key}" if key else str(file)
        super().__init__(f"{where}: {reason}")


class BackendUnavailable(UserError):
    """A backend that this machine or installation does not offer, and the reason."""


class FallbackError(UserError):
    """Under MINIFM_STRICT=1: a backend had no kernel of its own for a verb."""


class CaptureError(UserError):
    """A function whose kernels cannot be recorded, because not all of it is kernels."""


class GraphError(UserError, RuntimeError):
    """A backward pass that cannot be right: graph already freed, weight changed since, no graph."""


class AnomalyError(UserError, ArithmeticError):
    """A value that is not finite: names the op and the line of the model that made the first one,
    where they are known (observe.py)."""


def require_finite(numbers):
    """Raise AnomalyError unless what a model says, a NumPy array of logits or of what was made of
    them, is finite: argmax and softmax would make an answer of anything."""
    if not np.isfinite(numbers).all():
        raise AnomalyError("the model's logits are not finite: its weights are damaged, or its "
                           "training diverged")


def plural(count, thing):
    """"1 layer", "2,000 layers": how messages count."""
    return f"{count:,} {thing}" + "s" * (count != 1)


def why(error):
    """What went wrong with a file, in the words of an OSError or ValueError, for a message that
    names the file: an OSError would name it again."""
    return getattr(error, "strerror", None) or str(error)


LISTED = 8


def listed(items, separator=", "):
    """"a, b, c": how messages name what there may be hundreds of. Of more than LISTED the first,
    and how many more."""
    items = [str(item) for item in items]
    if len(items) > LISTED:
        items[LISTED:] = [f"and {len(items) - LISTED:,} more"]
    return separator.join(items)
