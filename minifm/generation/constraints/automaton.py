"""The automaton that reads a text byte by byte and knows whether it may still become one that is
wanted.

An expression (expression.py) is first a nondeterministic automaton, an `Nfa`, in which several
states may hold at once; `determinise` makes each set of states that can hold one state of an
`Automaton`, which is a table (Rabin and Scott 1959). In that table no byte leads into a dead end:
from every state that it names an accepting one can be reached.
"""

from dataclasses import dataclass

import numpy as np

from minifm.errors import ConfigError

DEAD, START = 0, 1          # the states of an Automaton that have a name
LARGEST = 50_000            # states; a table of so many takes 51 MB
WORK = 2_000_000            # states of an Nfa in all sets of them: some seconds
UNREACHABLE = np.iinfo(np.int32).max // 2


class Nfa:
    """States in which bytes (`moves`) and nothing at all (`jumps`) lead to others."""

    def __init__(self):
        self.moves = []         # of each state: [(lowest byte, highest byte, target)]
        self.jumps = []         # of each state: [target]

    def state(self):
        """The number of a new state."""
        if len(self.moves) >= 4 * LARGEST:
            raise too_large()
        self.moves.append([])
        self.jumps.append([])
        return len(self.moves) - 1

    def move(self, source, low, high, target):
        self.moves[source].append((low, high, target))

    def jump(self, source, target):
        self.jumps[source].append(target)

    def closure(self, states):
        """All states that hold when `states` do: jumps take no byte."""
        found, open_states = set(states), list(states)
        while open_states:
            for target in self.jumps[open_states.pop()]:
                if target not in found:
                    found.add(target)
                    open_states.append(target)
        return frozenset(found)


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over bytes, whose states are 0 (DEAD), 1 (START), 2, …

    table      int32 [S, 256]: the state behind each byte; DEAD where no wanted text goes on so
    accepting  bool [S]: whether a text may end here
    remaining  int32 [S]: the fewest bytes that lead to an accepting state
    """

    table: np.ndarray
    accepting: np.ndarray
    remaining: np.ndarray

    def after(self, data, state=START):
        """The state after the bytes `data`."""
        for byte in data:
            state = int(self.table[state, byte])
        return state

    def matches(self, data):
        """Whether `data` is a whole text of the language."""
        return bool(self.accepting[self.after(data)])

    @property
    def empty(self):
        """Whether no text at all is accepted."""
        return self.remaining[START] == UNREACHABLE


def determinise(nfa, start, end):
    """The Automaton of the texts that lead `nfa` from state `start` to state `end`."""
    edges = sorted({edge for moves in nfa.moves for low, high, _ in moves
                    for edge in (low, high + 1)} | {0, 256})
    class_of = np.repeat(np.arange(len(edges) - 1), np.diff(edges))     # [256]: alike everywhere
    numbers, sets, rows, work = {}, [None], [[DEAD] * (len(edges) - 1)], 0

    def number(states):
        if states not in numbers:
            if len(sets) > LARGEST:
                raise too_large()
            numbers[states] = len(sets)
            sets.append(states)
        return numbers[states]

    number(nfa.closure([start]))
    while len(rows) < len(sets):
        work += len(sets[len(rows)])
        if work > WORK:
            raise too_large()
        targets = {}
        for state in sets[len(rows)]:
            for low, high, target in nfa.moves[state]:
                for kind in range(class_of[low], class_of[high] + 1):
                    targets.setdefault(kind, set()).add(target)
        row = [DEAD] * (len(edges) - 1)
        for kind, states in targets.items():
            row[kind] = number(nfa.closure(states))
        rows.append(row)
    table = np.array(rows, np.int32)[:, class_of]
    return trimmed(table, np.array([states is not None and end in states for states in sets]))


def trimmed(table, accepting):
    """The Automaton without the bytes after which nothing can be accepted any more."""
    before = [set() for _ in table]
    for state, row in enumerate(table.tolist()):
        for target in set(row):
            before[target].add(state)
    remaining = distances(before, accepting)
    return Automaton(np.where(remaining[table] == UNREACHABLE, DEAD, table).astype(np.int32),
                     accepting, remaining)


def distances(before, accepting):
    """int32 [S]: the fewest steps from each state to an accepting one, or UNREACHABLE; before[s]
    are the states from which one step leads to s."""
    remaining = np.full(len(before), UNREACHABLE, np.int32)
    reached, steps = np.flatnonzero(accepting).tolist(), 0
    while reached:
        remaining[reached] = steps
        steps += 1
        reached = [s for s in {s for target in reached for s in before[target]}
                   if remaining[s] == UNREACHABLE]
    return remaining


def intersection(one, other):
    """The Automaton of the texts that both accept: its states are pairs of theirs."""
    numbers, pairs, rows = {(DEAD, DEAD): DEAD}, [(DEAD, DEAD), (START, START)], []
    numbers[START, START] = START
    for pair in pairs:          # grows
        first, second = one.table[pair[0]].tolist(), other.table[pair[1]].tolist()
        row = []
        for target in zip(first, second):
            target = target if DEAD not in target else (DEAD, DEAD)
            if target not in numbers:
                numbers[target] = len(pairs)
                pairs.append(target)
                if len(pairs) > LARGEST:
                    raise too_large()
            row.append(numbers[target])
        rows.append(row)
    accepting = [bool(one.accepting[i] and other.accepting[j]) for i, j in pairs]
    return trimmed(np.array(rows, np.int32), np.array(accepting))


def too_large():
    return ConfigError(f"the constraint is too large: it needs more than {LARGEST:,} states; "
                       "lower its repetitions and lengths")
