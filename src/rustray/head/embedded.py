"""A head inside the client's process; loads neither gRPC nor cryptography."""

from __future__ import annotations

from rustray.common.errors import ConfigError
from rustray.head.core import VERSION, HeadCore, HeadIdentity, Start
from rustray.head.service import HeadService
from rustray.rpc.api import HeadApi
from rustray.scheduler.state import SchedulerSettings
from rustray.security.roles import SCOPE_CODE, Caller, Role

LOCAL_ADMIN = Caller("user:local-admin", Role.ADMIN, frozenset({SCOPE_CODE}), float("inf"), "local")
"""Who calls inside one process, where there are no tokens."""


def settings_for(max_payload_bytes: int) -> SchedulerSettings:
    """Return the settings of a head inside a program, where no message bounds what may travel.

    Args:
        max_payload_bytes: Arguments of one task at most, also with all that it takes from others.
    """
    return SchedulerSettings(
        first_lease=Start.first().first_lease,
        max_payload_bytes=max_payload_bytes,
        max_joined_bytes=max_payload_bytes,
    )


class EmbeddedHead:
    """A head inside the client's process: no gRPC, no tokens, the same semantics.

    Use on the event loop that runs it.
    """

    def __init__(self, settings: SchedulerSettings | None = None) -> None:
        self._settings = settings or SchedulerSettings(first_lease=Start.first().first_lease)
        self._core: HeadCore | None = None

    async def start(self) -> None:
        """Start on the running event loop."""
        identity = HeadIdentity("embedded", VERSION, "", "in process")
        self._core = HeadCore.create(identity, self._settings)

    def api(self, caller: Caller = LOCAL_ADMIN) -> HeadApi:
        """Return what this caller may do with the head."""
        if self._core is None:
            raise ConfigError("the embedded head has not been started")
        return HeadService(self._core, caller)

    async def close(self) -> None:
        """Stop timers, and let go of all tasks and results.

        A remote function of the program knows its last session, and that the head, for as long as
        the program runs.
        """
        if self._core is not None:
            self._core.close()
            self._core.driver.scheduler.forget()
            self._core.driver.notifications.clear()
