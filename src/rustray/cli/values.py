"""What people type for durations, addresses and arguments, turned into values."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from rustray.common.errors import UsageProblem

_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?", re.ASCII)
_UNIT_S: Final = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_S: Final = 10 * 365 * 86_400.0
SCHEME: Final = "rustray://"
DEFAULT_PORT: Final = 8000
_ADDRESS: Final = re.compile(
    r"([A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?", re.ASCII
)
_NUMBER: Final = re.compile(r"-(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)


def parse_duration(text: str, what: str) -> float:
    """Turn ``90``, ``1.5``, ``500ms``, ``15m``, ``2h`` or ``1d`` into seconds.

    Args:
        text: What was typed; a bare number is seconds.
        what: The flag, for the message.

    Raises:
        UsageProblem: another text, zero, or more than ten years.
    """
    match = _DURATION.fullmatch(text)
    seconds = float(match.group(1)) * _UNIT_S[match.group(2)] if match else 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise UsageProblem(
            f"{what} {ascii(text)[:60]} is not a duration: write seconds, or a number with ms, s, "
            "m, h or d (15m), more than 0 and at most ten years"
        )
    return seconds


def parse_address(text: str, what: str) -> str:
    """Read ``rustray://HOST:PORT``, ``HOST:PORT`` or ``HOST`` (port 8000).

    Args:
        text: What was typed; an IPv6 address stands in brackets.
        what: Where it was typed, for the message.

    Returns:
        ``host:port``.

    Raises:
        UsageProblem: another text.
    """
    match = _ADDRESS.fullmatch(text.removeprefix(SCHEME).removesuffix("/"))
    port = int(match.group(2) or DEFAULT_PORT) if match else 0
    if match is None or not 1 <= port <= 65_535:
        raise UsageProblem(
            f"{what} {ascii(text)[:80]} is not the address of a head: write rustray://HOST:PORT, "
            "with a port from 1 to 65535 and an IPv6 address in brackets"
        )
    return f"{match.group(1)}:{port}"


def parse_argument(text: str, what: str) -> Any:
    """Read an argument of a task: JSON if it parses as JSON, else the text itself.

    Raises:
        UsageProblem: it is not valid Unicode, or nested too deeply.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageProblem(f"{what} is not valid UTF-8 text")
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except ValueError:
        return text
    except RecursionError:
        raise UsageProblem(f"{what} is nested too deeply") from None


def parse_keyword_arguments(pairs: list[str]) -> dict[str, Any]:
    """Read ``name=value`` texts; each value like `parse_argument`.

    Raises:
        UsageProblem: no ``=``, a name that is no identifier, or one given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.isidentifier():
            raise UsageProblem(f"--kwarg {ascii(pair)[:80]} must be NAME=VALUE")
        if name in found:
            raise UsageProblem(f"--kwarg {name} was given twice")
        found[name] = parse_argument(text, f"the value of --kwarg {name}")
    return found


def parse_labels(pairs: list[str], what: str) -> dict[str, str]:
    """Read ``key=value`` texts.

    Raises:
        UsageProblem: no ``=``, an empty key, or one given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageProblem(f"{what} {ascii(pair)[:80]} must be KEY=VALUE")
        if key in found:
            raise UsageProblem(f"{what} {ascii(key)[:80]} was given twice")
        found[key] = value
    return found


def parse_amounts(pairs: list[str], what: str) -> dict[str, float]:
    """Read ``name=amount`` texts.

    Raises:
        UsageProblem: as `parse_labels`, or the amount is no finite number.
    """
    found: dict[str, float] = {}
    for name, text in parse_labels(pairs, what).items():
        try:
            found[name] = _finite(text)
        except ValueError:
            raise UsageProblem(f"{what} {ascii(name)[:80]}={ascii(text)[:80]}: no number") from None
    return found


def is_negative_number(text: str) -> bool:
    """Tell ``-5`` and ``-1.5e3``, which are arguments, from flags."""
    return _NUMBER.fullmatch(text) is not None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
