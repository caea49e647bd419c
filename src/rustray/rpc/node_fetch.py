"""Fetches objects from the nodes that keep them: one channel to each, made when it is needed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from rustray.common.errors import CommunicationError, ConfigError
from rustray.objects.segment import Segment
from rustray.rpc.channel import open_channel, parse_address
from rustray.rpc.grpcio import aio
from rustray.rpc.object_stream import ObjectSource, fetch_object
from rustray.task.place import Place

MAX_CHANNELS: Final = 64
MAX_MESSAGE_BYTES: Final = 4 << 20


class NodeFetcher:
    """See the module; for one event loop."""

    def __init__(self, ca_pem: bytes | None, *, insecure: bool) -> None:
        """Prepare.

        Args:
            ca_pem: The cluster's authority; None for the system's.
            insecure: Plaintext, to this machine only.
        """
        self._ca_pem = ca_pem
        self._insecure = insecure
        self._channels: OrderedDict[tuple[str, str], aio.Channel] = OrderedDict()

    async def fetch(self, place: Place, token: str) -> Segment:
        """Bring an object here.

        Raises:
            ObjectLost: it is not there, or came damaged.
            CommunicationError: there is no way to that node from here.
            AuthenticationError: the token is not good.
            OSError: there is no memory here.
        """
        if not place.address:
            raise CommunicationError(f"worker {place.worker_id} has no service of its own to ask")
        source = ObjectSource(place.object_id, place.size, token)
        return await fetch_object(await self._channel(place), source)

    async def _channel(self, place: Place) -> aio.Channel:
        key = (place.address, place.tls_name)
        found = self._channels.get(key)
        if found is not None:
            self._channels.move_to_end(key)
            return found
        try:
            host, port = parse_address(place.address)
            found = open_channel(
                host,
                port,
                ca_pem=self._ca_pem,
                insecure=self._insecure,
                max_message_bytes=MAX_MESSAGE_BYTES,
                tls_name=place.tls_name,
            )
        except ConfigError as error:
            raise CommunicationError(f"no way to worker {place.worker_id}: {error}") from None
        self._channels[key] = found
        if len(self._channels) > MAX_CHANNELS:
            _, oldest = self._channels.popitem(last=False)
            await oldest.close(None)
        return found

    async def close(self) -> None:
        """Close all channels."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close(None)
