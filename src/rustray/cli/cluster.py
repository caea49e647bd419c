"""``rustray status``, ``rustray workers`` and ``rustray token``."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from rustray.cli import exits
from rustray.cli.call import Call, client_command
from rustray.cli.output import Output, is_terminal, write_line
from rustray.cli.values import parse_address, parse_duration
from rustray.common.errors import UsageProblem
from rustray.security.bind import is_loopback, is_unspecified, join_host_port, split_host_port
from rustray.task.views import ClusterStatus, TokenInfo, WorkerView

ROLES: Final = ("worker", "submit", "observe", "admin")
AUDIENCES: Final = ("head", "worker")
_CLEAR: Final = "\x1b[H\x1b[2J"

workers_app = typer.Typer(help="List and drain workers.", no_args_is_help=True)
token_app = typer.Typer(help="Make and list access tokens.", no_args_is_help=True)


async def status(call: Call) -> int:
    """Show the head, its workers, and how many tasks are in which state."""
    async with call.head() as api:
        found = await api.status()
        workers = await api.list_workers()
    call.output.value(
        status_as_dict(found, workers), lambda out: _render_status(found, workers, out)
    )
    return exits.OK


async def top(
    call: Call,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")
    ] = 2.0,
) -> int:
    """Show `status` again and again, until Ctrl-C; in a pipe or with --json once."""
    is_live = is_terminal(sys.stdout) and not call.output.as_json
    async with call.head() as api:
        while True:
            found, workers = await api.status(), await api.list_workers()
            if not is_live:
                break
            write_line(_CLEAR + f"every {interval:g} s, Ctrl-C ends")
            _render_status(found, workers, call.output)
            sys.stdout.flush()
            await asyncio.sleep(interval)
    call.output.value(
        status_as_dict(found, workers), lambda out: _render_status(found, workers, out)
    )
    return exits.OK


def status_as_dict(found: ClusterStatus, workers: list[WorkerView]) -> dict[str, Any]:
    """Return the cluster as `status --json` shows it."""
    return {
        "head": {
            "cluster_id": found.cluster_id,
            "version": found.version,
            "address": found.address,
            "uptime_s": round(found.uptime_s, 3),
            "security": found.security,
            "durability": found.durability,
            "strategy": found.strategy,
        },
        "workers": [worker_as_dict(worker) for worker in workers],
        "tasks": dict(found.tasks),
        "resources": dict(found.resources),
        "used": dict(found.used),
        "counters": dict(found.counters),
    }


def worker_as_dict(worker: WorkerView) -> dict[str, Any]:
    """Return a worker as `--json` shows it."""
    return {
        "worker_id": worker.worker_id,
        "name": worker.name,
        "address": worker.address,
        "state": worker.state,
        "resources": dict(worker.resources),
        "used": dict(worker.used),
        "labels": dict(worker.labels),
        "functions": list(worker.functions),
        "leased": worker.leased,
        "running": worker.running,
        "finished": worker.finished,
        "last_seen_s": round(worker.last_seen_s, 3),
        "version": worker.version,
        "pid": worker.pid,
    }


def _render_status(found: ClusterStatus, workers: list[WorkerView], output: Output) -> None:
    output.text(
        f"head {found.address}, rustray {found.version}, up {_span(found.uptime_s)} "
        f"({found.security}; durability {found.durability}; strategy {found.strategy})"
    )
    tasks = ", ".join(f"{n:,} {name.lower()}" for name, n in found.tasks.items() if n)
    output.text(f"tasks: {tasks or 'none'}")
    output.text(f"used: {_usage(found.resources, found.used) or 'nothing'}")
    _worker_table(workers, output)


def _worker_table(workers: list[WorkerView], output: Output) -> None:
    if not workers:
        output.text("no workers; start one with: rustray worker")
        return
    output.table(
        ("WORKER", "STATE", "ADDRESS", "USED", "LEASED", "RUNNING", "FINISHED", "SEEN"),
        [
            (
                worker.worker_id,
                worker.state,
                worker.address,
                _usage(worker.resources, worker.used),
                worker.leased,
                worker.running,
                worker.finished,
                f"{worker.last_seen_s:.1f} s ago",
            )
            for worker in workers
        ],
    )


@client_command(workers_app, "list")
async def list_workers(call: Call) -> int:
    """List the workers."""
    async with call.head() as api:
        workers = await api.list_workers()
    call.output.value(
        {"workers": [worker_as_dict(worker) for worker in workers]},
        lambda out: _worker_table(workers, out),
    )
    return exits.OK


@client_command(workers_app, "drain")
async def drain(
    call: Call, worker_id: Annotated[str, typer.Argument(metavar="WORKER", help="Its id.")]
) -> int:
    """Let a worker finish what it runs, give the rest to others, and leave."""
    async with call.head() as api:
        await api.drain_worker(worker_id)
    call.output.value(
        {"worker_id": worker_id, "state": "draining"},
        lambda out: out.text(f"{worker_id} draining"),
    )
    return exits.OK


@client_command(token_app, "create")
async def create_token(
    call: Call,
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help=", ".join(ROLES))],
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl",
            metavar="TIME",
            help="How long it is good: 15m, 8h, 30d. Without it: 15m for worker and admin, "
            "else the head's token_expiration.",
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Allow functions as code, not only registered ones."),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="HOST:PORT", help="Where other machines find the head, for joins."
        ),
    ] = None,
    audience: Annotated[
        str,
        typer.Option(
            "--audience",
            metavar="NODE",
            help="Who takes it: head, or worker (for calls to a worker's own service).",
        ),
    ] = "head",
) -> int:
    """Print a new access token, or for --role worker the string that lets a machine join."""
    if role not in ROLES:
        raise UsageProblem(f"--role {ascii(role)[:40]} is none of {', '.join(ROLES)}")
    if audience not in AUDIENCES:
        raise UsageProblem(f"--audience {ascii(audience)[:40]} is none of {', '.join(AUDIENCES)}")
    ttl_s = 0.0 if ttl is None else parse_duration(ttl, "--ttl")
    reachable = parse_address(address, "--address") if address is not None else None
    async with call.session() as session:
        token = await session.api.create_token(role, ttl_s, allow_code, audience)
        shown: dict[str, Any] = {"role": role, "ttl_s": ttl_s or _life_s(token), "token": token}
        is_join = role == "worker" and audience == "head"
        if is_join:
            listens = (await session.api.status()).address
            reachable = reachable or _address_for_others(listens, session.access.address)
            shown["address"] = reachable
            shown["join"] = _join_string(reachable, session.access.ca_pem, token)
    call.output.value(shown, lambda out: out.text(shown.get("join") or token))
    if is_join and not call.output.as_json:
        _explain_join(str(reachable), call.output)
    return exits.OK


def _life_s(token: str) -> float | None:
    """Return how long a token is good that the head has chosen a time for."""
    from rustray.rpc.tokens import token_life

    life = token_life(token)
    return None if life is None else life[1] - life[0]


@client_command(token_app, "list")
async def list_tokens(call: Call) -> int:
    """Show what is known of the tokens that were made here and can still be good."""
    async with call.head() as api:
        found = await api.list_tokens()
    call.output.value(
        {"tokens": [asdict(token) for token in found]}, lambda out: _render_tokens(found, out)
    )
    return exits.OK


def _render_tokens(found: Sequence[TokenInfo], output: Output) -> None:
    now = time.time()
    rows = [
        (
            token.token_id,
            token.subject,
            token.role,
            token.scopes or "-",
            token.audience,
            token.created_by,
            _span(now - token.issued_unix_s),
            _span(token.expires_unix_s - now) if token.expires_unix_s > now else "ended",
            _span(token.renewable_unix_s - now) if token.renewable_unix_s > now else "no more",
        )
        for token in found
    ]
    output.table(
        (
            "TOKEN",
            "SUBJECT",
            "ROLE",
            "SCOPES",
            "FOR",
            "MADE BY",
            "AGE",
            "GOOD FOR",
            "RENEWABLE",
        ),
        rows,
    )


def _address_for_others(listens: str, used: str) -> str:
    """Choose the address for a join string: the one used, unless only this machine knows it."""
    host, port = split_host_port(listens)
    if not is_loopback(split_host_port(used)[0]):
        return used
    return join_host_port(socket.gethostname(), port) if is_unspecified(host) else listens


def _join_string(address: str, ca_pem: bytes | None, token: str) -> str:
    from rustray.security.join import JoinString

    if ca_pem is None:
        raise UsageProblem(
            "a join string carries the cluster's CA certificate: name it with --ca-file, or run "
            "this on the head's machine"
        )
    return JoinString.from_pem(address, ca_pem, token).encode()


def _explain_join(address: str, output: Output) -> None:
    output.note("on the other machine: rustray worker --join STRING (or --join @FILE)")
    if is_loopback(split_host_port(address)[0]):
        output.note(
            f"note: {address} can be reached from this machine alone; start the head with "
            "--address, or give this command --address HOST:PORT"
        )


def _usage(total: Any, used: Any) -> str:
    return ", ".join(f"{used.get(name, 0):g}/{amount:g} {name}" for name, amount in total.items())


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
