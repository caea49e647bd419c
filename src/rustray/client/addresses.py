"""What `rustray.init` and `Executor` accept as the address of a head."""

from __future__ import annotations


def check_address(address: object, slots_name: str) -> None:
    """Refuse what is neither None nor text.

    Args:
        address: As given.
        slots_name: The keyword for what a number in its place is likely to mean.

    Raises:
        TypeError: as said.
    """
    if address is None or isinstance(address, str):
        return
    is_number = isinstance(address, int) and not isinstance(address, bool)
    hint = f"; for a number of slots write {slots_name}={address}" if is_number else ""
    raise TypeError(
        f"the address must be text, rustray://HOST:PORT, not {address!r:.80}{hint}; without one "
        "RUSTRAY_ADDRESS is taken if it is set, and else an embedded cluster is started"
    )
