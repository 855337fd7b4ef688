"""What every test stands on: hypothesis profiles, a clean environment, and the `backend` fixture.

HYPOTHESIS_PROFILE=dev (the default) tries few examples, ci tries more and always the same ones.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from minifm import backends

# The fixtures below set a backend and put it back; that they run once for many examples is right.
LENIENT = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
           HealthCheck.differing_executors]
settings.register_profile("dev", max_examples=10, deadline=None, suppress_health_check=LENIENT)
settings.register_profile("ci", max_examples=40, deadline=None, suppress_health_check=LENIENT,
                          derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

AVAILABLE = [name for name in backends.NAMES if backends.why_not(name) is None]


@pytest.fixture(params=AVAILABLE)
def backend(request):
    """Each backend that this machine offers in turn, active during the test."""
    with backends.use(request.param) as active:
        yield active


@pytest.fixture(autouse=True)
def unchanged_world():
    """A test leaves behind the backend, its strictness and the MINIFM_ variables as it found them.

    The variables that are set when the tests start stay in force (MINIFM_BACKEND, MINIFM_ISA and
    MINIFM_THREADS choose what is tested); only MINIFM_STRICT is for the tests to set.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith("MINIFM_")}
    os.environ.pop("MINIFM_STRICT", None)
    active = backends.active()
    strict = {name: backends.get(name).strict for name in AVAILABLE}
    yield
    backends.use(active)
    for name, value in strict.items():
        backends.get(name).strict = value
    for name in [name for name in os.environ if name.startswith("MINIFM_")]:
        del os.environ[name]
    os.environ.update(found)


@pytest.fixture
def undrawn(monkeypatch):
    """Runs draw no loss.png, which takes longer than the steps of a tiny model."""
    monkeypatch.setattr("minifm.training.trainer.plot_losses", lambda *_: True)
