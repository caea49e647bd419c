"""The tree of errors is complete wherever it appears."""

from __future__ import annotations

import inspect
import sys

import pytest

from rustray.common import errors
from rustray.common.errors import RustRayError
from rustray.rpc.grpcio import StatusCode
from rustray.rpc.status import STATUS, from_detail, to_detail

# Never raised themselves: bases that the drawn tree leaves out.
_BASES = {"TaskError"}


def _all_classes() -> list[type[RustRayError]]:
    found, pending = [], [RustRayError]
    while pending:
        cls = pending.pop()
        # Tests derive their own, and the client makes classes that also are a user's.
        home = sys.modules.get(cls.__module__) if cls.__module__.startswith("rustray.") else None
        if getattr(home, cls.__name__, None) is cls:
            found.append(cls)
        pending.extend(cls.__subclasses__())
    return sorted(set(found), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", _all_classes(), ids=lambda cls: cls.__name__)
def test_error_is_in_the_drawn_tree(cls: type[RustRayError]) -> None:
    """Each class is drawn in the docstring of its module and has a docstring of its own."""
    assert inspect.getdoc(cls)
    drawn = {word for line in (errors.__doc__ or "").splitlines() for word in line.split()}
    assert cls.__name__ in drawn | _BASES


def test_every_error_lives_in_one_file() -> None:
    """No class of the tree is defined anywhere else."""
    assert {cls.__module__ for cls in _all_classes()} == {"rustray.common.errors"}


def test_codes_are_unique() -> None:
    """No two classes share a code: a peer rebuilds the class from it."""
    classes = _all_classes()
    assert len({cls.code for cls in classes}) == len(classes)


@pytest.mark.parametrize("cls", _all_classes(), ids=lambda cls: cls.__name__)
def test_error_has_a_status_and_survives_the_wire(cls: type[RustRayError]) -> None:
    """Each class has a status of its own choice, never UNKNOWN, and comes back as itself."""
    assert cls in STATUS
    assert STATUS[cls] not in (StatusCode.OK, StatusCode.UNKNOWN)
    again = from_detail(to_detail(cls("what happened")))
    assert type(again) is cls
    assert str(again) == "what happened"
