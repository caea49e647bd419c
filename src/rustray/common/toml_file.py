"""Turn the text of a configuration file into values that remember their lines."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rustray.common.errors import ConfigError

MAX_FILE_BYTES: Final = 1 << 20
_LINE = re.compile(r"\(at (?:line (\d+), column (\d+)|end of document)\)")
_SECTION_LINE = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]")
_KEY_LINE = re.compile(r"\s*(?:([A-Za-z0-9_-]+)\s*\.\s*)?[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A parsed file.

    Attributes:
        values: Section to key to value, as TOML has them.
        origin: Path, for messages.
        lines: (section, key) to line number; ("", key) outside of sections, and
            (section, "") for a header. Incomplete for unusual spellings.
    """

    values: Mapping[str, Any]
    origin: str
    lines: Mapping[tuple[str, str], int]

    def place(self, section: str, key: str = "") -> str:
        """Return ``path:line`` of a key or section, or the path where the line is not known."""
        line = self.lines.get((section, key)) or self.lines.get(("", section))
        return f"{self.origin}:{line}" if line else self.origin


def parse_toml(text: str | bytes, origin: str) -> ConfigFile:
    """Parse a configuration file.

    Args:
        text: The content; at most 1 MiB.
        origin: Where it came from, for messages.

    Raises:
        ConfigError: too big, not UTF-8, binary, or not TOML; names the line.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{origin} is too big for a configuration file (limit {MAX_FILE_BYTES} bytes)"
        )
    content = _decode(text, origin)
    try:
        values = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_explain(str(error), content, origin)) from None
    except RecursionError:
        raise ConfigError(f"{origin} is nested too deeply") from None
    except ValueError as error:
        # Not of the decoder's own class: a number with more digits than Python converts.
        raise ConfigError(f"{origin} is not valid TOML: {str(error)[:200]}") from None
    return ConfigFile(values, origin, _lines_of(content))


def _decode(text: str | bytes, origin: str) -> str:
    if isinstance(text, str):
        content = text
    elif text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{origin} is UTF-16; save it as UTF-8 without a byte order mark")
    else:
        try:
            content = text.decode("utf-8")
        except UnicodeDecodeError as error:
            line = text[: error.start].count(b"\n") + 1
            raise ConfigError(f"{origin}:{line} is not UTF-8 text") from None
    if content.startswith("\ufeff"):
        raise ConfigError(f"{origin} starts with a byte order mark; save it as UTF-8 without one")
    if "\0" in content:
        line = content[: content.index("\0")].count("\n") + 1
        raise ConfigError(f"{origin}:{line} has a NUL byte: it is not a text file")
    return content


def _explain(message: str, content: str, origin: str) -> str:
    place, reason = origin, message
    match = _LINE.search(message)
    if match is not None:
        reason = message[: match.start()].strip()
        last = content.rstrip("\n").count("\n") + 1
        place = f"{origin}:{match.group(1) or last}"
    if reason.startswith(("Cannot overwrite", "Cannot declare")):
        reason = f"a key or section stands there twice ({reason})"
    return f"{place} is not valid TOML: {reason}"


def _lines_of(content: str) -> dict[tuple[str, str], int]:
    lines: dict[tuple[str, str], int] = {}
    section = ""
    for number, line in enumerate(content.splitlines(), start=1):
        header = _SECTION_LINE.match(line)
        if header is not None:
            section = header.group(1)
            lines.setdefault((section, ""), number)
            continue
        key = _KEY_LINE.match(line)
        if key is not None:
            lines.setdefault((key.group(1) or section, key.group(2)), number)
    return lines
