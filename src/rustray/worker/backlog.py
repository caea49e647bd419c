"""The worker's queue: lanes of tasks that want the same thing, in order of arrival.

A lane holds the segments of one priority, demand and executor kind, so that "does the
next one fit" is asked once for thousands of tasks, and one that does not fit can be passed.
"""

from __future__ import annotations

from collections import deque

from rustray.worker.records import LaneKey, Lease, Segment, subtract


class Lane:
    """Queued tasks of one key, ordered by arrival.

    Attributes:
        count: Tasks in it.
        blocked_at: Since when its first task has found too few free resources, else None.
    """

    __slots__ = ("blocked_at", "count", "demand", "is_solo", "key", "kind", "rank", "segments")

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.demand = key.demand
        self.kind = key.kind
        self.is_solo = key.is_solo
        # What was handed in by tasks goes before what nobody waits for yet.
        self.rank = (-key.priority, -key.depth)
        self.segments: deque[Segment] = deque()
        self.count = 0
        self.blocked_at: float | None = None

    def order(self) -> tuple[tuple[int, int], int, int]:
        """Return the place of its first task among all lanes: smaller goes first."""
        front = self.segments[0]
        return (self.rank, front.lease.arrival, front.low)

    def insert(self, segment: Segment) -> None:
        """Put a segment to its place by arrival (either end costs O(1))."""
        segments = self.segments
        self.count += segment.high - segment.low
        if not segments or segments[-1].order < segment.order:
            segments.append(segment)
        elif segment.order < segments[0].order:
            segments.appendleft(segment)
        else:
            place = next(i for i, s in enumerate(segments) if segment.order < s.order)
            segments.insert(place, segment)

    def take(self, limit: int) -> tuple[Lease, int, int]:
        """Remove up to ``limit`` tasks of the first segment; the lane must not be empty."""
        front = self.segments[0]
        low = front.low
        high = low + limit
        if high >= front.high:
            high = front.high
            self.segments.popleft()
        else:
            front.low = high
        self.count -= high - low
        return front.lease, low, high


class Backlog:
    """All lanes, empty ones left out."""

    def __init__(self) -> None:
        self.lanes: dict[LaneKey, Lane] = {}

    def __len__(self) -> int:
        return sum(lane.count for lane in self.lanes.values())

    def add(self, lease: Lease, low: int, high: int) -> None:
        """Queue tasks; ones that were queued before get their old place back."""
        key = lease.work.lane_key
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key)
        lane.insert(Segment(lease, low, high))

    def drop_if_empty(self, lane: Lane) -> None:
        """Forget a lane that has nothing left."""
        if not lane.segments:
            self.lanes.pop(lane.key, None)

    def remove(self, lease: Lease, low: int, high: int) -> list[tuple[int, int]]:
        """Take tasks of a lease out of the queue, as far as they are in it.

        Complexity: O(segments of the lane).
        """
        lane = self.lanes.get(lease.work.lane_key)
        if lane is None:
            return []
        removed: list[tuple[int, int]] = []
        kept: deque[Segment] = deque()
        for segment in lane.segments:
            if segment.lease is not lease or segment.high <= low or high <= segment.low:
                kept.append(segment)
                continue
            for a, b, is_hit in subtract(segment.low, segment.high, [(low, high)]):
                if is_hit:
                    removed.append((a, b))
                    lane.count -= b - a
                else:
                    kept.append(Segment(lease, a, b))
        lane.segments = kept
        self.drop_if_empty(lane)
        return removed

    def clear(self) -> list[Segment]:
        """Empty the queue and return what was in it."""
        found = [segment for lane in self.lanes.values() for segment in lane.segments]
        self.lanes.clear()
        return found
