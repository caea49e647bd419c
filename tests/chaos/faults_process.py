"""Faults of processes: they die, stand still, come and go."""

from __future__ import annotations

import os
import signal
import time
from random import Random

from chaos.history import HEAD
from chaos.strike import SHORT_S, Strike, hold, length, pick
from chaos.world import RECONNECT_S, Member, World


def kill_head(world: World, random: Random) -> Strike | None:
    """Kill -9 of the head; a new one comes after a pause (F1)."""
    if not world.free(HEAD):
        return None
    world.kill(world.head)
    pause_s = random.choice([0.0, 0.0, 0.5, 2.0])
    return hold(world.head, Strike(f"kill -9 the head, away {pause_s:g} s", pause_s))


def kill_head_in_recovery(world: World, random: Random) -> Strike | None:
    """Kill the head, and the next one while it starts (F1, F2)."""
    if not world.free(HEAD):
        return None
    world.kill(world.head)
    world.launch_head()
    lasts_s = random.uniform(0.2, 1.2)
    return hold(
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
    worker = pick(world, random, "worker")
    if worker is None:
        return None
    world.kill(worker)
    pause_s = random.uniform(0.1, 5.0)
    return hold(worker, Strike(f"kill -9 {worker.label}, back in {pause_s:.1f} s", pause_s))


def kill_worker_and_head(world: World, random: Random) -> Strike | None:
    """Lose a worker and the head together (F1 with F6)."""
    worker = pick(world, random, "worker")
    if worker is None or not world.free(HEAD):
        return None
    order = [worker, world.head]
    random.shuffle(order)
    for member in order:
        world.kill(member)
    return Strike(f"kill -9 {' and '.join(member.slot for member in order)}")


def drain_worker(world: World, random: Random) -> Strike | None:
    """SIGTERM to a worker (P25)."""
    worker = pick(world, random, "worker")
    if worker is None:
        return None
    world.tell_to_end(worker)
    return Strike(f"SIGTERM to {worker.label}")


def freeze_worker(world: World, random: Random) -> Strike | None:
    """SIGSTOP a worker, shorter or longer than its lease (F8, F9)."""
    worker = pick(world, random, "worker")
    return _freeze(world, worker, random) if worker else None


def kill_executor(world: World, random: Random) -> Strike | None:
    """Kill -9 of one executor (F7)."""
    found = _executor(world, random)
    if found is None:
        return None
    worker, pid = found
    os.kill(pid, signal.SIGKILL)
    world.history.write("exec_down", w=worker.label, pid=pid)
    return Strike(f"kill -9 executor {pid} of {worker.label}")


def freeze_executor(world: World, random: Random) -> Strike | None:
    """SIGSTOP of one executor: its tasks take long, and nobody else may run them (F7)."""
    found = _executor(world, random)
    if found is None:
        return None
    worker, pid = found
    os.kill(pid, signal.SIGSTOP)
    lasts_s = length(random)

    def end() -> None:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # it was killed, or its worker was

    return Strike(f"freeze executor {pid} of {worker.label} for {lasts_s:.1f} s", lasts_s, end)


def kill_client(world: World, random: Random) -> Strike | None:
    """Kill -9 of a client or a subscriber (F14)."""
    member = pick(world, random, random.choice(["client", "client", "subscriber"]))
    if member is None:
        return None
    world.kill(member)
    return Strike(f"kill -9 {member.label}")


def freeze_client(world: World, random: Random) -> Strike | None:
    """SIGSTOP of a client or a subscriber (F15)."""
    member = pick(world, random, random.choice(["client", "subscriber"]))
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
    worker = pick(world, random, "worker")
    pids = sorted(worker.node.executor_pids()) if worker and worker.node else []
    return (worker, random.choice(pids)) if worker and pids else None


def _freeze(world: World, member: Member, random: Random) -> Strike:
    lasts_s, begin, label = length(random), time.monotonic(), member.label
    is_whole = random.random() < 0.7
    world.signal_all(member, signal.SIGSTOP, is_whole=is_whole)

    def end() -> None:
        world.signal_all(member, signal.SIGCONT)
        if member.kind in ("worker", HEAD):
            # After a long one its sessions are gone, and it has to knock again.
            tail = RECONNECT_S if lasts_s > SHORT_S[1] else 1.0
            now = time.monotonic()
            world.history.write("window", at=begin, w=label, end=now, tail=tail, frozen=is_whole)

    which = "" if is_whole else " (its executors go on)" if member.kind == "worker" else ""
    return hold(member, Strike(f"freeze {label}{which} for {lasts_s:.1f} s", lasts_s, end))
