"""Faults of the head's machine: clock, disk, limits; and strangers at its door."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import sqlite3
import ssl
import threading
import time
from random import Random
from typing import Final

import psutil

from chaos.history import HEAD, Reader
from chaos.strike import Strike
from chaos.world import World
from helpers import http2

_HEAD_STOPS_S: Final = 25.0
_CLOCKS_S: Final = 10.0
"""What was refused while the clocks differed may be told so late."""
_STREAM: Final = b"/rustray.v1.HeadService/ClientStream"
_SUBMIT: Final = b"/rustray.v1.HeadService/SubmitTasks"


def jump_clock(world: World, random: Random) -> Strike | None:
    """The wall clock of the head, or of the workers, jumps; leases do not care (F23)."""
    shim = random.choice([world.head_shim, world.worker_shim])
    offset_s = random.choice([-3600, -600, 600, 1800])
    shim.set(clock_offset_s=offset_s)
    who = "the head" if shim is world.head_shim else "the workers"
    lasts_s = random.uniform(1.0, 6.0)
    world.clocks_differ_until = time.monotonic() + lasts_s + _CLOCKS_S
    return Strike(
        f"the clock of {who} jumps by {offset_s} s for {lasts_s:.1f} s",
        lasts_s,
        lambda: shim.set(clock_offset_s=0),
    )


def slow_sync(world: World, random: Random) -> Strike | None:
    """Every sync of the head takes half a second longer (F39)."""
    lasts_s = random.uniform(2.0, 8.0)
    world.head_shim.set(sync_delay_ms=500)
    return Strike(
        f"syncs take 500 ms longer for {lasts_s:.1f} s",
        lasts_s,
        lambda: world.head_shim.set(sync_delay_ms=0),
    )


def fail_sync(world: World, random: Random) -> Strike | None:
    """A sync fails: the head has to stop, without an ack (F19)."""
    del random
    if not world.free(HEAD):
        return None
    world.expected_head_end_until = time.monotonic() + _HEAD_STOPS_S
    world.head_shim.set(sync_errno=errno.EIO)
    reader = Reader(world.history_dir)
    reader.new()
    starts = len(world.head_starts_s)

    def end() -> None:
        until = [*world.head_starts_s, time.monotonic()][starts]
        world.head_shim.set(sync_errno=0)
        # The next head can sync, and may ack; this one could not.
        found = [record for record in reader.new() if record["t"] < until]
        asked = {name for record in found if record["k"] == "submit" for name in record["ids"]}
        acked = {name for record in found if record["k"] == "ack" for name in record["ids"]}
        if asked & acked:
            world.problem(f"the head acked {len(asked & acked)} tasks while every sync failed")

    return Strike("EIO at each sync of the head", 6.0, end)


def fail_writes(world: World, random: Random) -> Strike | None:
    """No room on the head's disk (F18)."""
    if not world.free(HEAD):
        return None
    world.expected_head_end_until = time.monotonic() + _HEAD_STOPS_S
    lasts_s = random.uniform(1.0, 4.0)
    if world.spaces.has_small_disk:
        world.spaces.fill_disk()
        return Strike(
            f"the head's disk is full for {lasts_s:.1f} s", lasts_s, world.spaces.empty_disk
        )
    world.head_shim.set(write_errno=errno.ENOSPC)
    return Strike(
        f"ENOSPC at each write of the head for {lasts_s:.1f} s",
        lasts_s,
        lambda: world.head_shim.set(write_errno=0),
    )


def limit_files(world: World, random: Random) -> Strike | None:
    """The files of the head may not grow: a full disk for those who are not root (F18)."""
    return _limit(world, random, resource.RLIMIT_FSIZE, 8192)


def limit_descriptors(world: World, random: Random) -> Strike | None:
    """The head can open nothing more (F31)."""
    node = world.head.node
    if node is None:
        return None
    try:
        count = psutil.Process(node.pid).num_fds() + 1
    except psutil.Error:
        return None
    return _limit(world, random, resource.RLIMIT_NOFILE, count)


def _limit(world: World, random: Random, what: int, soft: int) -> Strike | None:
    if not world.free(HEAD):
        return None
    node = world.head.node
    assert node is not None
    pid = node.pid
    if pid in world.limited:
        return None  # two of them would take each other's limit for the normal one
    world.limited.add(pid)
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    world.expected_head_end_until = time.monotonic() + _HEAD_STOPS_S
    lasts_s = random.uniform(1.0, 4.0)

    def end() -> None:
        world.limited.discard(pid)
        try:
            resource.prlimit(pid, what, before)
        except ProcessLookupError:
            return  # the head has stopped

    name = "file size" if what == resource.RLIMIT_FSIZE else "descriptors"
    return Strike(f"the head's {name} limited to {soft} for {lasts_s:.1f} s", lasts_s, end)


def lock_journal(world: World, random: Random) -> Strike | None:
    """Somebody else has the journal locked for a while (F34)."""
    path = world.cluster.state_dir / "journal.db"
    if not world.free(HEAD) or not path.exists():
        return None
    lasts_s = random.choice([0.5, 2.0, 3.0])
    try:
        database = sqlite3.connect(path, isolation_level=None, timeout=1, check_same_thread=False)
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.Error:
        return None  # the head has it locked itself, as it may

    ending = threading.Lock()

    def end() -> None:
        # Timer and nemesis come at the same moment, and a connection is for one thread at a time.
        with ending, contextlib.suppress(sqlite3.Error):  # the other one was here before
            database.execute("ROLLBACK")
            database.close()

    # By itself: the runner waits for a head that it starts, and that head for this lock.
    timer = threading.Timer(lasts_s, end)
    timer.daemon = True
    timer.start()
    return Strike(f"a stranger locks the journal for {lasts_s:g} s", lasts_s, end)


def talk_nonsense(world: World, random: Random) -> Strike | None:
    """Peers that do not speak the protocol, with and without TLS (F32)."""
    host, port = world.cluster.host, world.cluster.port
    for number in range(12):
        junk = random.randbytes(random.randint(1, 4000))
        piece = random.choice(
            [
                junk,
                b"\x16\x03\x01" + junk,
                b"GET / HTTP/1.1\r\n\r\n",
                http2.HELLO + junk,
                http2.HELLO + http2.call(b"/rustray.v1.HeadService/ClientStream", junk),
                http2.HELLO
                + http2.call(b"/rustray.v1.HeadService/SubmitTasks", http2.message(junk)),
            ]
        )
        _send(host, port, piece, is_encrypted=number % 2 == 0)
    return Strike("12 peers talk nonsense")


def _send(host: str, port: int, piece: bytes, *, is_encrypted: bool) -> None:
    try:
        with socket.create_connection((host, port), 2) as raw:
            if not is_encrypted:
                raw.sendall(piece)
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(raw) as sealed:
                sealed.sendall(piece)
                sealed.settimeout(0.2)
                sealed.recv(4096)
    except OSError:
        return  # the head hangs up, or is away: both are right
