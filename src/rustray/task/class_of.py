"""From a `TaskSpec`, which a person writes, to the class that its task belongs to."""

from __future__ import annotations

from typing import Final

from rustray.task.needs import ResourceRequirements
from rustray.task.retries import exception_names
from rustray.task.spec import DEFAULT_RETRIES, Codec, TaskClass, TaskSpec
from rustray.task.streams import window_of

_ONE_CORE: Final = ResourceRequirements().to_alternative()


def class_of(spec: TaskSpec, codec: Codec) -> TaskClass:
    """Return the class of a registered function's task, its arguments encoded so."""
    needs = spec.resource_requirements
    own = _ONE_CORE if needs is None else needs.to_alternative()
    return TaskClass(
        function=spec.function_name,
        nargs=len(spec.args),
        kwarg_names=tuple(sorted(spec.kwargs)),
        resources=own.resources,
        labels=own.labels,
        label_selector=own.label_selector,
        label_selector_soft=own.label_selector_soft,
        fallback=() if needs is None else needs.to_fallback(),
        priority=spec.priority,
        max_retries=DEFAULT_RETRIES if spec.max_retries is None else spec.max_retries,
        retry_exceptions=exception_names(spec.retry_exceptions),
        retry_delay_s=spec.retry_delay_s,
        crash_limit=spec.crash_limit,
        oom_retries=spec.oom_retries or 0,
        exclusive=spec.exclusive,
        is_detached=spec.lifetime == "detached",
        timeout_s=spec.timeout_s or 0.0,
        queue_timeout_s=spec.queue_timeout_s or 0.0,
        total_timeout_s=spec.total_timeout_s or 0.0,
        codec=codec,
        wait_for_resources=spec.wait_for_resources,
        stream_window=window_of(spec.num_returns, spec.generator_backpressure_num_objects),
    )
