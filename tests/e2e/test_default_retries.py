"""The head's ``[scheduler] max_retries`` holds for all tasks that name none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import rustray
from helpers.cluster import Cluster

_WAIT_S = 60.0


def test_a_head_that_runs_nothing_again_does_so_for_code_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: it held for registered functions, and what travels as code was run again."""
    marks = tmp_path / "marks"
    marks.mkdir()
    with Cluster(tmp_path, {"SCHEDULER__MAX_RETRIES": "0"}) as cluster:
        cluster.start_head()
        cluster.start_worker("w-1", "--cpus", "2")
        monkeypatch.setenv("RUSTRAY_STATE_DIR", str(cluster.state_dir))
        with rustray.init(cluster.address):

            def once(name: str) -> None:
                with open(marks / name, "a") as file:
                    file.write("x")
                os.kill(os.getpid(), 9)

            die = rustray.remote(once)

            @rustray.remote
            def hand_in(name: str) -> Any:
                return rustray.get(die.remote(name))

            with pytest.raises(rustray.RustRayError, match="SIGKILL"):
                rustray.get(die.remote("plain"), timeout=_WAIT_S)
            with pytest.raises(rustray.RustRayError, match="SIGKILL"):
                rustray.get(hand_in.remote("nested"), timeout=_WAIT_S)
            with pytest.raises(rustray.RustRayError, match="SIGKILL"):
                next(rustray.map(once, ["map"]))
            with rustray.Executor(cluster.address) as executor:
                error = executor.submit(once, "future").exception(timeout=_WAIT_S)
            assert error is not None
            for name in ("plain", "nested", "map", "future"):
                assert (marks / name).read_text() == "x", name
            with pytest.raises(rustray.TaskError):
                rustray.get(die.options(max_retries=1).remote("asked"), timeout=_WAIT_S)
            assert (marks / "asked").read_text() == "xx"
