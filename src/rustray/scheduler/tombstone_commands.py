"""What the scheduler tells the shell to do about tasks that it knows no more; see `commands`."""

from __future__ import annotations

from rustray.common.durability import Durability
from rustray.common.records import record


@record
class PersistExpired:
    """Commit that the tasks of a session are past, up to the one of this number.

    Attributes:
        last: Sequence number, in place of what was said of this session before.
        principal: Whose session it is.
    """

    prefix: bytes
    last: int
    principal: str
    durability: Durability = Durability.DEFAULT


@record
class ForgetExpired:
    """Drop that of a session whose tasks expired longest ago."""

    prefix: bytes
    durability: Durability = Durability.DEFAULT
