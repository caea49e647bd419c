"""What a task needs of a worker: amounts, labels, and what does too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rustray.common.resources import CPU, GPU, MEMORY, ResourceSet
from rustray.task.names import check_label
from rustray.task.selectors import Selector, parse_selector

MAX_ALTERNATIVES: Final = 16


@dataclass(frozen=True, slots=True)
class ResourceRequirements:
    """What one task needs while it runs.

    Attributes:
        cpu_cores: Cores, fractions allowed; 4 takes four slots.
        memory_mb: Megabytes.
        gpus: GPUs, fractions allowed.
        resources: Amounts of resources that workers name themselves (``--resource K=V``).
        labels: Labels that a worker must carry with exactly these values.
        label_selector: What other labels of a worker must be: ``"value"``, ``"!value"``,
            ``"in(a,b)"`` or ``"!in(a,b)"`` for the name of each.
        label_selector_soft: The same as a preference: others do where no such worker has room.
        fallback_strategy: What does too, in this order, where no worker has room for the above.
            The first that fits wins; `rustray.context().alternative` tells the task which.

    Raises:
        ValueError: an amount is negative, NaN, infinite or not a number, or a name is bad.
    """

    cpu_cores: float = 1
    memory_mb: float = 0
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    label_selector: Mapping[str, str] = field(default_factory=dict)
    label_selector_soft: Mapping[str, str] = field(default_factory=dict)
    fallback_strategy: Sequence[ResourceRequirements] = ()

    def __post_init__(self) -> None:
        for name in ("resources", "labels"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} must map names to values, not {value!r:.80}")
        self.to_alternative()
        self.to_fallback()
        for key, value in self.labels.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise ValueError(f"label {key!r}={value!r}: both must be text")
            check_label(key, value)

    def to_set(self) -> ResourceSet:
        """Return the amounts as one vector."""
        clash = {CPU, MEMORY, GPU} & set(self.resources)
        if clash:
            raise ValueError(f"{sorted(clash)[0]} has a field of its own; take it out of resources")
        return ResourceSet.of(
            {CPU: self.cpu_cores, MEMORY: self.memory_mb, GPU: self.gpus, **self.resources}
        )

    def to_alternative(self) -> Alternative:
        """Return all of it but for the fallbacks, in its one form.

        Raises:
            ValueError: as the class says.
        """
        return Alternative(
            self.to_set(),
            tuple(sorted(self.labels.items())),
            parse_selector("label_selector", self.label_selector),
            parse_selector("label_selector_soft", self.label_selector_soft),
        )

    def to_fallback(self) -> tuple[Alternative, ...]:
        """Return the fallbacks in their one form.

        Raises:
            ValueError: there are too many, or one is no such thing or has some of its own.
        """
        others = self.fallback_strategy
        if not isinstance(others, list | tuple) or len(others) > MAX_ALTERNATIVES:
            raise ValueError(f"fallback_strategy is a list of at most {MAX_ALTERNATIVES} requests")
        for each in others:
            if not isinstance(each, ResourceRequirements):
                raise ValueError(f"fallback_strategy: {each!r:.80} is no ResourceRequirements")
            if each.fallback_strategy:
                raise ValueError("fallback_strategy: one of them has a fallback_strategy itself")
        return tuple(each.to_alternative() for each in others)


class Alternative(NamedTuple):
    """One way to run a task: what it takes, on which workers.

    Attributes:
        resources: Demand of one task while it runs.
        labels: (key, value) pairs that a worker must carry.
        label_selector: What other labels must be (`rustray.task.selectors`).
        label_selector_soft: What they had better be.
    """

    resources: ResourceSet
    labels: tuple[tuple[str, str], ...] = ()
    label_selector: Selector = ()
    label_selector_soft: Selector = ()
