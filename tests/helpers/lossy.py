"""A link that loses, delays and reorders packets, between two network namespaces of its own.

Each end is a TUN device in a namespace that this program makes, and what one sends this program
hands to the other, or not. So it is the kernel's TCP that has to do with the loss, and nobody
outside is touched. It needs root and TUN, and neither netem nor netfilter.

    python -m helpers.lossy SEED LOSS DELAY_S JITTER_S

prints the process ids that hold the two namespaces (for ``nsenter --net=/proc/PID/ns/net``), and,
when its input ends, how many packets it has lost of how many.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import pytest

from helpers.mounts import need_root_and
from helpers.sources import ROOT

NEAR: Final = "10.232.0.1"
FAR: Final = "10.232.0.2"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
_PACKET: Final = 65_536


@dataclass
class Link:
    """A running link, as a test sees it.

    Attributes:
        near: What starts a program at the end with the address `NEAR`.
        far: The same for `FAR`.
    """

    process: subprocess.Popen[str]
    near: tuple[str, ...]
    far: tuple[str, ...]
    _counts: list[int] = field(default_factory=list)

    def counts(self) -> tuple[int, int]:
        """End it; return how many packets it has lost, and how many there were."""
        if not self._counts:
            output, _ = self.process.communicate(timeout=20)
            self._counts = [int(word) for word in output.split()]
        return self._counts[0], self._counts[1]


@contextlib.contextmanager
def lossy_link(seed: int, loss: float, delay_s: float, jitter_s: float) -> Iterator[Link]:
    """Run a link around a block; skips the test where there can be none."""
    need_root_and("ip", "nsenter")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun here")
    arguments = [str(seed), str(loss), str(delay_s), str(jitter_s)]
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.lossy", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])},
    )
    assert process.stdout is not None
    line = process.stdout.readline().split()
    if len(line) != 2:
        process.wait()
        pytest.skip(f"no network namespaces or no TUN here: {' '.join(line)}")
    near, far = (("nsenter", f"--net=/proc/{pid}/ns/net") for pid in line)
    link = Link(process, near, far)
    try:
        yield link
    finally:
        link.counts()


# ── The program ───────────────────────────────────────────────────────────────────────────────


def _hold_end(address: str, control: socket.socket) -> None:
    """Be one end: make namespace and device, hand the device over, and hold the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"tun0", _IFF_TUN_NO_PI))
    for command in (
        f"ip address add {address}/24 dev tun0",
        "ip link set tun0 up",
        "ip link set lo up",
    ):
        subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
    socket.send_fds(control, [b"x"], [device])
    control.recv(1)  # until the forwarder ends


def _start_end(address: str) -> tuple[int, int, socket.socket]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _hold_end(address, theirs)
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    _, found, _, _ = socket.recv_fds(ours, 1, 1)
    if not found:
        raise OSError("an end of the link could not be made")
    return pid, found[0], ours


class Forwarder:
    """Takes packets from each device to the other."""

    def __init__(self, ends: tuple[int, int], random: Random, loss: float) -> None:
        self.seen = self.lost = 0
        self._ends = ends
        self._random = random
        self._loss = loss
        self._late: list[tuple[float, int, int, bytes]] = []

    def run(self, until: int, delay_s: float, jitter_s: float) -> None:
        """Forward until a descriptor can be read."""
        other = {self._ends[0]: self._ends[1], self._ends[1]: self._ends[0]}
        while True:
            rest_s = max(self._late[0][0] - time.monotonic(), 0.0) if self._late else None
            ready, _, _ = select.select([*self._ends, until], [], [], rest_s)
            if until in ready:
                return
            for end in ready:
                packet = os.read(end, _PACKET)
                self.seen += 1
                if self._random.random() < self._loss:
                    self.lost += 1
                    continue
                late_s = delay_s + self._random.uniform(-jitter_s, jitter_s)
                due = time.monotonic() + max(late_s, 0.0)
                heapq.heappush(self._late, (due, self.seen, other[end], packet))
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                _, _, end, packet = heapq.heappop(self._late)
                with contextlib.suppress(OSError):  # a full queue is one more lost packet
                    os.write(end, packet)


def main() -> None:
    """Be the link."""
    seed, loss, delay_s, jitter_s = (float(text) for text in sys.argv[1:])
    try:
        near, far = _start_end(NEAR), _start_end(FAR)
    except OSError as error:
        print("cannot:", error, flush=True)
        return
    print(near[0], far[0], flush=True)
    forwarder = Forwarder((near[1], far[1]), Random(int(seed)), loss)
    forwarder.run(sys.stdin.fileno(), delay_s, jitter_s)
    print(forwarder.lost, forwarder.seen, flush=True)
    for pid, _, control in (near, far):
        os.kill(pid, signal.SIGKILL)  # the namespace goes with it
        os.waitpid(pid, 0)
        control.close()


if __name__ == "__main__":
    main()
