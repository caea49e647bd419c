"""What the nemesis can do to a run. Each fault picks its victim, strikes, and says how it ends."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import psutil

from chaos.history import HEAD
from chaos.proxy import DOWN, UP, Proxy
from chaos.world import HEARTBEAT_S, LEASE_TTL_S, RECONNECT_S, Member, World
from helpers import http2

_SHORT: Final = (0.2, LEASE_TTL_S - 2 * HEARTBEAT_S - 0.5)
_LONG: Final = (LEASE_TTL_S + 2.0, LEASE_TTL_S + 6.0)
_HEAD_STOPS_S: Final = 25.0


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that has begun.

    Attributes:
        text: What was done to whom, for the timeline.
        lasts_s: Until `end` is to be called.
        end: Takes it back; None where nothing is left to do.
    """

    text: str
    lasts_s: float = 0.0
    end: Callable[[], None] | None = None


Fault = Callable[[World, Random], Strike | None]


def _pick(world: World, random: Random, kind: str) -> Member | None:
    found = world.free(kind)
    return random.choice(found) if found else None


def _length(random: Random, *, may_be_long: bool = True) -> float:
    bounds = _LONG if may_be_long and random.random() < 0.4 else _SHORT
    return random.uniform(*bounds)


def _hold(member: Member, strike: Strike) -> Strike:
    """Keep other faults away from a member until this one has ended."""
    member.busy = True

    def end() -> None:
        member.busy = False
        if strike.end is not None:
            strike.end()

    return Strike(strike.text, strike.lasts_s, end)


# ---- processes ----------------------------------------------------------------------------


def kill_head(world: World, random: Random) -> Strike | None:
    """Kill -9 of the head; a new one comes after a pause (F1)."""
    if not world.free(HEAD):
        return None
    world.kill(world.head)
    pause_s = random.choice([0.0, 0.0, 0.5, 2.0])
    return _hold(world.head, Strike(f"kill -9 the head, away {pause_s:g} s", pause_s))


def kill_head_in_recovery(world: World, random: Random) -> Strike | None:
    """Kill the head, and the next one while it starts (F1, F2)."""
    if not world.free(HEAD):
        return None
    world.kill(world.head)
    world.launch_head()
    lasts_s = random.uniform(0.2, 1.2)
    return _hold(
        world.head,
        Strike(
            f"kill -9 the head, and the next one after {lasts_s:.1f} s",
            lasts_s,
            lambda: world.kill(world.head),
        ),
    )


def stop_head(world: World, random: Random) -> Strike | None:
    """SIGTERM to the head; a new one comes (F1, P25)."""
    del random
    if not world.free(HEAD):
        return None
    world.tell_to_end(world.head)
    world.wait_end(world.head)
    return Strike("SIGTERM to the head")


def freeze_head(world: World, random: Random) -> Strike | None:
    """SIGSTOP the head (F4)."""
    return _freeze(world, world.head, random) if world.free(HEAD) else None


def kill_worker(world: World, random: Random) -> Strike | None:
    """Kill -9 of a worker agent (F6)."""
    worker = _pick(world, random, "worker")
    if worker is None:
        return None
    world.kill(worker)
    pause_s = random.uniform(0.1, 5.0)
    return _hold(worker, Strike(f"kill -9 {worker.label}, back in {pause_s:.1f} s", pause_s))


def kill_worker_and_head(world: World, random: Random) -> Strike | None:
    """Lose a worker and the head together (F1 with F6)."""
    worker = _pick(world, random, "worker")
    if worker is None or not world.free(HEAD):
        return None
    order = [worker, world.head]
    random.shuffle(order)
    for member in order:
        world.kill(member)
    return Strike(f"kill -9 {' and '.join(member.slot for member in order)}")


def drain_worker(world: World, random: Random) -> Strike | None:
    """SIGTERM to a worker (P25)."""
    worker = _pick(world, random, "worker")
    if worker is None:
        return None
    world.tell_to_end(worker)
    return Strike(f"SIGTERM to {worker.label}")


def freeze_worker(world: World, random: Random) -> Strike | None:
    """SIGSTOP a worker, shorter or longer than its lease (F8, F9)."""
    worker = _pick(world, random, "worker")
    return _freeze(world, worker, random) if worker else None


def kill_executor(world: World, random: Random) -> Strike | None:
    """Kill -9 of one executor (F7)."""
    found = _executor(world, random)
    if found is None:
        return None
    worker, pid = found
    world.history.write("exec_down", w=worker.label, pid=pid)
    os.kill(pid, signal.SIGKILL)
    return Strike(f"kill -9 executor {pid} of {worker.label}")


def freeze_executor(world: World, random: Random) -> Strike | None:
    """SIGSTOP of one executor: its tasks take long, and nobody else may run them (F7)."""
    found = _executor(world, random)
    if found is None:
        return None
    worker, pid = found
    os.kill(pid, signal.SIGSTOP)
    lasts_s = _length(random)

    def end() -> None:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # it was killed, or its worker was

    return Strike(f"freeze executor {pid} of {worker.label} for {lasts_s:.1f} s", lasts_s, end)


def kill_client(world: World, random: Random) -> Strike | None:
    """Kill -9 of a client or a subscriber (F14)."""
    member = _pick(world, random, random.choice(["client", "client", "subscriber"]))
    if member is None:
        return None
    world.kill(member)
    return Strike(f"kill -9 {member.label}")


def freeze_client(world: World, random: Random) -> Strike | None:
    """SIGSTOP of a client or a subscriber (F15)."""
    member = _pick(world, random, random.choice(["client", "subscriber"]))
    return _freeze(world, member, random) if member else None


def crowd(world: World, random: Random) -> Strike | None:
    """Workers that join together and leave soon, in order or not (F12, F29)."""
    if any(member.is_passing and member.is_up for member in world.members.values()):
        return None
    count = random.randint(2, 3)
    slots = [f"worker-p{number}" for number in range(count)]
    for slot in slots:
        if slot in world.members:
            world.start(world.members[slot])
        else:
            world.add(slot, is_passing=True)

    def leave() -> None:
        for slot in slots:
            member = world.members[slot]
            if member.is_up and random.random() < 0.5:
                world.kill(member)
            elif member.is_up:
                world.tell_to_end(member)

    return Strike(f"{count} workers join together", random.uniform(3.0, 8.0), leave)


def _executor(world: World, random: Random) -> tuple[Member, int] | None:
    worker = _pick(world, random, "worker")
    pids = sorted(worker.node.executor_pids()) if worker and worker.node else []
    return (worker, random.choice(pids)) if worker and pids else None


def _freeze(world: World, member: Member, random: Random) -> Strike:
    lasts_s, begin, label = _length(random), time.monotonic(), member.label
    is_whole = random.random() < 0.7
    world.signal_all(member, signal.SIGSTOP, is_whole=is_whole)

    def end() -> None:
        world.signal_all(member, signal.SIGCONT)
        if member.kind == "worker":
            # After a long one its sessions are gone, and it has to knock again.
            tail = RECONNECT_S if lasts_s > _SHORT[1] else 1.0
            world.history.write("window", at=begin, w=label, end=time.monotonic(), tail=tail)

    which = "" if is_whole else " (its executors go on)" if member.kind == "worker" else ""
    return _hold(member, Strike(f"freeze {label}{which} for {lasts_s:.1f} s", lasts_s, end))


# ---- networks -----------------------------------------------------------------------------


def cut(world: World, random: Random) -> Strike | None:
    """Reset a node's connections; new ones are fine, or are refused for a while (F10)."""
    refuse_s = random.choice([0.0, _length(random)])

    def strike(proxy: Proxy) -> None:
        proxy.is_refusing = refuse_s > 0
        proxy.cut()

    return _disturb(
        world, random, f"connections reset, refused for {refuse_s:.1f} s", refuse_s, strike
    )


def stall(world: World, random: Random) -> Strike | None:
    """A silent partition, two-way or one-way (F10, F11, F13)."""
    lasts_s = _length(random)
    directions = random.choice([(UP, DOWN), (UP,), (DOWN,)])
    what = "two-way" if len(directions) == 2 else f"one-way ({directions[0]})"

    def strike(proxy: Proxy) -> None:
        proxy.stall(*directions)

    return _disturb(world, random, f"silent {what} partition for {lasts_s:.1f} s", lasts_s, strike)


def vanish(world: World, random: Random) -> Strike | None:
    """A silent partition after which the old connections are gone: a peer that vanished (F13)."""
    lasts_s = _length(random)

    def strike(proxy: Proxy) -> None:
        proxy.stall(UP, DOWN)

    return _disturb(
        world, random, f"vanished for {lasts_s:.1f} s", lasts_s, strike, after=Proxy.cut
    )


def delay(world: World, random: Random) -> Strike | None:
    """Latency with jitter; no lease may be lost by it (F17)."""
    lasts_s = random.uniform(2.0, 8.0)

    def strike(proxy: Proxy) -> None:
        proxy.delay_s = 0.5

    return _disturb(world, random, f"latency for {lasts_s:.1f} s", lasts_s, strike, is_mild=True)


def throttle(world: World, random: Random) -> Strike | None:
    """A slow link (F15, F16)."""
    lasts_s = random.uniform(2.0, 6.0)

    def strike(proxy: Proxy) -> None:
        proxy.bytes_per_s = 20_000

    return _disturb(world, random, f"20 kB/s for {lasts_s:.1f} s", lasts_s, strike)


def flap(world: World, random: Random) -> Strike | None:
    """All workers behind proxies lose their connections, several times in a row (F12)."""
    workers = [worker for worker in world.free("worker") if worker.proxy]
    if not workers:
        return None
    begin, times = time.monotonic(), random.randint(2, 4)
    labels = [(worker, worker.label) for worker in workers]

    def cut_all() -> None:
        for worker, _ in labels:
            if worker.proxy:
                world.network.do(worker.proxy.cut)

    def end() -> None:
        cut_all()
        for worker, label in labels:
            worker.busy = False
            world.history.write("window", at=begin, w=label, end=time.monotonic(), tail=RECONNECT_S)

    for worker, _ in labels:
        worker.busy = True
    for _ in range(times):
        cut_all()
    return Strike(f"flapping links of {len(workers)} workers", random.uniform(0.5, 1.5), end)


def _disturb(
    world: World,
    random: Random,
    what: str,
    lasts_s: float,
    strike: Callable[[Proxy], None],
    *,
    after: Callable[[Proxy], None] | None = None,
    is_mild: bool = False,
) -> Strike | None:
    kind = random.choice(["worker", "worker", "client", "subscriber"])
    found = [member for member in world.free(kind) if member.proxy]
    if not found:
        return None
    member = random.choice(found)
    proxy, begin, label = member.proxy, time.monotonic(), member.label
    assert proxy is not None
    world.network.do(lambda: strike(proxy))

    def end() -> None:
        world.network.do(proxy.heal)
        if after is not None:
            world.network.do(lambda: after(proxy))
        if kind == "worker" and not is_mild:
            world.history.write("window", at=begin, w=label, end=time.monotonic(), tail=RECONNECT_S)

    return _hold(member, Strike(f"{label}: {what}", lasts_s, end))


def far_link(world: World, random: Random) -> Strike | None:
    """Pull, cut one way, or slow down the link of the far worker (F10, F11, F13, F16)."""
    far = [worker for worker in world.free("worker") if world.spaces.is_far(worker.slot)]
    if not far:
        return None
    worker, begin, label, lasts_s = far[0], time.monotonic(), far[0].label, _length(random)
    how = random.choice(["pulled", "head deaf", "worker deaf", "100 kbit/s"])
    if how == "pulled":
        world.spaces.pull()
    elif how == "100 kbit/s":
        world.spaces.slow(100)
    else:
        world.spaces.deafen(is_head_deaf=how == "head deaf")

    def end() -> None:
        world.spaces.heal()
        # TCP tries again with longer and longer pauses, so it takes a while after a long one.
        tail = RECONNECT_S + lasts_s
        world.history.write("window", at=begin, w=label, end=time.monotonic(), tail=tail)

    return _hold(worker, Strike(f"{label}: link {how} for {lasts_s:.1f} s", lasts_s, end))


# ---- the head's machine -------------------------------------------------------------------


def jump_clock(world: World, random: Random) -> Strike | None:
    """The wall clock of the head, or of the workers, jumps; leases do not care (F23)."""
    shim = random.choice([world.head_shim, world.worker_shim])
    offset_s = random.choice([-3600, -600, 600, 1800])
    shim.set(clock_offset_s=offset_s)
    who = "the head" if shim is world.head_shim else "the workers"
    lasts_s = random.uniform(1.0, 6.0)
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
    node = world.head.node

    def end() -> None:
        world.head_shim.set(sync_errno=0)
        if world.head.node is node and not world.head.busy and world.head.is_up:
            world.problem("the head goes on though its disk refuses every sync")

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
    return _limit(world, random, resource.RLIMIT_FSIZE, 8192, may_stop=True)


def limit_descriptors(world: World, random: Random) -> Strike | None:
    """The head can open nothing more (F31)."""
    node = world.head.node
    if node is None:
        return None
    try:
        count = psutil.Process(node.pid).num_fds() + 1
    except psutil.Error:
        return None
    return _limit(world, random, resource.RLIMIT_NOFILE, count, may_stop=True)


def _limit(world: World, random: Random, what: int, soft: int, *, may_stop: bool) -> Strike | None:
    if not world.free(HEAD):
        return None
    node = world.head.node
    assert node is not None
    pid = node.pid
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    if may_stop:
        world.expected_head_end_until = time.monotonic() + _HEAD_STOPS_S
    lasts_s = random.uniform(1.0, 4.0)

    def end() -> None:
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

    def end() -> None:
        database.execute("ROLLBACK")
        database.close()

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


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault in the nemesis' mix.

    Attributes:
        fault: What it does.
        weight: How often it comes.
        needs: "", "shim", "namespace", or "no shim": where it can be had.
    """

    fault: Fault
    weight: int
    needs: str = ""

    @property
    def name(self) -> str:
        """Its name in timeline and figures."""
        return str(getattr(self.fault, "__name__", self.fault))


MIX: Final = (
    Kind(kill_head, 6),
    Kind(kill_head_in_recovery, 2),
    Kind(stop_head, 2),
    Kind(freeze_head, 3),
    Kind(kill_worker, 6),
    Kind(kill_worker_and_head, 2),
    Kind(drain_worker, 3),
    Kind(freeze_worker, 6),
    Kind(kill_executor, 8),
    Kind(freeze_executor, 3),
    Kind(kill_client, 4),
    Kind(freeze_client, 2),
    Kind(crowd, 2),
    Kind(cut, 4),
    Kind(stall, 5),
    Kind(vanish, 3),
    Kind(delay, 3),
    Kind(throttle, 2),
    Kind(flap, 2),
    Kind(far_link, 5, "namespace"),
    Kind(jump_clock, 3, "shim"),
    Kind(slow_sync, 3, "shim"),
    Kind(fail_sync, 2, "shim"),
    Kind(fail_writes, 2, "shim"),
    Kind(limit_files, 2, "no shim"),
    Kind(limit_descriptors, 2),
    Kind(lock_journal, 2),
    Kind(talk_nonsense, 3),
)
BY_NAME: Final = {kind.name: kind for kind in MIX}
