"""What `@rustray.remote` and `.options` accept, and the task class made of it."""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import cloudpickle

from rustray.client.runtime_envs import check_runtime_env
from rustray.common.durability import parse_durability
from rustray.common.errors import PayloadError
from rustray.common.resources import CPU, GPU, MEMORY, ResourceSet, to_units
from rustray.task.functions import parse_executor
from rustray.task.names import MAX_NAME, check_label, check_name
from rustray.task.needs import MAX_ALTERNATIVES, Alternative, ResourceRequirements
from rustray.task.retries import exception_names
from rustray.task.selectors import parse_selector
from rustray.task.spec import (
    DEFAULT_CRASH_LIMIT,
    DEFAULT_RETRIES,
    Codec,
    ExecutorKind,
    TaskClass,
    check_crash_limit,
    check_delay,
    check_exclusive,
    check_lifetime,
    check_priority,
    check_retries,
    check_returns,
    check_seconds,
    deadline_unix_s,
)
from rustray.task.streams import STREAMING, is_generator_function, window_of

VALID: Final = (
    "crash_limit",
    "deadline",
    "durability",
    "exclusive",
    "lifetime",
    "executor",
    "fallback_strategy",
    "label_selector",
    "label_selector_soft",
    "generator_backpressure_num_objects",
    "labels",
    "max_retries",
    "memory_mb",
    "name",
    "num_cpus",
    "num_gpus",
    "num_returns",
    "oom_retries",
    "priority",
    "queue_timeout_s",
    "resources",
    "retry_delay_s",
    "retry_exceptions",
    "runtime_env",
    "timeout_s",
    "total_timeout_s",
    "wait_for_resources",
)
_BOOLS: Final = ("exclusive", "wait_for_resources")
_SECONDS: Final = ("timeout_s", "queue_timeout_s", "total_timeout_s")
_ASKED: Final = (
    "num_cpus",
    "memory_mb",
    "num_gpus",
    "resources",
    "labels",
    "label_selector",
    "label_selector_soft",
)
"""What an alternative may name."""
_AMOUNTS: Final = {"num_cpus": CPU, "memory_mb": MEMORY, "num_gpus": GPU}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse unknown names and values out of range.

    Raises:
        ValueError: names the option, what is valid, and what may have been meant.
    """
    for name in options:
        if name not in VALID:
            near = difflib.get_close_matches(name, VALID, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown option {name!r}{hint}; valid are: {', '.join(VALID)}")
    if options.get("num_returns", 1) == STREAMING:
        _window(options)
    else:
        check_returns(options.get("num_returns", 1))
    for name in _BOOLS:
        if not isinstance(options.get(name, False), bool):
            raise ValueError(f"{name} must be True or False, not {options[name]!r:.80}")
    deadline_unix_s(options.get("deadline"))
    check_lifetime(options.get("lifetime"))
    parse_durability(options.get("durability"))
    exception_names(options.get("retry_exceptions", False))
    check_delay(options.get("retry_delay_s"))
    if options.get("crash_limit") is not None:
        check_crash_limit(options["crash_limit"])
    for name in _SECONDS:
        check_seconds(name, options.get(name))
    check_priority(options.get("priority", 0))
    check_retries(options.get("max_retries"))
    check_retries(options.get("oom_retries"), "oom_retries")
    if options.get("name") is not None:
        check_name("name", options["name"])
    if options.get("executor") is not None:
        check_exclusive(options.get("exclusive", False), parse_executor(options["executor"]))
    check_runtime_env(options.get("runtime_env"))
    check_needs(options)
    _fallback(options)


def imply_streaming(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a function; a generator function is a stream without being told so.

    Raises:
        ValueError: it is told not to be one, or where it cannot run.
    """
    found = dict(options)
    if is_generator_function(function):
        if found.setdefault("num_returns", STREAMING) == 1:
            raise ValueError(
                f"{function_name(function)} is a generator function: leave num_returns out, or "
                "return a list instead of yielding"
            )
    elif found.get("generator_backpressure_num_objects") and "num_returns" not in found:
        found["num_returns"] = STREAMING
    _window(found)
    return found


def _window(options: Mapping[str, Any]) -> int:
    executor = options.get("executor")
    return window_of(
        options.get("num_returns", 1),
        options.get("generator_backpressure_num_objects"),
        is_process=executor is None or parse_executor(executor) is ExecutorKind.PROCESS,
    )


def check_needs(options: Mapping[str, Any]) -> None:
    """Refuse bad amounts, labels and selectors.

    Raises:
        ValueError: names the option.
    """
    for name in _AMOUNTS:
        if options.get(name) is not None:
            to_units(name, options[name])
    for name in ("resources", "labels"):
        if not isinstance(options.get(name) or {}, Mapping):
            raise ValueError(f"{name} must map names to values, not {options[name]!r:.80}")
    for key, value in (options.get("labels") or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"labels must map text to text, not {key!r:.80} to {value!r:.80}")
        check_label(key, value)
    try:
        _resources(options)
    except ValueError as error:
        raise ValueError(f"resources: {error}") from error
    _alternative(options)


def _alternative(options: Mapping[str, Any]) -> Alternative:
    """Return what the options ask of a worker.

    Raises:
        ValueError: a selector makes no sense.
    """
    return Alternative(
        _resources(options),
        tuple(sorted((options.get("labels") or {}).items())),
        parse_selector("label_selector", options.get("label_selector") or {}),
        parse_selector("label_selector_soft", options.get("label_selector_soft") or {}),
    )


def _fallback(options: Mapping[str, Any]) -> tuple[Alternative, ...]:
    """Return the alternatives; what one does not name is as the task itself asks for it.

    Raises:
        ValueError: there are too many, or one names something else, or makes no sense.
    """
    others = options.get("fallback_strategy") or ()
    if not isinstance(others, list | tuple) or len(others) > MAX_ALTERNATIVES:
        raise ValueError(
            f"fallback_strategy must be a list of at most {MAX_ALTERNATIVES} alternatives, each "
            f"a mapping such as {{'num_gpus': 0, 'num_cpus': 4}}, not {others!r:.80}"
        )
    found = []
    for each in others:
        if not isinstance(each, Mapping) or not each or set(each) - set(_ASKED):
            raise ValueError(
                f"fallback_strategy: {each!r:.80} must be a mapping of some of: {', '.join(_ASKED)}"
            )
        merged = {**{name: options.get(name) for name in _ASKED}, **each}
        try:
            check_needs(merged)
        except ValueError as error:
            raise ValueError(f"fallback_strategy: {error}") from error
        found.append(_alternative(merged))
    return tuple(found)


def _resources(options: Mapping[str, Any]) -> ResourceSet:
    custom = options.get("resources") or {}
    ResourceRequirements(resources=custom)
    amounts: dict[str, float] = {CPU: 1}
    for name, key in _AMOUNTS.items():
        if options.get(name) is not None:
            amounts[key] = options[name]
    return ResourceSet.of({**amounts, **custom})


def pickle_function(function: Callable[..., Any]) -> tuple[bytes, bytes]:
    """Return (code, its SHA-256) of a function that travels.

    Raises:
        PayloadError: the function, or something that it refers to, cannot be pickled.
    """
    let_module_travel(function)
    try:
        code: bytes = cloudpickle.dumps(function, 5)
    except PayloadError:
        raise
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        raise PayloadError(
            f"the function {name} cannot be pickled: {type(error).__name__}: {error}; look at the "
            "global and enclosing names that it uses, and create such objects inside the function"
        ) from error
    return code, hashlib.sha256(code).digest()


def let_module_travel(function: Callable[..., Any]) -> None:
    """Send what comes from a module that nobody else can import by value.

    Such are modules that pytest or a notebook loaded from a file that is not on the path; a
    reference to them would fail in every executor.
    """
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__module__", None) or ""
    module = sys.modules.get(name)
    if module is None or name == "__main__" or name in cloudpickle.list_registry_pickle_by_value():
        return
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return
    # Not importlib.util.find_spec: that takes what is loaded for importable.
    if not any(finder.find_spec(top, None) for finder in sys.meta_path):
        cloudpickle.register_pickle_by_value(module)


def task_class(
    function: Callable[..., Any], code_hash: bytes, options: Mapping[str, Any]
) -> TaskClass:
    """Build the class of a function's tasks; the options have been checked."""
    executor = options.get("executor")
    if executor is not None:
        kind = parse_executor(executor)
    else:
        is_async = inspect.iscoroutinefunction(function) and not (
            options.get("exclusive") or _window(options)
        )
        kind = ExecutorKind.ASYNC if is_async else ExecutorKind.PROCESS
    retries = options.get("max_retries")
    own = _alternative(options)
    return TaskClass(
        function=options.get("name") or function_name(function),
        code_hash=code_hash,
        resources=own.resources,
        labels=own.labels,
        label_selector=own.label_selector,
        label_selector_soft=own.label_selector_soft,
        fallback=_fallback(options),
        priority=options.get("priority", 0),
        inherits_priority="priority" not in options,
        max_retries=DEFAULT_RETRIES if retries is None else retries,
        inherits_retries=retries is None,
        retry_exceptions=exception_names(options.get("retry_exceptions", False)),
        retry_delay_s=options.get("retry_delay_s"),
        crash_limit=options.get("crash_limit") or DEFAULT_CRASH_LIMIT,
        timeout_s=options.get("timeout_s") or 0.0,
        queue_timeout_s=options.get("queue_timeout_s") or 0.0,
        total_timeout_s=options.get("total_timeout_s") or 0.0,
        codec=Codec.PICKLE,
        executor=kind,
        wait_for_resources=options.get("wait_for_resources", False),
        oom_retries=options.get("oom_retries") or 0,
        exclusive=options.get("exclusive", False),
        is_detached=options.get("lifetime") == "detached",
        num_returns=1 if _window(options) else options.get("num_returns", 1),
        stream_window=_window(options),
    )


def function_name(function: Callable[..., Any]) -> str:
    """Return a printable qualified name of any callable."""
    qualname = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None) or ""
    full = f"{module}.{qualname}" if module and module != "__main__" else qualname
    shown = "".join(c if c.isprintable() else "?" for c in full)
    return shown[-MAX_NAME:]
