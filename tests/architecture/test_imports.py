"""The half of the import contracts that only shows at run time.

import-linter reads source; a root package that loads too much on import would pass it, and still
put grpc into every executor process. So these tests import in fresh interpreters and look.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.sources import SRC

_SCRIPT = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
roots = {name.partition(".")[0] for name in sys.modules}
print(*sorted(roots | {name for name in sys.modules if name.startswith("rustray.")}))
"""

_IO = frozenset({"asyncio", "socket", "subprocess", "multiprocessing", "concurrent", "selectors"})
_HEAVY = frozenset({"grpc", "google", "cryptography", "jwt", "numpy", "rich", "typer"})
_CLUSTER = frozenset(
    {"rustray.rpc", "rustray.proto", "rustray.security", "rustray.head", "rustray.client"}
)


def _loaded_by(module: str) -> frozenset[str]:
    answer = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(SRC), module],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return frozenset(answer.stdout.split())


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("rustray", _IO | _HEAVY | _CLUSTER | {"cloudpickle"}),
        ("rustray.scheduler.scheduler", _IO | _HEAVY | _CLUSTER | {"cloudpickle"}),
        ("rustray.worker.manager", _IO | _HEAVY | _CLUSTER | {"cloudpickle"}),
        ("rustray.worker.reconnect", _IO | _HEAVY | _CLUSTER | {"cloudpickle"}),
        ("rustray.worker.child", _HEAVY | _CLUSTER),
        ("rustray.worker.zygote", _HEAVY | _CLUSTER),
        ("rustray.testing", _HEAVY - {"google"}),  # the journal's rows are protobuf
    ],
)
def test_module_loads_only_what_it_may(module: str, forbidden: frozenset[str]) -> None:
    """A core, an executor and the bare package load no network, no I/O and no heavy library."""
    assert sorted(_loaded_by(module) & forbidden) == []


def test_a_head_has_loaded_what_requests_need() -> None:
    """Regression: without a descriptor left, the first task that handed in a task was refused.

    The module for that was loaded when it was needed. Found by the chaos runner (seed 201).
    """
    assert "rustray.head.nested_stream" in _loaded_by("rustray.head.app")
