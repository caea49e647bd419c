"""Label selectors in Ray's syntax: what they mean, their one form, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.client.options import check_options, task_class
from rustray.common.resources import GPU, ResourceSet
from rustray.task.class_of import class_of
from rustray.task.needs import ResourceRequirements
from rustray.task.selectors import matches, misses, parse_selector
from rustray.task.spec import Codec, TaskSpec


@pytest.mark.parametrize(
    ("expression", "holds_for"),
    [
        ("a", ["a"]),
        ("!a", ["b", "c", None]),
        ("in(a,b)", ["a", "b"]),
        ("in( b , a, b )", ["a", "b"]),
        ("in(a)", ["a"]),
        ("!in(a,b)", ["c", None]),
        (" ! in(c) ", ["a", "b", None]),
    ],
)
def test_an_expression_holds_for_these_values(expression: str, holds_for: list[str | None]) -> None:
    """A worker without the label is one for which a negation holds."""
    selector = parse_selector("s", {"zone": expression})
    found = [
        value
        for value in ("a", "b", "c", None)
        if matches(selector, {} if value is None else {"zone": value})
    ]
    assert found == holds_for


@pytest.mark.parametrize("expression", ["", "!", "in()", "in(a", "in(a,,b)", "a,b", "!!a", "(a)"])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    """The message shows how they look."""
    with pytest.raises(ValueError, match=r"zone.*write 'value', '!value', 'in\(a,b\)'"):
        parse_selector("label_selector", {"zone": expression})


@pytest.mark.parametrize(
    "selector",
    [5, "zone=a", {"": "a"}, {"a": 5}, {5: "a"}, {"a\nb": "c"}, {"a": "b\x1b"}, {"x" * 300: "a"},
     {"a": "x" * 5000}, {f"n{n}": "a" for n in range(300)}],
)  # fmt: skip
def test_what_is_no_selector_is_refused(selector: object) -> None:
    """From options as from a spec."""
    with pytest.raises(ValueError, match="label_selector"):
        check_options({"label_selector": selector})
    with pytest.raises(ValueError, match="label_selector"):
        ResourceRequirements(label_selector=selector)  # type: ignore[arg-type]


values = st.sampled_from(["a", "b", "c"])
expressions = st.builds(
    lambda sign, body: sign + body,
    st.sampled_from(["", "!"]),
    values | st.lists(values, min_size=1).map(lambda v: f"in({','.join(v)})"),
)


@given(expression=expressions, value=values | st.none())
def test_equal_ones_have_one_form_which_means_the_same(expression: str, value: str | None) -> None:
    """So tasks that want the same queue together; parsing again changes nothing."""
    labels = {} if value is None else {"k": value}
    once = parse_selector("s", {"k": expression})
    assert parse_selector("s", dict(once)) == once
    inner = expression.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
    assert matches(once, labels) is ((value in inner) is not expression.startswith("!"))
    assert bool(misses(once, labels)) is not matches(once, labels)
    same = "!" * expression.startswith("!") + f"in({','.join([*reversed(inner), inner[0]])})"
    assert parse_selector("s", {"k": same}) == once


def test_an_alternative_takes_over_what_it_does_not_name() -> None:
    """The options of `remote` and the flags do so; those of a spec are complete in themselves."""

    def f() -> None: ...

    options = {
        "num_gpus": 1,
        "memory_mb": 100,
        "label_selector": {"gpu": "!t4"},
        "fallback_strategy": [{"label_selector": {}}, {"num_gpus": 0, "num_cpus": 4}],
    }
    check_options(options)
    made = task_class(f, b"h" * 32, options)
    amounts = {"cpu_cores": 1, "memory_mb": 100, GPU: 1}
    first, second = made.fallback
    assert first.resources == made.resources == ResourceSet.of(amounts)
    assert (first.label_selector, second.label_selector) == ((), (("gpu", "!t4"),))
    assert second.resources == ResourceSet.of({"cpu_cores": 4, "memory_mb": 100})
    needs = ResourceRequirements(
        gpus=1, fallback_strategy=[ResourceRequirements(cpu_cores=4, label_selector={"a": "in(b)"})]
    )
    found = class_of(TaskSpec("f", resource_requirements=needs), Codec.JSON)
    assert found.fallback[0].resources == ResourceSet.of({"cpu_cores": 4})
    assert found.fallback[0].label_selector == (("a", "b"),)


@pytest.mark.parametrize(
    "others",
    [5, {"num_cpus": 1}, [5], [{}], [{"gpus": 1}], [{"num_cpus": -1}], [{"max_retries": 1}],
     [{"label_selector": {"a": "("}}], [{"labels": {"a": 5}}], [{"num_cpus": 1}] * 17],
)  # fmt: skip
def test_what_is_no_list_of_alternatives_is_refused(others: object) -> None:
    """The message names the option."""
    with pytest.raises(ValueError, match="fallback_strategy"):
        check_options({"fallback_strategy": others})


def test_an_alternative_of_a_spec_has_none_of_its_own() -> None:
    """One list, in order."""
    one = ResourceRequirements()
    with pytest.raises(ValueError, match="fallback_strategy itself"):
        ResourceRequirements(fallback_strategy=[ResourceRequirements(fallback_strategy=[one])])
    with pytest.raises(ValueError, match="no ResourceRequirements"):
        ResourceRequirements(fallback_strategy=[{"gpus": 1}])  # type: ignore[list-item]
