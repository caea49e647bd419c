"""The frame around every client command: shared flags, connection, output, waiting."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rustray.cli import exits
from rustray.cli.access import Target
from rustray.cli.load import Surroundings
from rustray.cli.output import Output
from rustray.cli.session import HeadSession, Opener, open_head
from rustray.rpc.api import HeadApi

HeadFlag = Annotated[
    str | None,
    typer.Option(
        "--head",
        metavar="ADDRESS",
        help="Where the head is, e.g. rustray://host:8000; RUSTRAY_ADDRESS, else this machine's.",
    ),
]
TokenFileFlag = Annotated[
    str | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File with the access token; RUSTRAY_TOKEN_FILE, RUSTRAY_TOKEN, else this machine's.",
    ),
]
StateDirFlag = Annotated[
    str | None,
    typer.Option("--state-dir", metavar="DIR", help="State directory of the head on this machine."),
]
CaFileFlag = Annotated[
    str | None,
    typer.Option("--ca-file", metavar="FILE", help="The head's CA certificate (its ca.pem)."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


@dataclass(slots=True)
class Call:
    """What a command's body works with.

    Attributes:
        target: Which head, with which token.
        output: Where to say things.
        opener: Connects; tests put a fake here.
    """

    target: Target
    output: Output
    opener: Opener

    @asynccontextmanager
    async def head(self) -> AsyncIterator[HeadApi]:
        """Connect to the head for the length of a block."""
        async with self.session() as session:
            yield session.api

    @asynccontextmanager
    async def session(self) -> AsyncIterator[HeadSession]:
        """Connect, for commands that also need to know how they got there."""
        async with self.opener(self.target, Surroundings.of_this_process()) as session:
            yield session


opener: Opener = open_head
"""How commands connect."""


def client_command(
    app: typer.Typer, name: str, **settings: Any
) -> Callable[[Callable[..., Awaitable[int]]], Callable[..., None]]:
    """Register ``async def body(call, ...) -> exit code`` as a command with the shared flags."""

    def register(body: Callable[..., Awaitable[int]]) -> Callable[..., None]:
        @functools.wraps(body)
        def command(
            *,
            head: str | None,
            token_file: str | None,
            state_dir: str | None,
            ca_file: str | None,
            as_json: bool,
            **own: Any,
        ) -> None:
            call = Call(
                Target(head, token_file, state_dir, ca_file), Output(as_json=as_json), opener
            )
            code = asyncio.run(_run(body(call, **own)))
            if code:
                raise typer.Exit(code)

        shared = {
            "head": (HeadFlag, None),
            "token_file": (TokenFileFlag, None),
            "state_dir": (StateDirFlag, None),
            "ca_file": (CaFileFlag, None),
            "as_json": (JsonFlag, False),
        }
        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        own += [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
            for key, (kind, value) in shared.items()
        ]
        command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in own}
        del command.__wrapped__
        app.command(name, **settings)(command)
        return command

    return register


async def _run(body: Awaitable[int]) -> int:
    return await body or exits.OK
