"""Group G of the bad-input corpus, its part on state: what a head does with what it finds there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.bad_input import BadInput
from helpers.cluster import Cluster
from rustray.head.journal_rows import SCHEMA_VERSION
from rustray.head.journal_store import FILE_NAME
from rustray.proto.rustray.v1 import common_pb2
from rustray.task.state import TaskState

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The state of a head that was killed, and a task that it had accepted."""
    with Cluster(tmp_path_factory.mktemp("killed")) as cluster:
        node = cluster.start_head()
        head = BadInput(cluster)
        task = common_pb2.TaskRequest(
            function_name="add", args=[b"1", b"2"], codec=common_pb2.CODEC_JSON
        )
        name = head.submit(task)
        head.close()
        node.kill()
    return cluster.state_dir, name


@pytest.fixture
def state(killed: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that state."""
    copy = tmp_path / "state"
    shutil.copytree(killed[0], copy)
    copy.chmod(0o700)
    return copy


def _write(content: bytes) -> Callable[[Path], None]:
    def change(state: Path) -> None:
        _drop_log(state)
        (state / FILE_NAME).write_bytes(content)

    return change


def _drop_log(state: Path) -> None:
    """Bring all into the one file."""
    with contextlib.closing(sqlite3.connect(state / FILE_NAME)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA journal_mode=DELETE")


def _pragma(statement: str) -> Callable[[Path], None]:
    def change(state: Path) -> None:
        with contextlib.closing(sqlite3.connect(state / FILE_NAME)) as db:
            db.execute(statement)
            db.commit()

    return change


def _make_directory(state: Path) -> None:
    _drop_log(state)
    (state / FILE_NAME).unlink()
    (state / FILE_NAME).mkdir()


def _damage(state: Path) -> None:
    _drop_log(state)
    with (state / FILE_NAME).open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xa5" * 4_096)


def _lose_log(state: Path) -> None:
    (state / f"{FILE_NAME}-wal").unlink()


def _open_to_all(state: Path) -> None:
    state.chmod(0o755)


def _link(state: Path) -> None:
    real = state.with_name("real")
    state.rename(real)
    state.symlink_to(real)


def _become_a_file(state: Path) -> None:
    shutil.rmtree(state)
    state.write_bytes(b"x")


def _show_the_key(state: Path) -> None:
    key = next(path for path in state.iterdir() if b"PRIVATE KEY" in path.read_bytes())
    key.chmod(0o644)


def _take_the_right_to_write(state: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere, so the state cannot be made read-only for it")
    state.chmod(0o500)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "G12 the journal is a directory": (_make_directory, FILE_NAME),
    "G12 the journal has 0 bytes": (_write(b""), FILE_NAME),
    "G12 the journal is no database": (_write(b"no database" * 1_000), FILE_NAME),
    "G12 the journal is damaged": (_damage, FILE_NAME),
    "G12 a newer schema": (_pragma(f"PRAGMA user_version={SCHEMA_VERSION + 1}"), "newer"),
    "G12 another program's file": (_pragma("PRAGMA application_id=1"), FILE_NAME),
    "G12 the log is lost": (_lose_log, FILE_NAME),
    "G12 the state directory is a file": (_become_a_file, "state"),
    "G12 the state directory is a link": (_link, "state"),
    "G12 the state directory is not writable": (_take_the_right_to_write, "state"),
    "G8 others may read the state directory": (_open_to_all, "chmod"),
    "G8 others may read the key": (_show_the_key, "chmod"),
}


def _content(journal: Path) -> bytes:
    """Return all but the header, in which SQLite notes how a file is used."""
    return journal.read_bytes()[100:] if journal.is_file() else b""


@pytest.mark.parametrize("name", BAD)
def test_a_head_refuses_a_state_that_is_not_right(state: Path, tmp_path: Path, name: str) -> None:
    """Exit code 2, the file is named, no innards are shown, and nothing of it is changed."""
    change, said = BAD[name]
    change(state)
    journal = state / FILE_NAME
    before = _content(journal)
    answer = Cluster(tmp_path).run("head", "--port", "0", state_dir=state)
    assert answer.returncode == 2, answer.stderr
    assert said in answer.stderr
    assert re.search(r'Traceback|File "|PRIVATE KEY', answer.stdout + answer.stderr) is None
    if change is not _damage:  # whose first page is sound, and counts the starts
        assert _content(journal) == before


def test_a_log_that_was_left_behind_is_read(state: Path, killed: tuple[Path, str]) -> None:
    """G12: what a killed head had accepted is there, and the journal is sound."""
    assert (state / f"{FILE_NAME}-wal").stat().st_size > 0
    with Cluster(state.parent) as cluster:
        cluster.start_head()
        head = BadInput(cluster)
        assert head.result(killed[1], 0).state == TaskState.QUEUED + 1
        head.close()
        assert cluster.json("state", "check")["tasks"] == 1


LIMITS: dict[str, tuple[dict[str, str], str]] = {
    "G13 pending tasks 0": ({"MAX_PENDING_TASKS": "0"}, "max_pending_tasks"),
    "G13 pending tasks -1": ({"MAX_PENDING_TASKS": "-1"}, "max_pending_tasks"),
    "G13 lease shorter than a heartbeat": (
        {"LEASE_TTL_S": "3", "HEARTBEAT_INTERVAL_S": "4"}, "heartbeat_interval_s"
    ),
    "G14 results are kept for 0 s": ({"RESULT_TTL_S": "0"}, "result_ttl_s"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_head_refuses_limits_that_make_no_sense(tmp_path: Path, name: str) -> None:
    """Exit code 2, and the setting is named; no state is made."""
    settings, said = LIMITS[name]
    cluster = Cluster(tmp_path, {f"SCHEDULER__{key}": text for key, text in settings.items()})
    answer = cluster.run("head", "--port", "0")
    assert answer.returncode == 2, answer.stderr
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (cluster.state_dir / FILE_NAME).exists()
