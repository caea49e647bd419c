"""A session on a fake head, for tests of the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.fake_head import FakeHead
from rustray.client import context
from rustray.client.attachment import Attachment


def attach(head: FakeHead, **settings: Any) -> Attachment:
    """Connect a new session to the fake head."""

    async def dial() -> Any:
        return head

    async def hangup() -> None:
        """Nothing to close."""

    return Attachment(dial, hangup, **settings)


def on_loop(call: Callable[[], object]) -> None:
    """Run a plain function on the loop thread of the program's session, and wait for it."""
    runtime: Any = context.current_runtime()

    async def run() -> None:
        call()

    runtime._thread.call(run())
