"""A head that takes only so much: a session waits, a call is told when to come back."""

from __future__ import annotations

from pathlib import Path

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually, eventually

pytestmark = pytest.mark.slow

_mark = rustray.remote(functions.mark)
_TASKS = 600


def test_a_session_brings_more_than_the_head_takes_at_a_time(tmp_path: Path) -> None:
    """Refused tasks are handed in again under their ids: each runs once, and every result comes."""
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "config.toml").write_text("[scheduler]\nprincipal_pending_tasks = 100\n")
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            refs = [_mark.remote(str(marks), number, 0.0) for number in range(_TASKS)]
            assert rustray.get(refs, timeout=120) == list(range(_TASKS))
        assert functions.executions(marks) == dict.fromkeys(range(_TASKS), 1)
        counters = cluster.json("status")["counters"]
        assert counters["tasks_rejected_principal_pending_tasks"] > 0
        assert counters["tasks_accepted"] == _TASKS


async def test_a_call_is_told_when_to_come_back_and_others_are_not_hindered(
    tmp_path: Path,
) -> None:
    """Over its bound a principal gets the typed error with hint and reason; another goes on."""
    (tmp_path / "config.toml").write_text("[scheduler]\nprincipal_pending_tasks = 10\n")
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        other = cluster.json("token", "create", "--role", "submit")["token"]
        tasks = [rustray.TaskSpec("work", [number, 0.0]) for number in range(15)]
        with cluster.as_own():
            async with cluster.head_node() as head, cluster.head_node(other) as second:
                answers = await head.submit_tasks_batch(tasks, return_errors=True)
                refused = [one for one in answers if isinstance(one, rustray.ResourceExhausted)]
                assert len(refused) == 5
                assert {one.reason for one in refused} == {"PRINCIPAL_PENDING_TASKS"}
                assert all(one.retry_after_s > 0 for one in refused)
                assert len(await second.submit_tasks_batch(tasks[:10])) == 10
                cluster.restart_head()
                with pytest.raises(rustray.ResourceExhausted):
                    await head.submit_task(tasks[0])
                cluster.start_worker("a")
                await aeventually(lambda: joined(head, 1), 20)
                for name in answers[:10]:
                    result = await head.get_task_result(str(name), 30)
                    assert result is not None
                assert await head.submit_task(tasks[0])
