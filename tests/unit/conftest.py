"""An embedded cluster for the modules that want one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

import rustray
from rustray.head.journal_store import JournalStore


@pytest.fixture(autouse=True)
def _journals_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test leaves open as a head does that is killed; Python 3.13 warns of it."""
    opened: list[sqlite3.Connection] = []
    open_it = JournalStore.__init__

    def opening(store: JournalStore, *args: Any, **kwargs: Any) -> None:
        open_it(store, *args, **kwargs)
        opened.append(store._db)

    monkeypatch.setattr(JournalStore, "__init__", opening)
    yield
    for database in opened:
        database.close()


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    with rustray.init(num_cpus=2):
        yield


@pytest.fixture
def cluster(_cluster: None) -> None:
    """An embedded cluster of two slots, shared by the tests of a module."""
