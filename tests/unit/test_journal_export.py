"""Tasks are had from a journal without a head, and from one that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.scheduling import PREFIX
from rustray.cli import state as state_commands
from rustray.common import ids
from rustray.common.errors import ConfigError
from rustray.head.journal_export import JournaledTasks
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.scheduler import commands as c
from rustray.task.columns import PayloadColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import Outcome
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState

CALL = TaskClass("add", codec=Codec.JSON, priority=3)


def fill(path: Path, batches: int) -> None:
    """Write batches of three tasks: one succeeded, one failed, one has not ended."""
    store = JournalStore(path)
    arguments = PayloadColumn.of([b'[[%d], {"pad": "%s"}]' % (n, b"x" * 1500) for n in range(3)])
    failure = encode_failure(FailureInfo("TASK_FAILED", "boom", error_type="builtins.ValueError"))
    for number in range(1, batches + 1):
        ends = [(TaskState.SUCCEEDED, b"1"), (TaskState.FAILED, failure)]
        store.commit(
            [
                c.PersistBatch(number, PREFIX, 10 * number, CALL, arguments, True),
                *(
                    c.PersistOutcome(
                        2 * number + place,
                        number,
                        place,
                        Outcome(10 * number + place, end, PayloadColumn.of([payload]), "w", 1),
                    )
                    for place, (end, payload) in enumerate(ends)
                ),
            ]
        )
    store.close()


def test_every_task_comes_with_state_error_and_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON lines, in order, and the journal stays as it is."""
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "state" / FILE_NAME
    fill(path, 2)
    before = path.read_bytes()
    state_commands.export(state_dir=str(tmp_path / "state"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["task_id"] for line in lines] == [
        ids.task_id(PREFIX, first + n) for first in (10, 20) for n in range(3)
    ]
    done, failed, waiting = lines[:3]
    assert [one["state"] for one in (done, failed, waiting)] == ["SUCCEEDED", "FAILED", "QUEUED"]
    assert (done["error"], waiting["error"], waiting["finished"]) == (None, None, None)
    assert (failed["error"]["code"], failed["error"]["message"]) == ("TASK_FAILED", "boom")
    assert (failed["function"], failed["priority"], failed["attempts"]) == ("add", 3, 1)
    assert (waiting["args"], len(waiting["kwargs"]["pad"])) == ([2], 1500)
    assert path.read_bytes() == before


def test_of_a_damaged_journal_what_can_be_read_comes(tmp_path: Path) -> None:
    """From both sides of the damage, which is named."""
    path = tmp_path / FILE_NAME
    fill(path, 60)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    # So many that one of them is no overflow page, whose bytes nobody checks.
    content[middle : middle + 12 * 4096] = b"\xaa" * (12 * 4096)
    path.write_bytes(content)
    tasks = JournaledTasks(path)
    found = {task.task_id for task in tasks}
    assert tasks.damage
    assert 60 < len(found) < 180
    ends = {ids.task_id(PREFIX, 10), ids.task_id(PREFIX, 602)}
    assert ends <= found, "one side of the damage is missing"


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    """With a word about it."""
    with pytest.raises(ConfigError, match="no journal"):
        list(JournaledTasks(tmp_path / FILE_NAME))
    (tmp_path / FILE_NAME).write_bytes(b"garbage" * 1000)
    with pytest.raises(ConfigError, match="restore"):
        list(JournaledTasks(tmp_path / FILE_NAME))
