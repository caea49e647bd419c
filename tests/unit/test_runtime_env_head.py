"""Packages at the head: who may bring them, how long they stay, and how they reach workers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from helpers.scheduling import ANYTHING, PREFIX, Bench
from rustray.client.refs import TaskRef
from rustray.client.session import ClientSession
from rustray.common.errors import CommunicationError
from rustray.head.brought import MAX_PACKAGES_BYTES
from rustray.head.connections import ConnectionManager
from rustray.head.driver import HeadDriver
from rustray.head.journal import MemoryJournal
from rustray.head.journal_store import JournalStore
from rustray.head.notifications import NotificationManager
from rustray.head.peer import FRAME_BYTES
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.scheduler import Scheduler
from rustray.task.columns import PayloadColumn
from rustray.task.frames import ClassDefinition, ClientFrame, Submission, WorkerFrame
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import TaskClass
from rustray.task.views import WorkerInfo
from rustray.testing.clock import ProcessLoop, VirtualClock

from .test_peers import Pull

BIG, SMALL = b"b" * (FRAME_BYTES + 1), b"s" * 10
BIG_HASH, SMALL_HASH = (hashlib.sha256(each).digest() for each in (BIG, SMALL))
ENV = TaskClass("f", runtime_env=RuntimeEnv((("A", "1"),), BIG_HASH, (SMALL_HASH,)))
OTHER = TaskClass("f", runtime_env=RuntimeEnv((), b"", (SMALL_HASH,)))


def a_driver() -> tuple[HeadDriver, ConnectionManager]:
    """Return a head in virtual time, and its connections."""
    loop = ProcessLoop(VirtualClock())
    driver = HeadDriver(Scheduler(), NotificationManager(), MemoryJournal(), loop)
    return driver, ConnectionManager(driver)


def a_client(peers: ConnectionManager, *, may_send_code: bool = True) -> Pull:
    """Open a client's stream."""
    pull = Pull(peers.open_client(PREFIX, may_send_code=may_send_code))
    pull.pump.attach(pull)
    return pull


def a_frame(*classes: ClassDefinition, number: int = 1, first: int = 0) -> ClientFrame:
    """One task of each class."""
    tasks = [
        Submission(each.number, first + place, PayloadColumn.of([b"x"]))
        for place, each in enumerate(classes)
    ]
    return ClientFrame(number=number, classes=list(classes), submissions=tasks)


def rejections(pull: Pull) -> list[tuple[str, str]]:
    """Return code and message of what was refused."""
    return [(r.code, r.message) for frame in pull.frames for r in frame.rejected]


def test_an_environment_takes_a_token_that_allows_code() -> None:
    """Also one of variables only, for a registered function: LD_PRELOAD is code."""
    _, peers = a_driver()
    client = a_client(peers, may_send_code=False)
    plain = TaskClass("f", runtime_env=RuntimeEnv((("LD_PRELOAD", "evil.so"),)))
    client.pump.on_frame(a_frame(ClassDefinition(1, plain)))
    ((code, message),) = rejections(client)
    assert code == "PERMISSION_DENIED"
    assert "runtime_env" in message


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (ClassDefinition(1, ENV, b"", (b"other",)), "came with a package it does not name"),
        (ClassDefinition(1, ENV, b"", (SMALL,)), "has not arrived"),
        (ClassDefinition(1, TaskClass("f", runtime_env=RuntimeEnv((), b"short"))), "32 bytes"),
        (ClassDefinition(1, TaskClass("f", runtime_env=RuntimeEnv((("=", "x"),)))), "no variable"),
    ],
)
def test_a_false_environment_is_refused(definition: ClassDefinition, message: str) -> None:
    """Its tasks are, with a typed error; the stream goes on."""
    driver, peers = a_driver()
    client = a_client(peers)
    client.pump.on_frame(a_frame(definition))
    assert [(code, message in text) for code, text in rejections(client)] == [("PAYLOAD", True)]
    assert not driver.scheduler.state.code
    client.pump.on_frame(a_frame(ClassDefinition(2, TaskClass("f")), number=2, first=5))
    assert driver.scheduler.state.find(PREFIX, 5) is not None


def test_one_stream_cannot_bring_packages_without_end() -> None:
    """What it brought stays with it, so there is a bound."""
    _, peers = a_driver()
    client = a_client(peers)
    content = bytes(MAX_PACKAGES_BYTES // 10)
    for number in range(1, 12):
        package = content + bytes([number])
        env = RuntimeEnv((), hashlib.sha256(package).digest())
        definition = ClassDefinition(number, TaskClass("f", runtime_env=env), b"", (package,))
        client.pump.on_frame(a_frame(definition, number=number, first=number))
    ((code, message),) = rejections(client)[:1]
    assert code == "RESOURCE_EXHAUSTED"
    assert "packages" in message


def test_a_package_stays_as_long_as_a_task_needs_it(tmp_path: Path) -> None:
    """Through a restart of the head, shared by classes; then it is gone, from the disk too."""
    driver, peers = a_driver()
    client = a_client(peers)
    client.pump.on_frame(
        a_frame(ClassDefinition(1, ENV, b"", (BIG, SMALL)), ClassDefinition(2, OTHER))
    )
    assert driver.scheduler.state.code == {BIG_HASH: BIG, SMALL_HASH: SMALL}
    bench = Bench()
    bench.join("w", 4)
    kept: list[c.Command] = []
    for digest, content in ((BIG_HASH, BIG), (SMALL_HASH, SMALL)):
        kept += bench.feed(e.CodeReceived(digest, content))
    bench.submit(2, ENV)
    kept += bench.commands
    bench.submit(1, OTHER)
    kept += bench.commands
    store = JournalStore(tmp_path / "journal.db")
    store.commit([one for one in kept if isinstance(one, (c.PersistBatch, c.PersistCode))])
    store.close()
    again = JournalStore(tmp_path / "journal.db")
    found = again.load(22.0)
    assert found is not None
    assert {batch.task_class for batch in found.batches} == {ENV, OTHER}
    assert dict(found.codes) == {BIG_HASH: BIG, SMALL_HASH: SMALL}
    again.close()
    bench.run_all()
    bench.pass_time(bench.scheduler.state.settings.result_ttl_s + 1)
    assert bench.scheduler.state.code == {}
    assert {one.code_hash for one in bench.commands if isinstance(one, c.ForgetCode)}


def test_the_head_keeps_no_more_code_than_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the bound is not kept, and its tasks are refused."""
    monkeypatch.setattr("rustray.scheduler.admission.MAX_CODE_BYTES", len(BIG) + 5)
    bench = Bench()
    bench.feed(e.CodeReceived(BIG_HASH, BIG))
    bench.feed(e.CodeReceived(SMALL_HASH, SMALL))
    bench.submit(1, OTHER)
    assert bench.rejected == {0: "PAYLOAD"}
    assert bench.scheduler.state.code == {BIG_HASH: BIG}


def a_worker(driver: HeadDriver, peers: ConnectionManager, session: int) -> Pull:
    """Join a worker."""
    info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 8}, functions=(ANYTHING,))
    driver.handle(e.WorkerJoined(info, session))
    link = Pull(peers.open_worker("w", session))
    link.pump.attach(link)
    link.pump.on_frame(WorkerFrame(number=1, held=[]))
    return link


def test_a_worker_gets_each_package_once_a_session_and_big_ones_alone() -> None:
    """Before the first task that needs it, in a frame that stays within the limit."""
    driver, peers = a_driver()
    client = a_client(peers)
    link = a_worker(driver, peers, 1)
    small = ClassDefinition(2, OTHER, b"", (SMALL,))
    client.pump.on_frame(a_frame(small, ClassDefinition(1, ENV, b"", (BIG,))))
    brought = [
        (definition.task_class, definition.packages, bool(frame.leases))
        for frame in link.frames
        for definition in frame.classes
    ]
    assert brought == [(OTHER, (SMALL,), True), (ENV, (BIG,), False)]
    order = [
        (each.task_class if isinstance(each, ClassDefinition) else each.class_number)
        for frame in link.frames
        for each in (*frame.classes, *frame.leases)
    ]
    assert order == [OTHER, 1, ENV, 2]


def test_a_client_sends_each_package_once_a_stream(tmp_path: Path) -> None:
    """However many functions have it; again on the next stream, and big ones alone."""
    (tmp_path / "a.py").write_text("x = 1")
    session = ClientSession(lambda: None)
    refs: list[TaskRef[int]] = []
    for name in ("f", "g"):
        env = {"working_dir": tmp_path}
        entry = session.define(TaskClass(name), b"", runtime_env=env)
        refs.append(session.submit(entry, b"x"))
    for _ in range(2):
        defined: set[int | bytes] = set()
        frame = ClientFrame()
        assert session.fill(frame, defined)
        sent = [len(definition.packages) for definition in frame.classes]
        assert sent == [1, 0]
        session.restart()
    session.close(CommunicationError("over"))
    assert len(refs) == 2
