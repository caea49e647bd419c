"""Settings: what exists, what is allowed, and which of flag, environment, file and default wins.

Pure: the caller reads the file and the environment and passes them in. Precedence is
flag > ``RUSTRAY_SECTION__KEY`` > file > default, resolved once, with the origin of
every value kept, so that a mistake is reported as "what, where it came from, what is
allowed". There is no silent fallback: a value that cannot be used is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rustray.common import settings
from rustray.common.errors import ConfigError
from rustray.common.settings import (
    NodeSettings,
    SchedulerSettings,
    SecuritySettings,
    SettingRule,
    WorkerSettings,
)
from rustray.common.toml_file import ConfigFile

ENV_PREFIX: Final = "RUSTRAY_"
STATE_DIR_ENV: Final = "RUSTRAY_STATE_DIR"
KNOWN_SINGLES: Final = frozenset(
    f"{ENV_PREFIX}{name}"
    for name in (
        "ADDRESS",
        "CONFIG",
        "JOIN",
        "LOG_LEVEL",
        "STATE_DIR",
        "TOKEN",
        "TOKEN_FILE",
    )
)
"""Variables that are not of the form ``RUSTRAY_SECTION__KEY``."""
REDACTED: Final = "********"
_INTERPOLATION = re.compile(r"\$\{([^}]*)\}")
_SECTIONS: Final[dict[str, type[Any]]] = {
    "node": NodeSettings,
    "security": SecuritySettings,
    "scheduler": SchedulerSettings,
    "worker": WorkerSettings,
}


@dataclass(frozen=True, slots=True)
class Flag:
    """A value from the command line.

    Attributes:
        name: As the user typed it, e.g. ``--port``.
        value: Text, or a value that already has the setting's type.
    """

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from.

    Attributes:
        kind: "flag", "env", "file" or "default".
        where: The flag, the variable or ``path:line``; "" for a default.
    """

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}" if self.where else self.kind


DEFAULT_ORIGIN: Final = Origin("default")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, resolved.

    Attributes:
        origins: ``section.key`` to where its value came from, in the order of declaration.
    """

    node: NodeSettings
    security: SecuritySettings
    scheduler: SchedulerSettings
    worker: WorkerSettings
    origins: Mapping[str, Origin]

    def origin(self, name: str) -> Origin:
        """Return where ``section.key`` came from."""
        return self.origins[name]

    def value(self, name: str) -> Any:
        """Return the value of ``section.key``."""
        section, key = name.split(".")
        return getattr(getattr(self, section), key)


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """One line of ``rustray config show``; a secret's value is already replaced."""

    name: str
    value: Any
    origin: Origin
    doc: str
    allowed: str


def describe(config: Config) -> Iterator[ShownSetting]:
    """List every setting with value and origin, secrets redacted."""
    for name, rule in RULES.items():
        value = config.value(name)
        if rule.is_secret and value:
            value = REDACTED
        yield ShownSetting(name, value, config.origin(name), rule.doc, rule.allowed())


def resolve(
    *,
    file: ConfigFile | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Flag] | None = None,
) -> Config:
    """Resolve all settings: flag > environment > file > default.

    Args:
        file: The parsed file, or None where there is none.
        env: The whole environment; variables that are not ours are ignored.
        flags: ``section.key`` to what the command line said.

    Raises:
        ConfigError: an unknown section or key, a value of the wrong type or outside its
            range, or settings that contradict each other. Names key, origin and range.
    """
    env = env or {}
    found: dict[str, tuple[Any, Origin]] = {}
    if file is not None:
        found.update(_from_file(file, env))
    found.update(_from_env(env))
    for name, flag in (flags or {}).items():
        origin = Origin("flag", flag.name)
        rule = RULES[name]
        text = flag.value
        value = rule.parse(text) if isinstance(text, str) else rule.check(text)
        found[name] = (_unwrap(name, value, origin, rule), origin)
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, (value, _) in found.items():
        section, key = name.split(".")
        sections[section][key] = value
    config = Config(
        node=NodeSettings(**sections["node"]),
        security=SecuritySettings(**sections["security"]),
        scheduler=SchedulerSettings(**sections["scheduler"]),
        worker=WorkerSettings(**sections["worker"]),
        origins={name: found[name][1] if name in found else DEFAULT_ORIGIN for name in RULES},
    )
    _check_together(config)
    return config


def mentions_rustray(file: ConfigFile) -> bool:
    """Tell whether a file found by its common name alone is meant for rustray.

    True if one of its sections is ours or nearly ours, or if it has none at all.
    """
    names = list(file.values)
    return not names or any(
        difflib.get_close_matches(name, _SECTIONS, n=1, cutoff=0.75) for name in names
    )


def _from_file(file: ConfigFile, env: Mapping[str, str]) -> dict[str, tuple[Any, Origin]]:
    found: dict[str, tuple[Any, Origin]] = {}
    for section, body in file.values.items():
        if section not in _SECTIONS:
            raise _unknown_section(section, body, file)
        if not isinstance(body, dict):
            raise ConfigError(
                f"[{section}] in {file.place(section)} must be a section, not a single value"
            )
        for key, raw in body.items():
            name = f"{section}.{key}"
            origin = Origin("file", file.place(section, key))
            if name not in RULES:
                raise ConfigError(
                    f"unknown key {_shown(key)} in [{section}] ({origin}){_near_key(section, key)}"
                )
            rule = RULES[name]
            value = rule.check(_interpolate(name, raw, origin, env))
            found[name] = (_unwrap(name, value, origin, rule), origin)
    return found


def _from_env(env: Mapping[str, str]) -> dict[str, tuple[Any, Origin]]:
    found: dict[str, tuple[Any, Origin]] = {}
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX):
            continue
        rest = variable.removeprefix(ENV_PREFIX)
        if "__" not in rest:
            _check_single(variable)
            continue
        name = rest.replace("__", ".", 1).lower()
        if name not in RULES or rest != rest.upper():
            raise ConfigError(
                f"unknown setting in the environment: {_shown(variable)}{_near_variable(variable)}"
            )
        found[name] = _env_value(name, variable, env)
    if env.get(STATE_DIR_ENV) is not None and "node.state_dir" not in found:
        found["node.state_dir"] = _env_value("node.state_dir", STATE_DIR_ENV, env)
    return found


def _env_value(name: str, variable: str, env: Mapping[str, str]) -> tuple[Any, Origin]:
    origin = Origin("env", variable)
    text = env[variable]
    rule = RULES[name]
    if not text:
        raise ConfigError(
            f"{name} ({origin}) is set but empty; unset the variable to use the default. "
            f"Allowed: {rule.allowed()}"
        )
    return _unwrap(name, rule.parse(text), origin, rule), origin


def _unwrap(name: str, value: Any, origin: Origin, rule: SettingRule) -> Any:
    if isinstance(value, settings.Problem):
        raise ConfigError(f"{name} ({origin}) {value.text}. Allowed: {rule.allowed()}")
    return value


def _interpolate(name: str, raw: Any, origin: Origin, env: Mapping[str, str]) -> Any:
    if not isinstance(raw, str):
        return raw

    def replace(match: re.Match[str]) -> str:
        variable = match.group(1)
        if not env.get(variable):
            raise ConfigError(
                f"{name} ({origin}) refers to ${{{_plain(variable)}}}, which is not set or empty"
            )
        return env[variable]

    return _INTERPOLATION.sub(replace, raw)


def _check_single(variable: str) -> None:
    # Kubernetes adds variables such as RUSTRAY_PORT for a service of our name, so that an
    # unknown one is an error only if it is nearly one of ours.
    if variable in KNOWN_SINGLES:
        return
    near = difflib.get_close_matches(variable, sorted(KNOWN_SINGLES), n=1, cutoff=0.94)
    if near:
        raise ConfigError(
            f"unknown setting in the environment: {_shown(variable)}; did you mean {near[0]}?"
        )


def _check_together(config: Config) -> None:
    scheduler = config.scheduler
    if scheduler.heartbeat_interval_s * 2 > scheduler.lease_ttl_s:
        raise ConfigError(
            f"scheduler.heartbeat_interval_s={scheduler.heartbeat_interval_s:g} "
            f"({config.origin('scheduler.heartbeat_interval_s')}) must be at most half of "
            f"scheduler.lease_ttl_s={scheduler.lease_ttl_s:g} "
            f"({config.origin('scheduler.lease_ttl_s')}), or one lost heartbeat loses a worker"
        )
    names = ("result_memory_mb", "result_disk_mb", "dead_letter_memory_mb", "max_pending_mb",
             "principal_pending_mb")  # fmt: skip
    for name in names:
        limit_mb = getattr(scheduler, name)
        if scheduler.max_payload_bytes > limit_mb * 1_000_000:
            raise ConfigError(
                f"scheduler.max_payload_bytes={scheduler.max_payload_bytes} "
                f"({config.origin('scheduler.max_payload_bytes')}) is more than all of them may "
                f"take: scheduler.{name}={limit_mb} ({config.origin(f'scheduler.{name}')})"
            )


def _unknown_section(section: str, body: Any, file: ConfigFile) -> ConfigError:
    place = f"file {file.place(section)}"
    if not isinstance(body, dict):
        owners = [name for name in RULES if name.split(".")[1] == section]
        hint = f"; it belongs into [{owners[0].split('.')[0]}]" if owners else ""
        return ConfigError(f"key {_shown(section)} stands outside of any section ({place}){hint}")
    near = difflib.get_close_matches(section, _SECTIONS, n=1, cutoff=0.6)
    hint = f"; did you mean [{near[0]}]?" if near else f"; there are {', '.join(_SECTIONS)}"
    return ConfigError(f"unknown section [{_plain(section)}] ({place}){hint}")


def _near_key(section: str, key: str) -> str:
    keys = [name.split(".")[1] for name in RULES if name.startswith(f"{section}.")]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    elsewhere = [name for name in RULES if name.split(".")[1] == key]
    if elsewhere:
        return f"; it belongs into [{elsewhere[0].split('.')[0]}]"
    return f"; there are {', '.join(keys)}"


def _near_variable(variable: str) -> str:
    known = [f"{ENV_PREFIX}{name.replace('.', '__').upper()}" for name in RULES]
    near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else "; `rustray config show` lists what there is"


def _plain(text: str) -> str:
    return ascii(text)[1:-1][:80]


def _shown(text: str) -> str:
    return ascii(text)[:80]


def _declared() -> dict[str, SettingRule]:
    return {
        f"{section}.{field.name}": field.metadata["rule"]
        for section, cls in _SECTIONS.items()
        for field in dataclasses.fields(cls)
    }


RULES: Final[dict[str, SettingRule]] = _declared()
"""``section.key`` to its rule, in the order of declaration."""
