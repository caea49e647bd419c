"""What `TaskSpec` refuses before anything travels."""

from __future__ import annotations

from typing import Any

import pytest

from rustray import ResourceRequirements, TaskSpec


@pytest.mark.parametrize("args", ["ab", b"ab", bytearray(b"ab"), {"a": 1}, {1, 2}, 3, None])
def test_what_is_no_list_of_arguments_is_refused(args: Any) -> None:
    """Regression: a text was taken for its letters, and bytes for numbers; 3 was our TypeError."""
    with pytest.raises(ValueError, match=r"args must be a list .*, not a " + type(args).__name__):
        TaskSpec("f", args)


@pytest.mark.parametrize("kwargs", [[1], "a", None, {1: 2}, {b"a": 2}])
def test_keyword_arguments_have_names(kwargs: Any) -> None:
    """Regression: they were our AttributeError when the task was handed in."""
    with pytest.raises(ValueError, match="kwargs"):
        TaskSpec("f", (), kwargs)


@pytest.mark.parametrize("needs", [{"cpu_cores": 1}, 2, (), {}, ResourceRequirements])
def test_requirements_are_of_their_class(needs: Any) -> None:
    """Regression: a mapping was our AttributeError when the task was handed in."""
    with pytest.raises(ValueError, match=r"must be a ResourceRequirements, such as .*\(cpu_cores"):
        TaskSpec("f", resource_requirements=needs)


@pytest.mark.parametrize("args", [(), [1], (1, 2), range(3), {"a": 1}.values()])
def test_any_ordered_collection_holds_arguments(args: Any) -> None:
    """What worked with lists goes on with whatever else has a length and an order."""
    assert tuple(TaskSpec("f", args, {"name": 1}).args) == tuple(args)
