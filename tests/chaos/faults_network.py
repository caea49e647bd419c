"""Faults of the networks between the nodes and the head."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from chaos.proxy import DOWN, UP, Proxy
from chaos.strike import Strike, hold, length
from chaos.world import RECONNECT_S, World


def cut(world: World, random: Random) -> Strike | None:
    """Reset a node's connections; new ones are fine, or are refused for a while (F10)."""
    refuse_s = random.choice([0.0, length(random)])

    def strike(proxy: Proxy) -> None:
        proxy.is_refusing = refuse_s > 0
        proxy.cut()

    return _disturb(
        world, random, f"connections reset, refused for {refuse_s:.1f} s", refuse_s, strike
    )


def stall(world: World, random: Random) -> Strike | None:
    """A silent partition, two-way or one-way (F10, F11, F13)."""
    lasts_s = length(random)
    directions = random.choice([(UP, DOWN), (UP,), (DOWN,)])
    what = "two-way" if len(directions) == 2 else f"one-way ({directions[0]})"

    def strike(proxy: Proxy) -> None:
        proxy.stall(*directions)

    return _disturb(world, random, f"silent {what} partition for {lasts_s:.1f} s", lasts_s, strike)


def vanish(world: World, random: Random) -> Strike | None:
    """A silent partition after which the old connections are gone: a peer that vanished (F13)."""
    lasts_s = length(random)

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
        if kind == "worker":
            now, tail = time.monotonic(), 1.0 if is_mild else RECONNECT_S
            world.history.write("window", at=begin, w=label, end=now, tail=tail, mild=is_mild)

    return hold(member, Strike(f"{label}: {what}", lasts_s, end))


def far_link(world: World, random: Random) -> Strike | None:
    """Pull, cut one way, or slow down the link of the far worker (F10, F11, F13, F16)."""
    far = [worker for worker in world.free("worker") if world.spaces.is_far(worker.slot)]
    if not far:
        return None
    worker, begin, label, lasts_s = far[0], time.monotonic(), far[0].label, length(random)
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

    return hold(worker, Strike(f"{label}: link {how} for {lasts_s:.1f} s", lasts_s, end))
