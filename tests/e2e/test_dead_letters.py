"""Dead letters of a real cluster: over kill -9 of the head, from the command line and a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually

pytestmark = pytest.mark.slow


async def test_a_task_that_failed_is_retried_after_the_head_was_killed(tmp_path: Path) -> None:
    """Arguments and error survive; who waits for the id gets the outcome of the next attempt."""
    gate = tmp_path / "gate"
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                specs = [
                    rustray.TaskSpec("read_number", [str(gate), number]) for number in range(5)
                ]
                ids = await head.submit_tasks_batch(specs)
                for name in ids:
                    result = await head.get_task_result(name, 20)
                    assert result is not None
                    assert result.state is rustray.TaskState.FAILED
                cluster.restart_head()
                lines = cluster.run("tasks", "export", "--function", "read_number").stdout
                exported = [json.loads(line) for line in lines.splitlines()]
                kept = sorted(one["args"] for one in exported)
                assert kept == [[str(gate), number] for number in range(5)]
                assert {one["error"]["error_type"] for one in exported} == {
                    "builtins.FileNotFoundError"
                }
                gate.write_text("40")
                assert cluster.json("tasks", "retry", ids[2])["retried"] == 1
                first = await head.get_task_result(ids[2], 30)
                assert first is not None
                assert (first.unwrap(), first.attempts) == (42, 2)
                shown = cluster.json("tasks", "retry", "--state", "FAILED")
                assert (shown["retried"], shown["errors"]) == (4, [])
                results = [await head.get_task_result(name, 30) for name in ids]
                assert [one.unwrap() for one in results if one] == [40, 41, 42, 43, 44]
                assert cluster.run("tasks", "export").stdout == ""
                assert cluster.json("tasks", "purge", "--state", "FAILED", "--yes")["purged"] == 0
