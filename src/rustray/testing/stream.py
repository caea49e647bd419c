"""A stream of frames between two simulated processes, as gRPC's: open, half open, reset, closed."""

from __future__ import annotations

from typing import Any, Final

from rustray.common.errors import CommunicationError
from rustray.rpc.api import FramePump
from rustray.testing.clock import ProcessLoop
from rustray.testing.network import Network

KEEPALIVE_S: Final = 5.0
"""How long the ends of a stream need to notice that it is broken."""


class End:
    """One end of a stream: the link under a pump (`rustray.rpc.api.Link`)."""

    def __init__(self, stream: Stream, place: str, loop: ProcessLoop, pump: FramePump) -> None:
        self.stream, self.place, self.loop, self.pump = stream, place, loop, pump
        self.is_closed = False
        self._is_turning = False

    def wake(self) -> None:
        """Send what waits, in the next turn."""
        if not self._is_turning and not self.is_closed:
            self._is_turning = True
            self.loop.call_soon(self._turn)

    wake_now = wake

    def _turn(self) -> None:
        self._is_turning = False
        while not self.is_closed and (frame := self.pump.next_frame()) is not None:
            self.stream.send(self.place, frame)

    async def close(self) -> None:
        """End the stream in order; the other end learns of it if the network lets it."""
        self.hang_up()

    def hang_up(self) -> None:
        """See `close`."""
        if not self.is_closed:
            self.end(None)
            self.stream.tell_end(self.place, is_orderly=True)

    def end(self, error: CommunicationError | None) -> None:
        """This end is over."""
        if not self.is_closed:
            self.is_closed = True
            self.pump.on_closed(error)


class Stream:
    """Two ends, of which the second comes when the request to open it has arrived.

    Attributes:
        ends: Place to its end.
    """

    def __init__(self, network: Network, opener: str, other: str, *, breaks: bool) -> None:
        """Make a stream without ends.

        Args:
            network: Carries its frames.
            opener: Who opens it.
            other: The other side.
            breaks: Whether the loss of a frame breaks the stream, as over TCP. Without that a
                lost frame is lost in silence, which is worse than what a real stream does; but
                one without a number, which nobody would miss, breaks the stream all the same.
                That the stream ends is never lost.
        """
        self.ends: dict[str, End] = {}
        self._network = network
        self._opposite = {opener: other, other: opener}
        self._breaks = breaks

    def join(self, place: str, loop: ProcessLoop, pump: FramePump) -> End:
        """Add an end."""
        end = self.ends[place] = End(self, place, loop, pump)
        return end

    def send(self, place: str, frame: Any) -> None:
        """Carry a frame to the other end."""
        other = self._opposite[place]
        is_missed = self._breaks or not frame.number
        on_loss = self._break if is_missed else None
        self._network.carry(place, other, self._arrive, other, frame, on_loss=on_loss)

    def _break(self) -> None:
        for end in self.ends.values():
            end.loop.call_later(KEEPALIVE_S, end.end, CommunicationError("the stream broke"))

    def _arrive(self, place: str, frame: Any) -> None:
        end = self.ends.get(place)
        if end is not None and not end.is_closed and not end.loop.is_dead:
            end.pump.on_frame(frame)
        else:
            self.tell_end(place, is_orderly=False)

    def tell_end(self, place: str, *, is_orderly: bool) -> None:
        """Tell the other side that the stream is over at this one."""
        other = self._opposite[place]
        error = None if is_orderly else CommunicationError("the stream was reset")
        self._network.insist(place, other, self._lose, other, error)

    def _lose(self, place: str, error: CommunicationError | None) -> None:
        end = self.ends.get(place)
        if end is not None and not end.loop.is_dead:
            end.end(error)

    def die_at(self, place: str) -> None:
        """The process at one end is gone; its system tells the other side."""
        end = self.ends.get(place)
        if end is not None and not end.is_closed:
            end.is_closed = True
            self.tell_end(place, is_orderly=False)
