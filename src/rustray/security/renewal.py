"""A server that runs longer than its certificate lasts gets a new one in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from rustray.common.errors import RustRayError
from rustray.security.certificates import ServerIdentity
from rustray.security.wall_clock import unix_s

logger = logging.getLogger("rustray.security")

CHECK_S: Final = 3600.0
"""A certificate is looked at so often: a machine may sleep, and a clock may be set."""
DAY_S: Final = 86_400.0
HEAD_BEFORE_S: Final = 30 * DAY_S
"""The head's is renewed so long before its end."""
WORKER_BEFORE_S: Final = 15 * DAY_S
"""A worker's later: one on the head's machine then finds what the head has made."""


async def keep_identity(
    shown: ServerIdentity,
    load: Callable[[float], Awaitable[ServerIdentity]],
    show: Callable[[ServerIdentity], None],
    *,
    before_s: float,
    clock: Callable[[], float] = unix_s,
    check_s: float = CHECK_S,
) -> None:
    """Renew a server's certificate before it ends, for ever; run it as a task.

    Args:
        shown: What the server shows now.
        load: Gives a certificate that is good at a time (unix seconds); a failure is tried again.
        show: Has the server show it to whoever connects from then on.
        before_s: How long before the end to ask for a new one.
        clock: Unix seconds.
        check_s: Seconds between two looks.
    """
    while True:
        await asyncio.sleep(check_s)
        now = clock()
        if now < shown.expires_unix_s - before_s:
            continue
        try:
            found = await load(now)
        except (RustRayError, OSError) as error:
            left = (shown.expires_unix_s - now) / DAY_S
            logger.error("the certificate ends in %.1f days and was not renewed: %s", left, error)
            continue
        if found.certificate_pem != shown.certificate_pem:
            show(found)
            shown = found
            logger.info(
                "renewed the certificate; it lasts %.0f days", (found.expires_unix_s - now) / DAY_S
            )
