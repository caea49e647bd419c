"""The sessions of workers and clients: open, resumed, lost, drained."""

from __future__ import annotations

from collections.abc import Callable

from rustray.common.errors import (
    CommunicationError,
)
from rustray.head.client_peer import ClientPeer
from rustray.head.driver import HeadDriver
from rustray.head.worker_peer import WorkerPeer


class ConnectionManager:
    """Opens peers, and lets a newer session take the place of an older one."""

    def __init__(self, driver: HeadDriver) -> None:
        self._driver = driver

    def open_worker(self, worker_id: str, session: int) -> WorkerPeer:
        """Open the stream of a registered worker.

        Raises:
            CommunicationError: the session is not the present one; register again.
        """
        if not self._driver.scheduler.knows_session(worker_id, session):
            raise CommunicationError(
                f"session {session} of worker {worker_id} is not known; register again"
            )
        old = self._driver.workers.get(worker_id)
        peer = WorkerPeer(self._driver, worker_id, session)
        self._driver.workers[worker_id] = peer
        self._driver.output.opened(worker_id, peer)
        if isinstance(old, WorkerPeer):
            old.shut("a newer session of this worker took its place", "replaced")
        return peer

    def open_client(
        self,
        prefix: bytes,
        may_send_code: bool,
        may_touch: Callable[[bytes], bool] = lambda _: True,
        principal: str = "",
    ) -> ClientPeer:
        """Open a client's stream, new or resumed.

        Args:
            prefix: Of its task ids.
            may_send_code: Whether its token allows that.
            may_touch: Whether its token may cancel tasks under another prefix.
            principal: Whose bounds its tasks count in.
        """
        peer = ClientPeer(self._driver, prefix, may_send_code, may_touch, principal)
        self.enter_client(peer)
        return peer

    def enter_client(self, peer: ClientPeer) -> None:
        """Have the outcomes of a session go to this peer from now on."""
        old = self._driver.clients.get(peer.prefix)
        self._driver.clients[peer.prefix] = peer
        if isinstance(old, ClientPeer):
            old.shut("a newer stream of this session took its place", "replaced")
