"""Run a head or a worker until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from rustray.cli import exits, flags
from rustray.cli.load import Loaded, Surroundings, load, state_dir
from rustray.cli.output import Output, dumps, write_line
from rustray.common.config import Flag
from rustray.common.errors import ConfigError, HeadUnavailable

if TYPE_CHECKING:
    from rustray.cli.access import Access
    from rustray.head.app import Head
    from rustray.head.config import HeadConfig
    from rustray.rpc.api import HeadApi
    from rustray.worker.agent import WorkerAgent

LOG_LEVEL_ENV: Final = "RUSTRAY_LOG_LEVEL"
LOCAL_HEAD_S: Final = 15.0
"""How long a worker without any address waits for a head to start on this machine."""
_NAMED: Final = 10
HEAD_PAUSE_S: Final = 1.0
GC_THRESHOLDS: Final = (50_000, 20, 20)
"""Our structures form no cycles worth hunting 70 times a second, among objects by the million."""
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


def run(command: str, given: Mapping[str, str]) -> int:
    """Run ``rustray head`` or ``rustray worker`` with parsed flags.

    Raises:
        RustRayError: it could not start, or failed; the message says why.
    """
    around = Surroundings.of_this_process()
    loaded = load(around, path=given.get("--config"), flags=settings_of(command, given))
    for note in loaded.notes:
        Output().note(note)
    _start_log(around)
    gc.set_threshold(*GC_THRESHOLDS)
    asyncio.run(
        _head(given, loaded, around) if command == "head" else _worker(given, loaded, around)
    )
    return exits.OK


def settings_of(command: str, given: Mapping[str, str]) -> dict[str, Flag]:
    """Return ``section.key`` to flag, for the flags that are settings."""
    return {
        flag.setting: Flag(flag.name, given[flag.name])
        for flag in flags.TABLES[command]
        if flag.setting and flag.name in given
    }


async def _head(given: Mapping[str, str], loaded: Loaded, around: Surroundings) -> None:
    from rustray.head.app import announce, run_head
    from rustray.head.config import HeadConfig

    config = HeadConfig.from_config(loaded.config, state_dir(loaded.config, around))
    await run_head(config, _print_head if "--json" in given else announce)


def _print_head(head: Head, config: HeadConfig) -> None:
    shown = {
        "address": head.address,
        "state_dir": str(config.state_dir),
        "security": head.security,
        "pid": os.getpid(),
    }
    write_line(dumps(shown))
    sys.stdout.flush()


async def _worker(given: Mapping[str, str], loaded: Loaded, around: Surroundings) -> None:
    from rustray import __version__
    from rustray.cli.worker_service import server_for
    from rustray.worker import detect
    from rustray.worker.app import run_worker
    from rustray.worker.config import WorkerConfig

    _import_from_here(around)
    try:
        config = WorkerConfig.from_config(
            loaded.config,
            detected_cpus=detect.cpu_cores(),
            detected_memory_mb=detect.memory_mb(),
            detected_gpus=detect.gpus(around.environ),
            default_name=detect.default_name(),
            spool_dir=str(state_dir(loaded.config, around) / "spool"),
            package_dir=str(state_dir(loaded.config, around) / "packages"),
        )
    except ValueError as error:
        raise ConfigError(f"[worker] {error}") from None

    def announce(agent: WorkerAgent) -> None:
        if config.functions and not agent.functions:
            logging.getLogger("rustray.worker").warning(
                "%s registered no function: decorate what clients may call with @rustray.function",
                ", ".join(config.functions),
            )
        tell = _worker_as_json if "--json" in given else _worker_as_text
        write_line(tell(agent, access.address))
        sys.stdout.flush()

    async with _when_there(given, loaded, around) as (head, access):
        await run_worker(
            config,
            head,
            serve=server_for(loaded, around, head),
            head_address=access.address,
            version=__version__,
            on_start=announce,
        )


def _worker_as_text(agent: WorkerAgent, head_address: str) -> str:
    config = agent.config
    where = f", its service at {agent.address}" if agent.address else ""
    names = [info.name for info in agent.functions]
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        where += f"; it offers {', '.join(names[:_NAMED])}{more}"
    return (
        f"worker {agent.worker_id} works for rustray://{head_address} "
        f"({config.cpus:g} cores, {config.memory_mb:g} MB{where})"
    )


def _worker_as_json(agent: WorkerAgent, head_address: str) -> str:
    config = agent.config
    shown = {
        "worker_id": agent.worker_id,
        "name": config.name,
        "head": head_address,
        "address": agent.address or None,
        "cpus": config.cpus,
        "memory_mb": config.memory_mb,
        "functions": [info.name for info in agent.functions],
        "pid": os.getpid(),
    }
    return dumps(shown)


@asynccontextmanager
async def _when_there(
    given: Mapping[str, str], loaded: Loaded, around: Surroundings
) -> AsyncIterator[tuple[HeadApi, Access]]:
    """Connect to the head, which may be about to start: a worker waits for it.

    Raises:
        HeadUnavailable: nothing says where the head is, and none has come up on this machine
            within `LOCAL_HEAD_S`.
    """
    from rustray.cli.access import worker_access
    from rustray.cli.session import connected

    give_up_at = time.monotonic() + LOCAL_HEAD_S
    is_told = is_connected = False
    while True:
        is_known = False
        try:
            access = worker_access(given.get("--head"), given.get("--join"), loaded, around)
            is_known = True
            async with connected(access) as head:
                is_connected = True
                yield head, access
                return
        except HeadUnavailable as error:
            if is_connected or (not is_known and time.monotonic() >= give_up_at):
                raise
            if not is_told:
                logging.getLogger("rustray.worker").warning("%s; waiting for it", error)
                is_told = True
        await asyncio.sleep(HEAD_PAUSE_S)


def _import_from_here(around: Surroundings) -> None:
    # As for `python -m`: the user's modules are found in the directory of the start.
    here = str(around.working_dir)
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _start_log(around: Surroundings) -> None:
    level = around.environ.get(LOG_LEVEL_ENV, "INFO").upper()
    if level not in _LEVELS:
        raise ConfigError(f"{LOG_LEVEL_ENV}={level!r:.40} is none of {', '.join(_LEVELS)}")
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
