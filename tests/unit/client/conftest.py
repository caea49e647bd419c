"""A program's session on a fake head that runs tasks inline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import rustray
from helpers.client_session import attach
from helpers.fake_head import FakeHead
from rustray.client import context
from rustray.client.attachment import Attachment


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    """A fake head that `rustray.init()` connects to, and is connected to."""
    fake = FakeHead()
    monkeypatch.delenv("RUSTRAY_ADDRESS", raising=False)

    def start(address: str | None, **_settings: Any) -> Attachment:
        return attach(fake, address=address or "", slots=2)

    monkeypatch.setattr(context, "start_runtime", start)
    rustray.shutdown()
    rustray.init()
    yield fake
    rustray.shutdown()


@pytest.fixture
def session(head: FakeHead) -> Any:
    """The session of the program."""
    return context.current_session
