"""Text that came from elsewhere, made harmless for a terminal."""

from __future__ import annotations

import re
from typing import Final

_ESCAPES: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\Z)"  # OSC and other strings: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]"
    r"|\x9b[0-?]*[ -/]*[@-~]",
    re.DOTALL,
)
_BIDI: Final = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c")


def clean(text: str, *, keep_lines: bool = False) -> str:
    """Take out escape sequences, and show other control and direction marks by their number.

    Args:
        text: Anything.
        keep_lines: Whether newlines and tabs stay as they are.
    """
    without = _ESCAPES.sub("", text)
    if without.isprintable() and not _BIDI.intersection(without):
        return without
    kept = "\n\t" if keep_lines else ""
    return "".join(
        char if char in kept or (char.isprintable() and char not in _BIDI) else ascii(char)[1:-1]
        for char in without
    )
