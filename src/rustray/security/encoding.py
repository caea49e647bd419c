"""Unpadded base64url, in its one canonical form."""

from __future__ import annotations

import base64
import binascii


def encode_base64url(data: bytes) -> str:
    """Return the data as base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64url(text: str) -> bytes:
    """Return the bytes behind canonical, unpadded base64url.

    Raises:
        ValueError: any other character, padding, an impossible length, or bits set that the
            encoder would have left zero (else several texts would mean the same bytes).
    """
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if encode_base64url(data) != text:
        raise ValueError("not canonical base64url")
    return data
