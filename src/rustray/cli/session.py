"""A connection to the head for the length of one command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from rustray.cli.access import Access, Target, client_access
from rustray.cli.load import Surroundings
from rustray.rpc.api import HeadApi

CONNECT_S: Final = 10.0

Opener = Callable[[Target, Surroundings], AbstractAsyncContextManager["HeadSession"]]


@dataclass(frozen=True, slots=True)
class HeadSession:
    """A connected head.

    Attributes:
        api: The head.
        access: How it was reached.
    """

    api: HeadApi
    access: Access


@asynccontextmanager
async def open_head(target: Target, around: Surroundings) -> AsyncIterator[HeadSession]:
    """Connect to the head that the flags, the environment or the state directory name.

    Raises:
        RustRayError: there is none, or it cannot be reached.
    """
    access = client_access(target, around)
    async with connected(access) as api:
        yield HeadSession(api, access)


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[HeadApi]:
    """Connect to a head, and disconnect at the end of the block.

    Raises:
        HeadUnavailable: it does not answer.
    """
    # Imported late: `--help` and a usage error need no gRPC.
    from rustray.rpc.head_client import connect

    client = await connect(
        access.address,
        token_source=access.token_source,
        ca_pem=access.ca_pem,
        insecure=access.is_insecure,
        timeout_s=CONNECT_S,
    )
    try:
        yield client
    finally:
        await client.close()
