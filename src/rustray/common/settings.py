"""The settings that exist, as frozen dataclasses whose fields carry their own rules.

Default, range and explanation of a setting stand in one place: `common.config` resolves
them, ``rustray config show`` prints them. Units are in the names: ``_s`` seconds, ``_mb``
megabytes (10**6 bytes), ``_bytes`` bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rustray.common.durability import DURABILITIES

STRATEGIES: Final = (
    "LeastLoaded",
    "RoundRobin",
    "Random",
    "WeightedRoundRobin",
    "PowerOfTwoChoices",
    "BinPack",
    "Spread",
    "LocalityAware",
)
MIN_SECRET_BYTES: Final = 32
MAX_TEXT: Final = 4096
_TEN_YEARS_S: Final = 10 * 365 * 86_400
_INT = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a value; reads on after the setting's name."""

    text: str


@dataclass(frozen=True, slots=True)
class SettingRule:
    """What one setting accepts.

    Attributes:
        kind: "text", "whole", "number", "switch", "names" (list of text), "amounts"
            (name to number) or "labels" (name to text).
        doc: One sentence for people, with the unit.
        low: Least number allowed.
        high: Greatest number allowed.
        choices: The only texts allowed; () for any.
        is_secret: Never shown.
    """

    kind: str
    doc: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    is_secret: bool = False

    def allowed(self) -> str:
        """Say what is accepted."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind in ("whole", "number"):
            noun = "a whole number" if self.kind == "whole" else "a number"
            return f"{noun} from {_shown_number(self.low)} to {_shown_number(self.high)}"
        return _ALLOWED[self.kind] if not self.is_secret else _ALLOWED["secret"]

    def parse(self, text: str) -> Any:
        """Turn a text from the environment or a flag into a value.

        Returns:
            The value, or a `Problem`.
        """
        stripped = text.strip()
        if self.kind == "whole" and _INT.fullmatch(stripped):
            return self.check(int(stripped))
        if self.kind == "number" and _FLOAT.fullmatch(stripped):
            return self.check(int(stripped) if _INT.fullmatch(stripped) else float(stripped))
        if self.kind == "switch" and stripped.lower() in _TRUE | _FALSE:
            return stripped.lower() in _TRUE
        if self.kind == "text":
            return self.check(text)
        if self.kind == "names":
            return self.check([part.strip() for part in text.split(",")])
        if self.kind in ("amounts", "labels"):
            return self._parse_pairs(text)
        return Problem(f"is {self._quoted(text)}")

    def check(self, value: Any) -> Any:
        """Check a value that has a type already, as TOML gives it.

        Returns:
            The value as the settings hold it, or a `Problem`.
        """
        return getattr(self, f"_check_{self.kind}")(value)

    def _check_whole(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return Problem(f"is {_type_name(value)} {self._quoted(value)}, not a whole number")
        return self._in_range(value)

    def _check_number(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Problem(f"is {_type_name(value)} {self._quoted(value)}, not a number")
        if not math.isfinite(value):
            return Problem(f"is {value}, not a finite number")
        return self._in_range(value)

    def _in_range(self, value: float) -> Any:
        if not self.low <= value <= self.high:
            return Problem(f"is {self._quoted(value)}, which is out of range")
        return value

    def _check_switch(self, value: Any) -> Any:
        if not isinstance(value, bool):
            return Problem(f"is {_type_name(value)} {self._quoted(value)}, not true or false")
        return value

    def _check_text(self, value: Any) -> Any:
        if not isinstance(value, str):
            return Problem(f"is {_type_name(value)} {self._quoted(value)}, not text")
        if self.choices:
            return value if value in self.choices else self._no_choice(value)
        if not value:
            return Problem("is empty; leave it out to use the default")
        if len(value) > MAX_TEXT or not value.isprintable():
            return Problem(f"is {self._quoted(value)}: too long, or not printable")
        return secret_problem(value) or value if self.is_secret else value

    def _check_names(self, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(
            isinstance(name, str) and name and name.isprintable() for name in value
        ):
            return Problem(f"is {self._quoted(value)}")
        return tuple(value)

    def _check_amounts(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return Problem(f"is {_type_name(value)} {self._quoted(value)}, not a table of amounts")
        for name, amount in value.items():
            bad = isinstance(amount, bool) or not isinstance(amount, int | float)
            if bad or not math.isfinite(amount) or amount < 0 or not _is_name(name):
                return Problem(f"has {self._quoted(f'{name}={amount}')}")
        return dict(value)

    def _check_labels(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return Problem(f"is {_type_name(value)} {self._quoted(value)}, not a table of texts")
        for name, text in value.items():
            if not isinstance(text, str) or not _is_name(name) or not (text + "x").isprintable():
                return Problem(f"has {self._quoted(f'{name}={text}')}")
        return dict(value)

    def _parse_pairs(self, text: str) -> Any:
        pairs: dict[str, Any] = {}
        for part in text.split(","):
            name, sign, value = part.strip().partition("=")
            if not sign or name in pairs:
                return Problem(f"has {self._quoted(part)}")
            if self.kind == "amounts":
                if not _FLOAT.fullmatch(value):
                    return Problem(f"has {self._quoted(part)}")
                pairs[name] = int(value) if _INT.fullmatch(value) else float(value)
            else:
                pairs[name] = value
        return self.check(pairs)

    def _no_choice(self, value: str) -> Problem:
        for choice in self.choices:
            if choice.lower() == value.lower().replace("_", "").replace("-", ""):
                return Problem(f"is {self._quoted(value)}; did you mean {choice!r}?")
        return Problem(f"is {self._quoted(value)}")

    def _quoted(self, value: Any) -> str:
        if self.is_secret:
            return "(not shown)"
        return ascii(value)[:80]


def secret_problem(secret: str) -> Problem | None:
    """Say why a shared secret cannot be one, or None; never repeats it.

    `rustray.security.secret_strength` judges further.
    """
    size = len(secret.encode("utf-8", "surrogateescape"))
    if size < MIN_SECRET_BYTES:
        return Problem(f"has {size} bytes, which can be guessed; {MIN_SECRET_BYTES} are needed")
    return None


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 128 and name.isprintable()


def _type_name(value: Any) -> str:
    names = {str: "the text", bool: "the switch", int: "the number", float: "the number",
             list: "the list", dict: "the table"}  # fmt: skip
    return names.get(type(value), f"the {type(value).__name__}")


def _shown_number(number: float) -> str:
    return f"{number:g}" if abs(number) >= 1e15 or number != int(number) else f"{int(number)}"


_ALLOWED: Final = {
    "text": "text, not empty, in quotes",
    "secret": f"random text of {MIN_SECRET_BYTES} bytes or more, e.g. from `openssl rand -hex 32`",
    "switch": "true or false",
    "names": 'a list of names, e.g. ["mypackage.tasks"]; in the environment a,b',
    "amounts": "a table of amounts of at least 0, e.g. {licences = 2}; in the environment K=V,K=V",
    "labels": 'a table of texts, e.g. {zone = "a"}; in the environment K=V,K=V',
}


def _setting(default: Any, kind: str, doc: str, **rule: Any) -> Any:
    metadata = {"rule": SettingRule(kind, doc, **rule)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def _port(default: int, doc: str) -> Any:
    return _setting(default, "whole", doc, low=0, high=65_535)


def _seconds(default: float, doc: str, low: float = 0.01) -> Any:
    return _setting(default, "number", doc, low=low, high=_TEN_YEARS_S)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """[node]: where a head or worker listens and keeps its files."""

    address: str = _setting("127.0.0.1", "text", "Address to listen on; loopback by default.")
    head_port: int = _port(8000, "TCP port of the head; 0 lets the system choose.")
    worker_port: int = _port(8001, "TCP port of a worker's service; 0 lets the system choose.")
    state_dir: str | None = _setting(
        None, "text", "Directory for keys, tokens and state; the user's own by default."
    )


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """[security]: who may do what."""

    tls: bool = _setting(True, "switch", "Encrypt every connection.")
    auth: bool = _setting(True, "switch", "Demand a token for every call.")
    jwt_secret: str | None = _setting(
        None,
        "text",
        "Shared secret of the simple mode (HS256); without it the head makes its own keys.",
        is_secret=True,
    )
    token_expiration: int = _setting(
        3600,
        "whole",
        "Lifetime of access tokens in seconds, where none is asked for.",
        low=60,
        high=86_400 * 30,
    )


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """[scheduler]: how tasks are placed, retried, limited and kept."""

    strategy: str = _setting("LeastLoaded", "text", "Which worker gets a task.", choices=STRATEGIES)
    max_retries: int = _setting(
        3,
        "whole",
        "Re-runs of a task whose worker was lost, where the task says nothing; -1: no limit.",
        low=-1,
        high=1_000_000,
    )
    lease_ttl_s: float = _seconds(
        10.0,
        "Seconds without a heartbeat after which a worker's tasks go to others.",
        0.1,
    )
    heartbeat_interval_s: float = _seconds(2.0, "Seconds between two heartbeats of a worker.", 0.05)
    result_ttl_s: float = _seconds(86_400.0, "Seconds that a result is kept for its client.", 1)
    stream_ttl_s: float = _seconds(
        60.0, "Seconds that a generator task goes on while nobody reads its items.", 1
    )
    result_memory_mb: int = _setting(
        512,
        "whole",
        "Megabytes of kept results; the oldest go first.",
        low=1,
        high=16_000_000,
    )
    result_disk_mb: int = _setting(
        10_000,
        "whole",
        "Megabytes of kept results above 256 KiB, which are files in the state directory.",
        low=1,
        high=16_000_000,
    )
    disk_reserve_mb: int = _setting(
        256,
        "whole",
        "Megabytes that stay free on the state directory's disk: with less, no new tasks; 0: any.",
        low=0,
        high=16_000_000,
    )
    dead_letter_memory_mb: int = _setting(
        256,
        "whole",
        "Megabytes of kept dead letters (tasks that ended badly, with arguments and error); the "
        "oldest go first.",
        low=1,
        high=16_000_000,
    )
    durability: str = _setting(
        "full",
        "text",
        "What an accepted task survives: full (power cuts), process (kill -9), memory (nothing).",
        choices=DURABILITIES,
    )
    max_pending_tasks: int = _setting(
        10_000_000,
        "whole",
        "Unfinished tasks that the head accepts at a time.",
        low=1,
        high=1_000_000_000,
    )
    max_pending_mb: int = _setting(
        8_192,
        "whole",
        "Megabytes of arguments of unfinished tasks.",
        low=1,
        high=16_000_000,
    )
    principal_pending_tasks: int = _setting(
        5_000_000,
        "whole",
        "Unfinished tasks of one principal (the subject of a token).",
        low=1,
        high=1_000_000_000,
    )
    principal_pending_mb: int = _setting(
        4_096,
        "whole",
        "Megabytes of arguments of unfinished tasks of one principal.",
        low=1,
        high=16_000_000,
    )
    max_task_depth: int = _setting(
        256,
        "whole",
        "How deep tasks may stand that tasks hand in; 0: tasks hand in none.",
        low=0,
        high=1_000,
    )
    max_payload_bytes: int = _setting(
        16 << 20,
        "whole",
        "Bytes of one task's arguments or result.",
        low=1024,
        high=1 << 30,
    )


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """[worker]: what a worker offers."""

    cpus: float | None = _setting(
        None, "number", "Cores to offer; detected by default.", low=0.01, high=65_536
    )
    memory_mb: float | None = _setting(
        None, "number", "Megabytes to offer; detected by default.", low=1, high=1e9
    )
    gpus: float | None = _setting(
        None, "number", "GPUs to offer; detected by default.", low=0, high=4_096
    )
    functions: tuple[str, ...] = _setting(
        (), "names", "Modules whose registered functions it offers."
    )
    name: str | None = _setting(None, "text", "What people call it; the host's name by default.")
    labels: Mapping[str, str] = _setting({}, "labels", "Labels that tasks can ask for.")
    resources: Mapping[str, float] = _setting({}, "amounts", "Resources of its own to offer.")
    drain_timeout_s: float = _seconds(
        30.0,
        "Seconds that running tasks get to finish when the worker is told to stop.",
        0,
    )
    spool_dir: str | None = _setting(
        None,
        "text",
        "Directory for results that wait for the head; spool in the state directory by default.",
    )
    spool_memory_mb: int = _setting(
        128,
        "whole",
        "Megabytes of results that wait for the head in memory; nothing starts above that.",
        low=8,
        high=100_000_000,
    )
    spool_disk_mb: int = _setting(
        1024,
        "whole",
        "Megabytes of results that wait for the head on disk; 0: none.",
        low=0,
        high=100_000_000,
    )
    object_memory_mb: int = _setting(
        1024,
        "whole",
        "Megabytes of large values that stay on this node, in memory; what is over goes to disk.",
        low=1,
        high=100_000_000,
    )
    object_disk_mb: int = _setting(
        4096,
        "whole",
        "Megabytes of such values on disk, beside the spool; 0: none.",
        low=0,
        high=100_000_000,
    )
    package_dir: str | None = _setting(
        None,
        "text",
        "Directory for packages of runtime_envs; packages in the state directory by default.",
    )
    package_mb: int = _setting(
        2_000,
        "whole",
        "Megabytes of such packages that stay though nothing needs them any more.",
        low=0,
        high=100_000_000,
    )
    cancel_notice_s: float = _seconds(
        5.0, "Seconds that a cancelled task gets that looks at is_cancelled().", 0
    )
    cancel_grace_s: float = _seconds(
        5.0, "Seconds that a cancelled task gets once it is interrupted.", 0
    )
    kill_grace_s: float = _seconds(5.0, "Seconds between SIGTERM and SIGKILL of a task.", 0)
    memory_cgroup: bool = _setting(
        True,
        "switch",
        "Have the kernel hold memory limits too, where control groups are delegated to the worker.",
    )
    max_processes: int = _setting(
        4_096,
        "whole",
        "Processes and threads of one task's executor and all that it starts, where control "
        "groups are delegated to the worker; 0: any.",
        low=0,
        high=4_194_304,
    )
