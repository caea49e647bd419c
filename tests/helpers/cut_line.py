"""A TCP line to somewhere that can be cut without either end noticing: nothing passes any more."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Final, Self

_PIECE: Final = 64 * 1024
_LOOK_S: Final = 0.02


class CutLine:
    """Passes connections on to a port of this machine, until `cut`; a context manager.

    Attributes:
        port: Where it listens, on loopback.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._is_cut = threading.Event()
        self._is_over = threading.Event()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._thread = threading.Thread(target=self._serve, name="cut-line")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        for sock in (*self._peers, self._listener):
            sock.close()

    def cut(self) -> None:
        """Let nothing pass from now on; connections stay, and new ones are not answered."""
        self._is_cut.set()

    def heal(self) -> None:
        """Let everything pass again, also what was sent meanwhile."""
        self._is_cut.clear()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            if self._is_cut.is_set():
                self._is_over.wait(_LOOK_S)
                continue
            ready, _, _ = select.select([self._listener, *self._peers], [], [], _LOOK_S)
            for sock in ready:
                if sock is self._listener:
                    self._accept()
                elif sock in self._peers:
                    self._pass_on(sock)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target)
        except OSError:  # nobody is there: the caller sees its connection end
            near.close()
            return
        self._peers[near], self._peers[far] = far, near

    def _pass_on(self, sock: socket.socket) -> None:
        peer = self._peers[sock]
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(_PIECE)
            peer.sendall(data)
        if not data:
            for each in (sock, peer):
                del self._peers[each]
                each.close()
