"""The flags of the two long-lived commands, as data.

``rustray head`` and ``rustray worker`` stay in memory for months, so they start without the
command line framework: `parse` reads a well-formed line. Anything else (``--help``, a
mistake) goes to the framework, whose commands are made from the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ServeFlag:
    """One flag.

    Attributes:
        name: ``--port``.
        help: For ``--help``.
        setting: The ``section.key`` that it sets, or "" if it is no setting.
        metavar: What stands for the value in ``--help``; "" for a switch.
        switch_value: Text that a switch gives its setting.
        is_repeated: Whether each use adds to the ones before.
    """

    name: str
    help: str
    setting: str = ""
    metavar: str = "TEXT"
    switch_value: str = ""
    is_repeated: bool = False


_CONFIG: Final = ServeFlag("--config", "Configuration file (TOML).", metavar="FILE")
_STATE_DIR: Final = ServeFlag(
    "--state-dir", "Directory for keys, tokens and state.", "node.state_dir", "DIR"
)

_JSON: Final = ServeFlag(
    "--json", "Print one JSON value once it is ready.", metavar="", switch_value="true"
)

HEAD_FLAGS: Final = (
    ServeFlag("--address", "Address to listen on.", "node.address", "ADDRESS"),
    ServeFlag("--port", "TCP port; 0 lets the system choose.", "node.head_port", "PORT"),
    _STATE_DIR,
    _CONFIG,
    ServeFlag("--strategy", "Which worker gets a task.", "scheduler.strategy", "NAME"),
    ServeFlag("--durability", "full, process or memory.", "scheduler.durability", "LEVEL"),
    ServeFlag("--no-tls", "Do not encrypt; loopback only.", "security.tls", "", "false"),
    ServeFlag("--no-auth", "Demand no tokens; loopback only.", "security.auth", "", "false"),
    _JSON,
)

WORKER_FLAGS: Final = (
    ServeFlag("--head", "Where the head is: rustray://HOST:PORT.", metavar="ADDRESS"),
    ServeFlag("--join", "Join string of `rustray token create`, or @FILE.", metavar="STRING"),
    ServeFlag("--address", "Address that its service listens on.", "node.address", "ADDRESS"),
    ServeFlag("--port", "TCP port of its service; 0: any.", "node.worker_port", "PORT"),
    ServeFlag("--cpus", "Cores to offer; detected by default.", "worker.cpus", "N"),
    ServeFlag("--memory-mb", "Megabytes to offer; detected.", "worker.memory_mb", "MB"),
    ServeFlag("--gpus", "GPUs to offer; detected by default.", "worker.gpus", "N"),
    ServeFlag(
        "--functions",
        "Modules whose registered functions it offers.",
        "worker.functions",
        "MODULE[,MODULE]",
        is_repeated=True,
    ),
    ServeFlag("--name", "What people call it; the host's name.", "worker.name", "NAME"),
    ServeFlag("--label", "A label that tasks can ask for.", "worker.labels", "K=V", "", True),
    ServeFlag("--resource", "A resource to offer.", "worker.resources", "K=V", "", True),
    ServeFlag(
        "--drain-timeout",
        "Seconds for running tasks when it is told to stop.",
        "worker.drain_timeout_s",
        "SECONDS",
    ),
    _STATE_DIR,
    _CONFIG,
    _JSON,
)

TABLES: Final[Mapping[str, tuple[ServeFlag, ...]]] = {"head": HEAD_FLAGS, "worker": WORKER_FLAGS}


def parse(command: str, argv: Sequence[str]) -> dict[str, str] | None:
    """Read the flags after ``rustray head`` or ``rustray worker``.

    Returns:
        Flag name to text (repeated ones joined by commas), or None if the line is not
        plainly well-formed: the caller then lets the framework explain.
    """
    known = {flag.name: flag for flag in TABLES[command]}
    found: dict[str, str] = {}
    rest = list(argv)
    while rest:
        name, sign, value = rest.pop(0).partition("=")
        flag = known.get(name)
        if flag is None or (sign and not flag.metavar):
            return None
        if not flag.metavar:
            value = flag.switch_value
        elif not sign:
            if not rest or rest[0].startswith("--"):
                return None
            value = rest.pop(0)
        found[name] = f"{found[name]},{value}" if flag.is_repeated and name in found else value
    return found
