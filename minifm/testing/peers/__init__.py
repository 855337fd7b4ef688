"""Other libraries to compare with, each in a process and an interpreter of its own.

    with Peer(PYTORCH, "path/to/python", threads=2) as peer:
        subject = peer.prepare({"kind": "step", "mode": "eager", …})
        subject.turn(0.5)               # samples, in seconds

A library's threads, allocator and settings stay in its process; it is asked for one turn at a
time and answers when its threads have come to rest, so that both sides take turns on the machine.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minifm.errors import ConfigError


@dataclass(frozen=True)
class Library:
    """What can be compared with: its name, the module that must be there, and our script."""

    name: str
    flag: str
    module: str
    script: str


PYTORCH = Library("PyTorch", "--torch", "torch", "pytorch.py")
LLAMA = Library("llama.cpp", "--llama", "llama_cpp", "llamacpp.py")


class Unable(Exception):
    """The peer cannot do what it was asked for; says why, in one line."""


class Peer:
    """`library` in a process of the interpreter `python`. Raises ConfigError if it cannot start.

    only    the modes to use where a case asks for them; None: all
    """

    def __init__(self, library, python, threads, only=None):
        self.library, self.only = library, only
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        script = Path(__file__).parent / library.script
        try:
            self.process = subprocess.Popen(
                [python, str(script), str(threads)], text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self.errors,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        except OSError as problem:
            self.errors.close()
            raise ConfigError(f"{library.flag}: {python}: {problem.strerror}") from None
        try:
            self.name = self._answer()["name"]
        except (Unable, TypeError, KeyError) as problem:
            self.close()
            raise ConfigError(f"{library.flag}: {python} is no Python interpreter that has "
                              f"{library.module} ({problem})") from None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End the process."""
        with contextlib.suppress(BrokenPipeError):      # it may have ended by itself
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def modes(self, case):
        """In which ways the library can do what the Case asks for; empty: it cannot."""
        modes = case.modes.get(self.library.name, ())
        return [mode for mode in modes if self.only is None or mode in self.only]

    def prepare(self, request):
        """A Remote that does what `request` says. Raises Unable."""
        answer = self.ask({"prepare": request})
        return Remote(self, answer["subject"], answer["found"])

    def forget(self):
        """Free everything that was prepared."""
        with contextlib.suppress(Unable):       # who has ended holds nothing
            self.ask({"forget": None})

    def ask(self, request):
        """The answer to one request. Raises Unable."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass                # then there is no answer either
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            said = f"it says {line.strip()[:60]!r}" if line else self._last_words()
            raise Unable(said) from None
        if isinstance(answer, dict) and "problem" in answer:
            raise Unable(answer["problem"])
        return answer

    def _last_words(self):
        """The last line of what the ended process wrote as errors."""
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else "its process ended"


class Remote:
    """Something that a peer has prepared: `warm` and `turn` as in clock.Timed; `found`, what it
    makes of the numbers that it was given, {name: numbers} or None."""

    def __init__(self, peer, number, found=None):
        self.peer, self.number, self.found = peer, number, found

    def warm(self, seconds):
        self.peer.ask({"warm": self.number, "seconds": seconds})

    def turn(self, seconds):
        return self.peer.ask({"turn": self.number, "seconds": seconds})["samples"]
