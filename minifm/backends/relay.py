"""A backend that passes each verb on to another one, so that somebody can look on."""

from minifm.backends.reference import Reference


class Relay(Reference):
    """`inner`, of which every verb goes through `relay`: override that. Arrays are inner's.

    Only what is asked of this backend passes here; what one verb of inner's asks of another is
    inner's affair.
    """

    def __init__(self, inner):
        super().__init__()
        self.inner, self.name = inner, inner.name

    def relay(self, verb, arguments, options):
        """Let inner compute; returns its result."""
        return getattr(self.inner, verb)(*arguments, **options)


def _relayed(verb):
    def relayed(self, *arguments, **options):
        return self.relay(verb, arguments, options)
    relayed.__name__ = verb
    return relayed


for _name in dir(Reference):
    if callable(getattr(Reference, _name)) and not _name.startswith("_"):
        setattr(Relay, _name, _relayed(_name))
