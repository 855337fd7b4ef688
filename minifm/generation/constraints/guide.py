"""A constraint at work on a vocabulary: which tokens may come, and where each of them leads.

A text's state is the automaton's after its bytes, so a token may end anywhere, within a character
too. Which tokens may come in a state is found by walking a trie of the vocabulary through the
automaton, a level at a time, and is remembered: a long text visits the same states again.
"""

from dataclasses import replace

import numpy as np

from minifm.errors import ConfigError
from minifm.generation.constraints.automaton import DEAD, START, UNREACHABLE, distances
from minifm.text import end_of_text_of

REMEMBERED = 1 << 26        # bytes of tables that a Guide keeps


class Guide:
    """`automaton` over the tokens of `tokenizer`, for a model that knows `vocabulary` ids [V].

    A state is the automaton's. Special tokens never come, but for end-of-text, which comes where
    the automaton accepts, and only there. Where the vocabulary has no token for some bytes, a text
    could come to a place from which no tokens lead on: it never goes there.

    begins  whether the text stands by itself, so that a space which the vocabulary has in front of
            every text is none of it

    Raises ConfigError for a tokenizer without an end-of-text, for one whose words' ends would be
    spaces of the text, and where the vocabulary cannot spell any text that the automaton accepts.
    """

    def __init__(self, automaton, tokenizer, vocabulary, begins=False):
        self.end_of_text = end_of_text_of(tokenizer, "with which a text under a constraint ends")
        if vocabulary < tokenizer.vocabulary:
            raise ConfigError(f"the tokenizer has {tokenizer.vocabulary} tokens, and the model "
                              f"knows only {vocabulary}")
        if tokenizer.spelling.back:
            raise ConfigError(f"constraint: {tokenizer.file} marks where words end, and writes a "
                              "space behind every one: it cannot be told to write a text exactly")
        self.start = START
        if begins and tokenizer.spelling.front:
            automaton, self.start = _with_front(automaton, tokenizer.spelling.front)
        self.automaton, self.vocabulary = automaton, vocabulary
        self.trie = _Trie(tokenizer.spellings)
        self._after, self._most = {}, max(1, REMEMBERED // (4 * vocabulary))
        if not tokenizer.spelling.whole:
            self._leave_out_dead_ends(tokenizer.file)

    def advance(self, state, token):
        """The state after `token`, one that may come; end-of-text leaves it as it is."""
        return state if token == self.end_of_text else int(self.after(state)[token])

    def after(self, state):
        """int32 [V]: the state after each token, DEAD where it may not come."""
        if state not in self._after:
            if len(self._after) >= self._most:
                self._after.clear()
            after = self.trie.walk(self.automaton.table, state, self.vocabulary)
            after[self.automaton.remaining[after] == UNREACHABLE] = DEAD
            self._after[state] = after
        return self._after[state]

    def _leave_out_dead_ends(self, file):
        """Count in tokens, not in bytes, how far it is from each state to where a text may end, and
        take the ways to those from which there is none out of the automaton. Raises ConfigError
        where none is left."""
        before, reached = [set() for _ in self.automaton.table], {self.start}
        waiting = [self.start]
        while waiting:
            state = waiting.pop()
            after = self.trie.walk(self.automaton.table, state, self.vocabulary)
            for target in np.unique(after[after != DEAD]).tolist():
                before[target].add(state)
                if target not in reached:
                    reached.add(target)
                    waiting.append(target)
        remaining = distances(before, self.automaton.accepting)
        if remaining[self.start] == UNREACHABLE:
            raise ConfigError(f"constraint: the tokens of {file} spell no text that it accepts")
        self.automaton = replace(self.automaton, remaining=remaining)

    def allowed(self, state, room=None):
        """bool [V]: the tokens that may come in `state`. At least one may.

        room  how many tokens may still be written, end-of-text included. Those are left out after
              which the rest could not be written within the room: one token a byte, or, where not
              every byte has a token, in as few as there may be. Where that
              leaves none, those that bring the text nearest to its end.
        """
        after, accepting = self.after(state), self.automaton.accepting[state]
        allowed = after != DEAD
        if room is not None:
            remaining = self.automaton.remaining[after]
            in_time = allowed & (remaining + 1 < room)          # one is end-of-text
            if in_time.any() or accepting:
                allowed = in_time
            else:
                allowed &= remaining == remaining[allowed].min()
        allowed[self.end_of_text] = accepting
        return allowed


def _with_front(automaton, front):
    """(the automaton with one more state, that state): there a text begins, and `front`, a byte, is
    none of it."""
    begin = len(automaton.table)
    row = automaton.table[START].copy()
    row[front[0]] = START
    return replace(automaton, table=np.vstack([automaton.table, row]),
                   accepting=np.append(automaton.accepting, automaton.accepting[START]),
                   remaining=np.append(automaton.remaining, automaton.remaining[START])), begin


class _Trie:
    """The tokens' bytes, a level for each place in them. Every node of a level is a byte behind a
    node of the level above."""

    def __init__(self, spellings):
        """spellings  the bytes of each token, None for one that stands for no text"""
        tokens = [i for i, data in enumerate(spellings) if data]
        lengths = np.array([len(spellings[i]) for i in tokens])
        nodes = np.zeros(len(tokens), np.int64)         # of each token, on the level above
        self.levels = []                                # (parents, bytes, tokens, their nodes)
        for depth in range(lengths.max(initial=0)):
            going_on = np.flatnonzero(lengths > depth)
            data = np.array([spellings[tokens[i]][depth] for i in going_on.tolist()])
            keys, found = np.unique(nodes[going_on] * 256 + data, return_inverse=True)
            nodes[going_on] = found
            ending = np.flatnonzero(lengths == depth + 1)
            self.levels.append((keys // 256, keys % 256, np.array(tokens)[ending], nodes[ending]))

    def walk(self, table, state, vocabulary):
        """int32 [V]: the state to which each token leads from `state`, DEAD for no token."""
        after, states = np.full(vocabulary, DEAD, np.int32), np.array([state])
        for parents, data, tokens, nodes in self.levels:
            states = table[states[parents], data]
            after[tokens] = states[nodes]
            if not states.any():
                break
        return after
