"""Canonical base64url."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.security.encoding import decode_base64url, encode_base64url


@given(st.binary(max_size=80))
def test_round_trip(data: bytes) -> None:
    """What is encoded decodes to itself."""
    assert decode_base64url(encode_base64url(data)) == data


@pytest.mark.parametrize("text", ["a", "aa==", "ab", "a+b/", "a b", "é", "aaaaa"])
def test_other_texts_are_refused(text: str) -> None:
    """Padding, foreign characters, impossible lengths and spare bits are refused."""
    with pytest.raises(ValueError, match=r"base64url|ASCII"):
        decode_base64url(text)


@given(st.text(max_size=20))
def test_at_most_one_text_per_value(text: str) -> None:
    """A text either is refused or is exactly what the encoder writes."""
    try:
        data = decode_base64url(text)
    except ValueError:
        return
    assert encode_base64url(data) == text
