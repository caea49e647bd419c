"""Registered functions: what `rustray.function` and `rustray.TaskExecutor` fill.

Workers announce their signatures, so that bad calls fail at submit.
"""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, overload

from rustray.task.names import check_name
from rustray.task.spec import ExecutorKind

F = TypeVar("F", bound=Callable[..., Any])

MAX_DOC = 2_000


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an announced signature.

    Attributes:
        name: As in the source.
        kind: "positional", "either", "args", "keyword" or "kwargs".
        is_required: Whether it has no default.
        annotation: "int", "float", "bool", "str", or "" for anything else.
    """

    name: str
    kind: str
    is_required: bool
    annotation: str = ""


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """What a worker announces of one function.

    Attributes:
        name: Registered name.
        parameters: In order.
        doc: Docstring, cut at 2,000 characters.
        signature: As a person writes it, e.g. ``matrix_multiply(rows: int, cols: int)``.
        executor: Where it runs.
        resources: Amounts that it declared, or empty for one core.
    """

    name: str
    parameters: tuple[Parameter, ...]
    doc: str = ""
    signature: str = ""
    executor: ExecutorKind = ExecutorKind.PROCESS
    resources: Mapping[str, float] = field(default_factory=dict)

    def check_call(self, nargs: int, kwarg_names: Iterable[str]) -> str:
        """Say why a call with these arguments cannot bind, or "" if it can.

        Args:
            nargs: Number of positional arguments.
            kwarg_names: Names of the keyword arguments.
        """
        slots = [p for p in self.parameters if p.kind in ("positional", "either")]
        by_keyword = {p.name for p in self.parameters if p.kind in ("either", "keyword")}
        takes_any_keyword = any(p.kind == "kwargs" for p in self.parameters)
        if nargs > len(slots) and not any(p.kind == "args" for p in self.parameters):
            return f"it takes at most {len(slots)} positional arguments, {nargs} were given"
        filled = {p.name for p in slots[:nargs]}
        for name in kwarg_names:
            if name in by_keyword:
                if name in filled:
                    return f"argument {name!r} was given twice"
                filled.add(name)
            elif not takes_any_keyword:
                near = difflib.get_close_matches(name, by_keyword, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                return f"it has no parameter {name!r}{hint}"
        missing = [p.name for p in self.parameters if p.is_required and p.name not in filled]
        if missing:
            return f"argument {', '.join(map(repr, missing))} is missing"
        return ""


@dataclass(frozen=True, slots=True)
class RegisteredFunction:
    """A function of this process, ready to be called by name."""

    info: FunctionInfo
    call: Callable[..., Any]


class TaskExecutor(ABC):
    """Base of the class form of a registered function.

    Subclassing registers: one instance is made per executor process, at its first task,
    so `__init__` is the place for what is expensive. `execute` may be sync or async.

    Attributes:
        function_name: The name that clients call; the class's own name if left out.
    """

    function_name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if inspect.isabstract(cls) or getattr(cls.execute, "__isabstractmethod__", False):
            return
        name = cls.__dict__.get("function_name") or cls.__name__
        cls.function_name = name
        registry.add(name, _LazyInstance(cls), signature_of=cls.execute, skip_self=True)

    @abstractmethod
    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work; the arguments are the task's."""


class _LazyInstance:
    """Calls `execute` of one instance, which it makes at the first call."""

    def __init__(self, cls: type[TaskExecutor]) -> None:
        self._cls = cls
        self._instance: TaskExecutor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._instance is None:
            self._instance = self._cls()
        return self._instance.execute(*args, **kwargs)


class FunctionRegistry:
    """Name to function, for one process."""

    def __init__(self) -> None:
        self.functions: dict[str, RegisteredFunction] = {}

    def add(
        self,
        name: str,
        call: Callable[..., Any],
        *,
        signature_of: Callable[..., Any] | None = None,
        skip_self: bool = False,
        executor: ExecutorKind | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """Register a callable.

        Raises:
            ValueError: the name is bad.
        """
        check_name("function name", name)
        described = signature_of or call
        if executor is None:
            is_async = inspect.iscoroutinefunction(described)
            executor = ExecutorKind.ASYNC if is_async else ExecutorKind.PROCESS
        info = describe(name, described, skip_self, executor, resources or {})
        self.functions[name] = RegisteredFunction(info, call)

    def infos(self) -> tuple[FunctionInfo, ...]:
        """Describe everything registered, in name order."""
        return tuple(self.functions[name].info for name in sorted(self.functions))


registry = FunctionRegistry()
"""What this process has registered; a worker announces it, an executor calls from it."""


@overload
def function(name: F, /) -> F: ...
@overload
def function(
    name: str | None = None,
    *,
    executor: str | None = None,
    num_cpus: float | None = None,
    memory_mb: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
) -> Callable[[F], F]: ...
def function(
    name: Any = None,
    *,
    executor: str | None = None,
    num_cpus: float | None = None,
    memory_mb: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
) -> Any:
    """Offer a function to clients under a name: ``@function`` or ``@function("name", ...)``.

    The decorated function stays what it was. Workers started with
    ``--functions MODULE`` announce it.

    Args:
        name: Name for clients; the function's own name if left out.
        executor: "process", "thread" or "async"; ``async def`` functions are "async".
        num_cpus: Cores one call needs (default 1).
        memory_mb: Megabytes one call needs.
        num_gpus: GPUs one call needs.
        resources: Custom amounts one call needs.

    Raises:
        ValueError: a bad name or executor.
    """
    if callable(name):
        return function(None)(name)
    kind = parse_executor(executor) if executor is not None else None
    needs: dict[str, float] = dict(resources or {})
    for key, amount in (("cpu_cores", num_cpus), ("memory_mb", memory_mb), ("gpus", num_gpus)):
        if amount is not None:
            needs[key] = amount
    if needs and "cpu_cores" not in needs:
        needs["cpu_cores"] = 1

    def register(target: F) -> F:
        registry.add(name or target.__name__, target, executor=kind, resources=needs)
        return target

    return register


def parse_executor(text: str) -> ExecutorKind:
    """Turn "process", "thread" or "async" into its kind.

    Raises:
        ValueError: another text.
    """
    try:
        return ExecutorKind[text.upper()]
    except (KeyError, AttributeError):
        raise ValueError(f"executor must be 'process', 'thread' or 'async', not {text!r}") from None


_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "either",
    inspect.Parameter.VAR_POSITIONAL: "args",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "kwargs",
}
_CONVERTIBLE = {"int": int, "float": float, "bool": bool, "str": str}


def describe(
    name: str,
    target: Callable[..., Any],
    skip_self: bool = False,
    executor: ExecutorKind = ExecutorKind.PROCESS,
    resources: Mapping[str, float] | None = None,
) -> FunctionInfo:
    """Describe a callable; one without a signature (some builtins) takes anything."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        anything = (Parameter("args", "args", False), Parameter("kwargs", "kwargs", False))
        doc = (inspect.getdoc(target) or "")[:MAX_DOC]
        return FunctionInfo(name, anything, doc, f"{name}(...)", executor, resources or {})
    found = list(signature.parameters.values())[1 if skip_self else 0 :]
    parameters = tuple(
        Parameter(
            p.name,
            _KINDS[p.kind],
            p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD),
            _annotation_name(p.annotation),
        )
        for p in found
    )
    shown = str(signature.replace(parameters=found))
    doc = (inspect.getdoc(target) or "")[:MAX_DOC]
    return FunctionInfo(name, parameters, doc, f"{name}{shown}", executor, resources or {})


def _annotation_name(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text if text in _CONVERTIBLE else ""


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that look like ``name``, best first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
