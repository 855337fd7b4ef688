"""Stopping a run from outside: Ctrl-C and SIGTERM let the step finish, then save."""

import signal
import threading


class Interrupted(Exception):
    """The run was asked to stop, and has saved. `exit_code` is 128 + the signal's number: 130
    after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, signal_number, step, checkpoint):
        self.exit_code, self.step, self.checkpoint = 128 + signal_number, step, checkpoint
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}; "
                         f"saved as {checkpoint}")


class StopSignals:
    """Within `with StopSignals() as stop:` the first SIGINT or SIGTERM only sets
    `stop.requested` to its number; a SIGINT after that raises KeyboardInterrupt at once.

    Python delivers signals to the main thread alone; in any other this does nothing.
    """

    requested = None

    def __enter__(self):
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.requested = self.requested or number
        signal.signal(signal.SIGINT, signal.default_int_handler)
