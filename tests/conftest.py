"""What holds for every test: fixed seeds, a private state directory, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import hypothesis
import psutil
import pytest

from helpers.leaks import child_pids, leaked_processes, leaked_threads
from helpers.waiting import eventually
from rustray.testing.replay import SEED_VARIABLE

# `fixed` tries the same examples every time, so that a red run can be repeated; `explore`
# (`pytest --hypothesis-profile=explore`) looks for new ones and prints how to get back to them.
hypothesis.settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, print_blob=True
)
hypothesis.settings.register_profile(
    "explore", deadline=None, max_examples=1_000, print_blob=True, database=None
)
hypothesis.settings.load_profile("fixed")

_LEAK_GRACE_S = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make sim` needs."""
    parser.addoption(
        "--sim-seeds",
        type=int,
        default=0,
        metavar="N",
        help="seeds that the simulation tries (default: as many as its tests say)",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Print what a repetition of this run needs (pytest-randomly prints the order's seed)."""
    profile = config.getoption("--hypothesis-profile", default=None) or "fixed"
    return [
        f"hypothesis: profile {profile}; hash seed: {os.environ.get('PYTHONHASHSEED', 'random')}; "
        "repeat an order with: pytest --randomly-seed=<the seed printed here>"
    ]


@pytest.fixture(scope="session")
def sim_seeds(pytestconfig: pytest.Config) -> int:
    """Return how many seeds the simulation shall try; 0 where the test decides."""
    count = pytestconfig.getoption("--sim-seeds")
    assert isinstance(count, int)
    return count


@pytest.fixture(scope="session", autouse=True)
def _private_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests away from the user's own state directory, address and tokens."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RUSTRAY_")]:
            if name != SEED_VARIABLE:  # the command that a failure prints names it
                patch.delenv(name)
        patch.setenv("RUSTRAY_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a living child process or a non-daemon thread."""
    pids, threads = child_pids(), set(threading.enumerate())
    yield
    if not leaked_processes(pids) and not leaked_threads(threads):
        return
    with contextlib.suppress(AssertionError):
        eventually(
            lambda: not leaked_processes(pids) and not leaked_threads(threads), _LEAK_GRACE_S
        )
    processes = leaked_processes(pids)
    found = [_describe(process) for process in processes]
    found += [f"thread {thread.name}" for thread in leaked_threads(threads)]
    for process in processes:  # so that the tests after this one are judged for themselves
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if found:
        pytest.fail("left behind by this test: " + "; ".join(found), pytrace=False)


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({' '.join(process.cmdline())[:120]})"
    except psutil.NoSuchProcess:
        return f"process {process.pid} (ended meanwhile)"
