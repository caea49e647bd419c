"""Which labels a worker must carry, or had better: selectors in the syntax of Ray.

``value``, ``!value``, ``in(a,b)`` and ``!in(a,b)``, one for each name of a label. A worker without
that label is one for which ``!`` holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

Selector = tuple[tuple[str, str], ...]
"""(name of a label, expression) pairs, by name; what `parse_selector` returns."""

MAX_NAME: Final = 256
MAX_EXPRESSION: Final = 4_096
MAX_TERMS: Final = 256


def parse_selector(field_name: str, selector: Mapping[str, str]) -> Selector:
    """Check a selector, and write it in the one form that equal ones have in common.

    Args:
        field_name: What the user called it.
        selector: Name of a label to expression.

    Raises:
        ValueError: it is no such mapping, or an expression makes no sense; says how they look.
    """
    if not isinstance(selector, Mapping):
        raise ValueError(f"{field_name} must map names of labels to texts, not {selector!r:.80}")
    if len(selector) > MAX_TERMS:
        raise ValueError(f"{field_name} has {len(selector)} labels, more than {MAX_TERMS}")
    found = []
    for name, expression in selector.items():
        for what, text in (("name", name), ("expression", expression)):
            if not isinstance(text, str) or not text.isprintable():
                raise ValueError(f"{field_name}: {text!r:.80} is no {what} that can be printed")
        if not 0 < len(name) <= MAX_NAME:
            raise ValueError(f"{field_name}: the name of a label has 1 to {MAX_NAME} characters")
        if len(expression) > MAX_EXPRESSION:
            raise ValueError(f"{field_name}: {name!r} has more than {MAX_EXPRESSION} characters")
        found.append((name, _normal(field_name, name, expression)))
    return tuple(sorted(found))


def matches(selector: Iterable[tuple[str, str]], labels: Mapping[str, str]) -> bool:
    """Whether a worker's labels are as all expressions want them."""
    return all(term_matches(expression, labels.get(name)) for name, expression in selector)


def term_matches(expression: str, value: str | None) -> bool:
    """Whether the value of a label, None where it is missing, is as an expression wants it."""
    is_not, values = _read(expression)
    return (value in values) is not is_not


def misses(selector: Iterable[tuple[str, str]], labels: Mapping[str, str]) -> list[str]:
    """Say which expressions do not hold, in words."""
    return [
        f"label {name} is {labels.get(name)!r}, {expression!r} is needed"
        for name, expression in selector
        if not term_matches(expression, labels.get(name))
    ]


def _normal(field_name: str, name: str, expression: str) -> str:
    text = expression.strip()
    is_not = text.startswith("!")
    body = text[1:].strip() if is_not else text
    values = [body]
    if body.startswith("in(") and body.endswith(")"):
        values = [each.strip() for each in body[3:-1].split(",")]
    bad = [each for each in values if not each or set("!(),") & set(each)]
    if bad:
        raise ValueError(
            f"{field_name}: {name!r} cannot be {expression!r:.80}; write 'value', '!value', "
            "'in(a,b)' or '!in(a,b)' (values have no '!', comma or parenthesis)"
        )
    unique = sorted(set(values))
    inner = unique[0] if len(unique) == 1 else f"in({','.join(unique)})"
    return f"!{inner}" if is_not else inner


@lru_cache(maxsize=4_096)
def _read(expression: str) -> tuple[bool, frozenset[str]]:
    """Return (is negated, values) of an expression as `_normal` writes it."""
    is_not = expression.startswith("!")
    body = expression[is_not:]
    if body.startswith("in(") and body.endswith(")"):
        return is_not, frozenset(body[3:-1].split(","))
    return is_not, frozenset((body,))
