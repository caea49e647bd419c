"""The agent's end of the zygote: starts the process, talks with it, sees it end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rustray.worker import wire
from rustray.worker.executor_handle import PacketWriter
from rustray.worker.numerics import THREAD_VARIABLES

_MAX_PACKET: Final = 192 * 1024
_CLIENT_MODULE: Final = "rustray.client.nested"
"""By name, for it is no part of the worker."""
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from rustray.worker.zygote import main; main(int(sys.argv[1]))"
)
_POLL_S: Final = 0.002


class ZygoteProcess:
    """One zygote process.

    Attributes:
        is_ready: Whether it has imported the users' modules.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        env: Mapping[str, str] | None,
        start_message: dict[str, Any],
        on_message: Callable[[ZygoteProcess, dict[str, Any]], None],
        on_gone: Callable[[ZygoteProcess], None],
    ) -> None:
        self.is_ready = False
        self._has_client = False
        self._loop = loop
        self._on_message = on_message
        self._on_gone = on_gone
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = _launch(theirs.fileno(), env)
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._sock.setblocking(False)
        self._packets = PacketWriter(loop, self._sock)
        self._loop.add_reader(self._sock, self._on_readable)
        self.send(start_message)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: dict[str, Any]) -> None:
        """Send an order."""
        self._packets.send(wire.to_json(message))

    def preload(self) -> None:
        """Have it import what tasks need that hand in tasks, once for all executors to come."""
        if not self._has_client:
            self._has_client = True
            self.send({"do": "preload", "module": _CLIENT_MODULE})

    def send_packet(self, packet: bytes, fds: list[int]) -> None:
        """Send an encoded order with descriptors, which are closed after that."""
        self._packets.send(packet, fds)

    def _on_readable(self) -> None:
        for _ in range(64):
            try:
                packet = self._sock.recv(_MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.remove_reader(self._sock)
                self._on_gone(self)
                return
            self._on_message(self, wire.from_json(packet))

    async def stop(self, within_s: float) -> None:
        """Have it kill its executors and end; kill it if that takes too long.

        Args:
            within_s: How long to wait, in seconds.
        """
        self._loop.remove_reader(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        deadline = self._loop.time() + within_s
        # There is no event for the end of a process that works on every loop and thread.
        while self._process.poll() is None:
            if self._loop.time() > deadline:
                self._process.kill()
            await asyncio.sleep(_POLL_S)
        self._packets.close()
        self._sock.close()

    def bury(self) -> int:
        """Take the exit status of a zygote that is gone; negative: the signal that killed it."""
        self._packets.close()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._process.kill()  # its end of the channel is closed: whatever it does, it is over
        return self._process.wait()


def default_path() -> list[str]:
    """Return this process's import path with "" as what it stands for."""
    return [entry or os.getcwd() for entry in sys.path]


def _launch(control_fd: int, env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])  # the folder that holds the package
    return subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, "-c", _BOOT, str(control_fd), root],
        env=_environment(os.environ if env is None else env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(control_fd,),
        start_new_session=True,
    )


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    # One task is to use one core: else each of N executors starts N threads of numerics.
    return {**dict.fromkeys(THREAD_VARIABLES, "1"), **env}


def start_message(
    path: Sequence[str],
    modules: Sequence[str],
    max_result_bytes: int,
    object_port: str = "",
    looks: bool = False,
) -> dict[str, Any]:
    """Build the first order to a zygote."""
    return {
        "do": "start",
        "path": list(path),
        "modules": list(modules),
        "max_result_bytes": max_result_bytes,
        "object_port": object_port,
        "looks": looks,
    }
