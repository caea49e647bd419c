"""Network and mount namespaces of a run's own, where the system and the user's rights allow it.

The runner starts itself again inside fresh ones, so that every packet of the run, and every mount,
ends with it. Inside, one worker lives in a network namespace of its own, behind a link that can be
pulled, slowed down, or cut in one direction. Elsewhere everything is on loopback, and the faults
that need a namespace are counted as skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

_INSIDE_ENV: Final = "CHAOS_INSIDE"
_HOST: Final = "10.231.0.1"
_FAR: Final = "10.231.0.2"
_SPACE: Final = "far"
SHARED_MEMORY: Final = Path("/dev/shm")
STATE_MB: Final = 400


def missing() -> str:
    """Say why there are no namespaces here, "" if there are."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("unshare", "ip", "tc", "mount"):
        if shutil.which(tool) is None:
            return f"no `{tool}` here"
    probe = (
        "mount -t tmpfs none /run && ip link add near0 type veth peer name far0 && mkdir /run/netns"
    )
    unshared = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c"]
    tried = subprocess.run([*unshared, probe], capture_output=True, text=True, check=False)
    return f"refused here: {tried.stderr.strip()[:120]}" if tried.returncode else ""


def is_inside() -> bool:
    """Whether this process has been started in namespaces of its own."""
    return _INSIDE_ENV in os.environ


def enter(arguments: Sequence[str]) -> NoReturn:
    """Become the same program in fresh namespaces."""
    command = ["unshare", "--net", "--mount", "--propagation", "private"]
    command += [sys.executable, "-m", "chaos", *arguments]
    os.execvpe(command[0], command, {**os.environ, _INSIDE_ENV: "1"})


class Namespaces:
    """What the run has of them.

    Attributes:
        host: Address of head and proxies.
        is_real: Whether there are any.
        has_small_disk: Whether the head's state is on a small file system of its own.
    """

    def __init__(self, *, wants_small_disk: bool) -> None:
        """Set the network up, if this process is in namespaces of its own."""
        self.is_real = is_inside()
        self.host = _HOST if self.is_real else "127.0.0.1"
        self.has_small_disk = False
        self._wants_small_disk = wants_small_disk
        self._state_dir: Path | None = None
        if not self.is_real:
            return
        _run("mount", "-t", "tmpfs", "none", "/run")
        _run("mount", "-t", "tmpfs", "-o", "mode=1777", "none", str(SHARED_MEMORY))
        Path("/run/netns").mkdir()
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "netns", "add", _SPACE)
        _run("ip", "link", "add", "near0", "type", "veth", "peer", "name", "far0", "netns", _SPACE)
        _run("ip", "addr", "add", f"{_HOST}/24", "dev", "near0")
        _run("ip", "link", "set", "near0", "up")
        _far("ip", "link", "set", "lo", "up")
        _far("ip", "addr", "add", f"{_FAR}/24", "dev", "far0")
        _far("ip", "link", "set", "far0", "up")

    def shared_memory(self) -> set[str]:
        """Return what has a name in shared memory: of this run, where it has one of its own."""
        found = {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()
        return found if self.is_real else {name for name in found if "rustray" in name}

    def is_far(self, slot: str) -> bool:
        """Whether a member lives behind the link, and needs no proxy."""
        return self.is_real and slot == "worker-1"

    def through(self, slot: str) -> tuple[str, ...]:
        """Return the command that starts a member where it lives."""
        return ("ip", "netns", "exec", _SPACE) if self.is_far(slot) else ()

    # ---- the link ---------------------------------------------------------------------

    def pull(self) -> None:
        """Take the link down: nothing passes, and nobody is told."""
        _far("ip", "link", "set", "far0", "down")

    def deafen(self, *, is_head_deaf: bool) -> None:
        """Drop what goes in one direction."""
        if is_head_deaf:
            _far("ip", "route", "add", "blackhole", f"{_HOST}/32")
        else:
            _run("ip", "route", "add", "blackhole", f"{_FAR}/32")

    def slow(self, kbit_per_s: int) -> None:
        """Limit what the far side can send."""
        rate = ["rate", f"{kbit_per_s}kbit", "burst", "10kb", "latency", "400ms"]
        _far("tc", "qdisc", "add", "dev", "far0", "root", "tbf", *rate)

    def heal(self) -> None:
        """Make the link good again."""
        if not self.is_real:
            return
        with contextlib.suppress(subprocess.CalledProcessError):
            _far("ip", "route", "del", "blackhole", f"{_HOST}/32")
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "route", "del", "blackhole", f"{_FAR}/32")
        with contextlib.suppress(subprocess.CalledProcessError):
            _far("tc", "qdisc", "del", "dev", "far0", "root")
        _far("ip", "link", "set", "far0", "up")

    # ---- the disk ---------------------------------------------------------------------

    def mount_state(self, folder: Path) -> None:
        """Put the head's state on a small file system of its own, if the run wants that."""
        if not self.is_real or not self._wants_small_disk:
            return
        folder.mkdir(mode=0o700)
        _run("mount", "-t", "tmpfs", "-o", f"size={STATE_MB}m,mode=0700", "none", str(folder))
        self.has_small_disk = True
        self._state_dir = folder

    def fill_disk(self) -> None:
        """Leave no byte free where the head keeps its state."""
        assert self._state_dir is not None
        with contextlib.suppress(OSError), (self._state_dir / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(bytes(64 * 1024))

    def empty_disk(self) -> None:
        """Give the space back."""
        if self._state_dir is not None:
            (self._state_dir / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount; the rest ends with this process."""
        if self._state_dir is not None:
            _run("umount", "--lazy", str(self._state_dir))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _far(*command: str) -> None:
    _run("ip", "netns", "exec", _SPACE, *command)
