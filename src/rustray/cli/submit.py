"""``rustray submit``: one task for a registered function."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from rustray.cli import exits
from rustray.cli.call import Call
from rustray.cli.patience import Patience, with_head
from rustray.cli.results import show_result, wait_with_progress
from rustray.cli.tasks import TimeoutFlag
from rustray.cli.values import (
    is_negative_number,
    parse_amounts,
    parse_argument,
    parse_duration,
    parse_keyword_arguments,
    parse_labels,
)
from rustray.common import ids
from rustray.common.durability import parse_durability
from rustray.common.errors import CommunicationError, HeadUnavailable, UsageProblem
from rustray.rpc.api import HeadApi, RawResult, SubmitItem, SubmitVerdict
from rustray.task.class_of import class_of
from rustray.task.codec import encode_call
from rustray.task.needs import ResourceRequirements
from rustray.task.spec import DEFAULT_CRASH_LIMIT, Codec, TaskSpec, deadline_unix_s

_FLAGS: Final = (
    "--kwarg", "--wait", "--timeout", "--cpus", "--memory-mb", "--gpus", "--priority",
    "--max-retries", "--run-timeout", "--task-id", "--head", "--token-file", "--state-dir",
    "--wait-for-resources", "--ca-file", "--json", "--help", "--label", "--resource",
    "--queue-timeout", "--total-timeout", "--retry-exception", "--retry-delay", "--crash-limit",
    "--oom-retries", "--exclusive", "--detached",
    "--deadline", "--idempotency-key", "--on-duplicate", "--durability",
    "--label-selector", "--label-selector-soft", "--fallback",
)  # fmt: skip

Function = Annotated[str, typer.Argument(metavar="FUNCTION", help="Name of the function.")]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ARGS]...", help="JSON where it parses as JSON, else text."),
]
Keywords = Annotated[
    list[str] | None, typer.Option("--kwarg", metavar="NAME=VALUE", help="Keyword argument.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait and print the result.")]
Cpus = Annotated[float | None, typer.Option("--cpus", help="Cores that it needs.")]
Memory = Annotated[float | None, typer.Option("--memory-mb", help="Megabytes that it needs.")]
Gpus = Annotated[float | None, typer.Option("--gpus", help="GPUs that it needs.")]
Priority = Annotated[int, typer.Option("--priority", help="Higher runs first.")]
Retries = Annotated[
    int | None, typer.Option("--max-retries", help="Re-runs after a lost worker; -1: no limit.")
]
RetryExceptions = Annotated[
    list[str] | None,
    typer.Option(
        "--retry-exception", metavar="NAME", help="Re-run it after this exception; 'all': any."
    ),
]
RetryDelay = Annotated[
    str | None,
    typer.Option("--retry-delay", metavar="TIME", help="Pause before such a re-run."),
]
CrashLimit = Annotated[
    int, typer.Option("--crash-limit", help="Executors that it may kill; -1: no limit.")
]
OomRetries = Annotated[
    int, typer.Option("--oom-retries", help="Re-runs after it outgrew --memory-mb; -1: no limit.")
]
RunTimeout = Annotated[
    str | None, typer.Option("--run-timeout", metavar="TIME", help="Limit of one attempt's run.")
]
QueueTimeout = Annotated[
    str | None, typer.Option("--queue-timeout", metavar="TIME", help="Limit of its wait to start.")
]
TotalTimeout = Annotated[
    str | None, typer.Option("--total-timeout", metavar="TIME", help="Limit of all of it.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="K=V", help="A label that its worker must carry."),
]
Resources = Annotated[
    list[str] | None,
    typer.Option("--resource", metavar="K=N", help="How much it needs of a named resource."),
]
Selectors = Annotated[
    list[str] | None,
    typer.Option(
        "--label-selector", metavar="K=EXPR", help="What a label must be: v, !v, in(a,b), !in(a,b)."
    ),
]
SoftSelectors = Annotated[
    list[str] | None,
    typer.Option("--label-selector-soft", metavar="K=EXPR", help="What it had better be."),
]
Fallbacks = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback",
        metavar="JSON",
        help='What does too if that is busy: \'{"gpus": 0, "cpu_cores": 4}\'; the first that fits.',
    ),
]
Queue = Annotated[
    bool, typer.Option("--wait-for-resources", help="Queue it though no present worker can run it.")
]
Exclusive = Annotated[
    bool, typer.Option("--exclusive", help="Never let two attempts of it overlap.")
]
GivenId = Annotated[
    str | None, typer.Option("--task-id", metavar="ID", help="Id to use; the same id runs once.")
]

Key = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key", metavar="KEY", help="Your name for it; the same key runs once."
    ),
]
OnDuplicate = Annotated[
    str,
    typer.Option(
        "--on-duplicate",
        metavar="use-existing|reject",
        help="What to do if its id or key is there already.",
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option(
        "--deadline", metavar="WHEN", help="When it is ended: 2030-12-31T18:00+01:00, Unix time."
    ),
]

Detached = Annotated[
    bool, typer.Option("--detached", help="Keep its result for its full time, whoever has it.")
]
Level = Annotated[
    str | None,
    typer.Option(
        "--durability",
        metavar="LEVEL",
        help="What it survives once accepted: full, process or memory; else the head's level.",
    ),
]


async def submit(  # noqa: PLR0913 - a command line has as many flags as it has
    call: Call,
    function: Function,
    *,
    args: Arguments = None,
    kwarg: Keywords = None,
    wait: Wait = False,
    limit: TimeoutFlag = None,
    cpus: Cpus = None,
    memory_mb: Memory = None,
    gpus: Gpus = None,
    priority: Priority = 0,
    max_retries: Retries = None,
    retry_exception: RetryExceptions = None,
    retry_delay: RetryDelay = None,
    crash_limit: CrashLimit = DEFAULT_CRASH_LIMIT,
    oom_retries: OomRetries = 0,
    exclusive: Exclusive = False,
    detached: Detached = False,
    run_timeout: RunTimeout = None,
    queue_timeout: QueueTimeout = None,
    total_timeout: TotalTimeout = None,
    label: Labels = None,
    resource: Resources = None,
    label_selector: Selectors = None,
    label_selector_soft: SoftSelectors = None,
    fallback: Fallbacks = None,
    task_id: GivenId = None,
    idempotency_key: Key = None,
    on_duplicate: OnDuplicate = "use-existing",
    deadline: Deadline = None,
    durability: Level = None,
    wait_for_resources: Queue = False,
) -> int:
    """Submit a task for a registered function, and print its id (or its result)."""
    flags = locals()
    limit_s = parse_duration(limit, "--timeout") if limit is not None else None
    spec = _spec_of(flags)
    item = item_of(spec, os.urandom(ids.PREFIX_BYTES))
    if wait or limit_s is not None:
        return await _submit_and_wait(call, item, Patience(call.output, limit_s))
    async with call.head() as api:
        verdict = await _submit(api, item)
    shown = {
        "task_id": verdict.task_id,
        "deduplicated": verdict.deduplicated,
        "durability": verdict.durability.label,
    }
    call.output.value(shown, lambda out: out.text(verdict.task_id))
    return exits.OK


async def _submit(api: HeadApi, item: SubmitItem) -> SubmitVerdict:
    verdict = (await api.submit([item]))[0]
    if verdict.error is not None:
        raise verdict.error
    return verdict


async def _submit_and_wait(call: Call, item: SubmitItem, patience: Patience) -> int:
    """Submit a task and print its result, across restarts of the head.

    Handing it in again is safe, for it has its id from the start. Only where the user wants an
    error for a task that exists already, a lost answer leaves open whether this one does.
    """
    task_ids: list[str] = []
    is_asked = False

    async def go_on(api: HeadApi) -> RawResult:
        nonlocal is_asked
        if not task_ids:
            if is_asked and item.rejects_duplicate:
                raise CommunicationError(
                    "the head went away before it had answered: look whether it has the task "
                    "(rustray tasks list) before you submit it again"
                )
            is_asked = True
            task_ids.append((await _submit(api, item)).task_id)
        return await wait_with_progress(api, task_ids[0], patience, call.output)

    try:
        result = await with_head(call, patience, go_on)
    except HeadUnavailable:
        if task_ids:
            call.output.note(f"task {task_ids[0]} was accepted: rustray tasks get {task_ids[0]}")
        raise
    return show_result(result, call.output)


def _spec_of(flags: Mapping[str, Any]) -> TaskSpec:
    """Put together what the flags of `submit` say, by their names there."""
    texts = list(flags["args"] or [])
    _refuse_unknown_flags(texts, sys.argv)
    exceptions = tuple(flags["retry_exception"] or ())
    try:
        return TaskSpec(
            flags["function"],
            [parse_argument(text, f"argument {n}") for n, text in enumerate(texts, start=1)],
            parse_keyword_arguments(list(flags["kwarg"] or [])),
            _needs(flags),
            priority=flags["priority"],
            max_retries=flags["max_retries"],
            timeout_s=_seconds(flags["run_timeout"], "--run-timeout"),
            queue_timeout_s=_seconds(flags["queue_timeout"], "--queue-timeout"),
            total_timeout_s=_seconds(flags["total_timeout"], "--total-timeout"),
            task_id=flags["task_id"],
            wait_for_resources=flags["wait_for_resources"],
            retry_exceptions="all" in exceptions or exceptions,
            retry_delay_s=_delay(flags["retry_delay"]),
            crash_limit=flags["crash_limit"],
            oom_retries=flags["oom_retries"],
            deadline=_deadline(flags["deadline"]),
            idempotency_key=flags["idempotency_key"],
            on_duplicate=flags["on_duplicate"].replace("-", "_"),
            exclusive=flags["exclusive"],
            lifetime="detached" if flags["detached"] else None,
            durability=flags["durability"],
        )
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def item_of(spec: TaskSpec, prefix: bytes) -> SubmitItem:
    """Turn a spec into a unary submit with JSON arguments.

    Args:
        spec: The task.
        prefix: Ten random bytes for the id of a task that brings none.

    Raises:
        PayloadError: an argument cannot travel as JSON.
    """
    sequence = 0
    if spec.task_id is not None:
        prefix, sequence = ids.split_task_id(spec.task_id)
    return SubmitItem(
        prefix,
        sequence,
        class_of(spec, Codec.JSON),
        encode_call(Codec.JSON, tuple(spec.args), dict(sorted(spec.kwargs.items()))),
        uses_default_resources=spec.resource_requirements is None,
        uses_default_retries=spec.max_retries is None,
        deadline_unix_s=deadline_unix_s(spec.deadline),
        idempotency_key=spec.idempotency_key or "",
        rejects_duplicate=spec.on_duplicate == "reject",
        durability=parse_durability(spec.durability),
    )


def _needs(flags: Mapping[str, Any]) -> ResourceRequirements | None:
    given: dict[str, Any] = {
        "cpu_cores": flags["cpus"],
        "memory_mb": flags["memory_mb"],
        "gpus": flags["gpus"],
        "resources": parse_amounts(flags["resource"] or [], "--resource") or None,
        "labels": parse_labels(flags["label"] or [], "--label") or None,
        "label_selector": parse_labels(flags["label_selector"] or [], "--label-selector") or None,
        "label_selector_soft": parse_labels(
            flags["label_selector_soft"] or [], "--label-selector-soft"
        )
        or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    others = [_fallback_of(text, given) for text in flags["fallback"] or ()]
    if others:
        given["fallback_strategy"] = others
    return ResourceRequirements(**given) if given else None


def _fallback_of(text: str, own: Mapping[str, Any]) -> ResourceRequirements:
    """Read one alternative; what it does not name is as the task itself asks for it."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    known = {each.name for each in fields(ResourceRequirements)} - {"fallback_strategy"}
    if not isinstance(found, dict) or not found or set(found) - known:
        raise UsageProblem(
            f"--fallback {ascii(text)[:60]} must be a JSON object of some of: "
            + ", ".join(sorted(known))
        )
    return ResourceRequirements(**{**own, **found})


def _seconds(text: str | None, flag: str) -> float | None:
    return parse_duration(text, flag) if text is not None else None


def _deadline(text: str | None) -> float | datetime | None:
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return float(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UsageProblem(
            f"--deadline {ascii(text)[:60]} is no moment: "
            "write 2030-12-31T18:00+01:00, or Unix time"
        ) from None


def _delay(text: str | None) -> float | None:
    return 0.0 if text in ("0", "0s") else _seconds(text, "--retry-delay")


def _refuse_unknown_flags(texts: Sequence[str], argv: Sequence[str]) -> None:
    # Unknown flags arrive as arguments, because -5 has to; what stands after `--` is meant so.
    free = set(argv[argv.index("--") + 1 :]) if "--" in argv else set()
    for text in texts:
        if not text.startswith("-") or text == "-" or text in free or is_negative_number(text):
            continue
        near = difflib.get_close_matches(text.partition("=")[0], _FLAGS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageProblem(
            f"no such option: {ascii(text)[1:-1][:60]}{hint} "
            "(an argument that starts with - goes after --)"
        )
