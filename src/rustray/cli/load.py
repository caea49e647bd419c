"""Find and read the configuration file, and resolve the settings of this process."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rustray.common.config import STATE_DIR_ENV, Config, Flag, mentions_rustray, resolve
from rustray.common.errors import ConfigError
from rustray.common.toml_file import MAX_FILE_BYTES, ConfigFile, parse_toml

CONFIG_ENV: Final = "RUSTRAY_CONFIG"
_NAMES: Final = ("config.toml", "rustray.toml")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process finds around it.

    Attributes:
        environ: The environment.
        working_dir: Where it was started.
        home: The user's home directory; need not exist.
    """

    environ: Mapping[str, str]
    working_dir: Path
    home: Path

    @classmethod
    def of_this_process(cls) -> Surroundings:
        """Return those of this process; a missing home or working directory is no error."""
        try:
            home = Path.home()
        except RuntimeError:
            home = Path("/nonexistent")
        try:
            working_dir = Path.cwd()
        except OSError:
            working_dir = Path("/nonexistent")
        return cls(os.environ, working_dir, home)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The resolved settings.

    Attributes:
        config: The settings.
        file: Path of the file that was read, or "".
        notes: What the user should know, one sentence each.
    """

    config: Config
    file: str
    notes: tuple[str, ...]


def load(
    around: Surroundings, *, path: str | None = None, flags: Mapping[str, Flag] | None = None
) -> Loaded:
    """Resolve the settings: flags, environment, file, defaults.

    Args:
        around: The process's surroundings.
        path: The file that the user named, or None to look for one.
        flags: ``section.key`` to what the command line said.

    Raises:
        ConfigError: a named file that cannot be used, or a bad setting.
    """
    file, notes = find_file(around, path)
    config = resolve(file=file, env=around.environ, flags=flags)
    _check_secret(config)
    if file is not None and config.origin("security.jwt_secret").kind == "file":
        mode = _mode_of(expand(file.origin, around))
        if mode is not None and mode & 0o077:
            notes.append(
                f"warning: {file.origin} holds jwt_secret and others can read it "
                f"(chmod 600 {file.origin})"
            )
    return Loaded(config, file.origin if file is not None else "", tuple(notes))


def state_dir(config: Config, around: Surroundings) -> Path:
    """Return the state directory: the setting's, else the user's own.

    Raises:
        ConfigError: as `rustray.security.state_dir.default_state_dir`.
    """
    chosen = config.node.state_dir
    if chosen is not None:
        return expand(chosen, around)
    from rustray.security.state_dir import default_state_dir

    rest = {key: text for key, text in around.environ.items() if key != STATE_DIR_ENV}
    return default_state_dir(rest, around.home)


def expand(text: str, around: Surroundings) -> Path:
    """Resolve ``~`` and relative paths as a shell would."""
    if text == "~" or text.startswith("~/"):
        return around.home / text[2:]
    return around.working_dir / text


def find_file(around: Surroundings, path: str | None) -> tuple[ConfigFile | None, list[str]]:
    """Find the file: the named one, ``RUSTRAY_CONFIG``, the working directory's, the user's.

    Returns:
        The parsed file or None, and notes for the user.

    Raises:
        ConfigError: a named file is missing, or a file cannot be used.
    """
    if path is not None:
        return read_file(expand(path, around), path), []
    named = around.environ.get(CONFIG_ENV)
    if named is not None:
        if not named:
            raise ConfigError(f"{CONFIG_ENV} is set but empty; unset it or name a file")
        return read_file(expand(named, around), named), []
    notes: list[str] = []
    for name in _NAMES:
        if not os.path.lexists(around.working_dir / name):
            continue
        file = read_file(around.working_dir / name, f"./{name}")
        if name == "rustray.toml" or mentions_rustray(file):
            return file, notes
        notes.append(f"note: ./{name} has no section of rustray and was not used")
    user_file = _user_config_dir(around) / "rustray" / "config.toml"
    if os.path.lexists(user_file):
        return read_file(user_file, str(user_file)), notes
    return None, notes


def read_file(path: Path, shown: str) -> ConfigFile:
    """Read and parse one file.

    Args:
        path: Where it is.
        shown: How messages call it.

    Raises:
        ConfigError: missing, not a regular file, unreadable, too big, or not TOML.
    """
    try:
        # Non-blocking, so that a pipe with no writer is refused instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the configuration file {shown}: {reason}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"the configuration file {shown} is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {shown}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return parse_toml(content, shown)


def _check_secret(config: Config) -> None:
    if config.security.jwt_secret is None:
        return
    from rustray.security.secret_strength import check_jwt_secret

    try:
        check_jwt_secret(config.security.jwt_secret)
    except ConfigError as error:
        raise ConfigError(f"{error} ({config.origin('security.jwt_secret')})") from None


def _user_config_dir(around: Surroundings) -> Path:
    base = around.environ.get("XDG_CONFIG_HOME", "")
    return Path(base) if base.startswith("/") else around.home / ".config"


def _mode_of(path: Path) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None
