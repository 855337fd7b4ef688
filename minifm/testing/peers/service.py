"""The peer's end of the line: JSON in, JSON out, one line each.

    {"prepare": {…}}                -> {"subject": 0, "found": {"loss": 1.23}}
    {"warm": 0, "seconds": 0.1}     -> {}
    {"turn": 0, "seconds": 0.1}     -> {"samples": [0.0123, …]}
    {"forget": null}                -> {}

Whatever goes wrong becomes {"problem": "one line"}. An answer is sent when the threads of this
process have come to rest, so that whoever asked has the machine. Runs without minifm.
"""

import gc
import json
import os
import sys

from clock import Timed, wait_until_idle


def serve(start):
    """Answer until the input ends. start(threads) -> (this peer's name, prepare), where
    prepare(request) -> an endless iterator, each step one call of what is to be timed; or such a
    one and what it makes of the numbers that it was given, to be compared."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)               # whatever libraries print shall not stand between the answers

    def answer(work):
        try:
            found = work()
        except Exception as problem:
            found = {"problem": f"{type(problem).__name__}: {problem}".partition("\n")[0]}
        wait_until_idle()
        print(json.dumps(found), file=answers, flush=True)
        return found

    subjects, prepare = [], None

    def begin():
        nonlocal prepare
        name, prepare = start(int(sys.argv[1]))
        return {"name": name}

    def respond(request):
        if "prepare" in request:
            made = prepare(request["prepare"])
            calls, found = made if isinstance(made, tuple) else (made, None)
            subjects.append(Timed(calls))
            return {"subject": len(subjects) - 1, "found": found}
        if "warm" in request:
            subjects[request["warm"]].warm(request["seconds"])
        if "turn" in request:
            return {"samples": subjects[request["turn"]].turn(request["seconds"])}
        if "forget" in request:
            subjects.clear()
            gc.collect()
        return {}

    gc.disable()
    if "problem" not in answer(begin):
        for line in sys.stdin:
            answer(lambda: respond(json.loads(line)))
