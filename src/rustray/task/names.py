"""Names that people give, and labels: what can be shown, and is not too long."""

from __future__ import annotations

from typing import Final

MAX_NAME: Final = 256


def check_name(field_name: str, name: object) -> None:
    """Refuse names that are empty, over 256 characters, or not printable.

    Raises:
        ValueError: as said.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{field_name} must be a non-empty text, not {name!r:.80}")
    if len(name) > MAX_NAME:
        raise ValueError(f"{field_name} has {len(name)} characters, at most {MAX_NAME} are allowed")
    if not name.isprintable():
        raise ValueError(f"{field_name} {ascii(name)[:80]} has characters that cannot be shown")


def check_label(key: object, value: object) -> None:
    """Refuse a label whose name or value is over 256 characters, or not printable.

    This is for what comes in. Journals of heads that did not look may have such tasks.

    Raises:
        ValueError: as said.
    """
    check_name("label", key)
    if value != "":
        check_name(f"the value of label {key!r:.80}", value)
