"""Client commands against a head in memory: output, exit codes, group F of the corpus."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import sys
from dataclasses import replace

import pytest

from rustray.cli import call, main
from rustray.common import errors, ids
from rustray.rpc.api import RawResult
from rustray.task.failures import decode_failure, encode_failure
from rustray.task.spec import Codec
from rustray.task.state import TaskState
from rustray.task.views import Explanation
from unit.cli.fake_head import ESC, FakeHead, a_task

UNKNOWN = "f" * 32


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> FakeHead:
    """Return a head that every client command of this test talks to."""
    fake = FakeHead()
    monkeypatch.setattr(call, "opener", fake.open)
    return fake


@pytest.fixture
def rustray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command line: (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rustray", *argv])
        code = main.run(list(argv))
        captured = capsys.readouterr()
        assert "Traceback (most recent" not in captured.err
        return code, captured.out, captured.err

    return run


def test_submit_prints_the_id_of_the_task(head: FakeHead, rustray):
    """Submit without --wait prints a task id and nothing else."""
    code, out, err = rustray("submit", "add", "1", "2")
    assert (code, err) == (0, "")
    ids.split_task_id(out.strip())
    assert head.submitted[0][:3] == ("add", (1, 2), {})
    assert head.submitted[0][3].uses_default_resources
    assert head.submitted[0][3].uses_default_retries


def test_arguments_are_json_where_they_parse(head: FakeHead, rustray):
    """Each argument is JSON if it parses, else text; numbers may be negative."""
    rustray("submit", "f", "-5", '{"a": [1]}', "true", "plain text", "NaN", "--kwarg", "k=[1, 2]")
    assert head.submitted[0][1:3] == (
        (-5, {"a": [1]}, True, "plain text", "NaN"),
        {"k": [1, 2]},
    )


def test_after_two_dashes_everything_is_an_argument(head: FakeHead, rustray):
    """Text that looks like a flag is an argument after --."""
    assert rustray("submit", "f", "--", "--json", "--token")[0] == 0
    assert head.submitted[0][1] == ("--json", "--token")


def test_submit_passes_what_the_flags_say(head: FakeHead, rustray):
    """Resources, priority, retries, limits and the id reach the head."""
    task_id = "0" * 31 + "7"
    rustray(
        "submit", "f", "--cpus", "0.5", "--memory-mb", "100", "--priority", "-3",
        "--max-retries", "9", "--run-timeout", "2m", "--task-id", task_id, "--oom-retries", "2",
        "--exclusive",
    )  # fmt: skip
    item = head.submitted[0][3]
    found = item.task_class
    assert found.resources.amounts() == {"cpu_cores": 0.5, "memory_mb": 100}
    assert (found.priority, found.max_retries, found.oom_retries) == (-3, 9, 2)
    assert found.exclusive
    assert found.timeout_s == 120.0
    assert ids.task_id(item.prefix, item.sequence) == task_id
    assert not item.uses_default_resources
    assert not item.uses_default_retries
    rustray(
        "submit", "f", "--retry-exception", "OSError", "--retry-exception", "app.Busy",
        "--retry-delay", "0", "--crash-limit", "7", "--idempotency-key", "order 5",
        "--on-duplicate", "reject", "--deadline", "2030-01-01T00:00:00+00:00",
    )  # fmt: skip
    item = head.submitted[1][3]
    found = item.task_class
    assert found.retry_exceptions == ("OSError", "app.Busy")
    assert (found.retry_delay_s, found.crash_limit) == (0.0, 7)
    assert (item.idempotency_key, item.rejects_duplicate) == ("order 5", True)
    assert item.deadline_unix_s == 1_893_456_000.0
    rustray("submit", "f", "--retry-exception", "all", "--deadline", "4e9", "--detached")
    item = head.submitted[2][3]
    assert (item.task_class.retry_exceptions, item.deadline_unix_s) == (True, 4e9)
    assert item.task_class.is_detached
    rustray(
        "submit", "f", "--gpus", "1", "--label-selector", "zone=in(b,a)", "--label-selector",
        "gpu=!t4", "--label-selector-soft", "disk=ssd", "--fallback", '{"gpus": 0, "cpu_cores": 4}',
        "--fallback", '{"label_selector": {}}',
    )  # fmt: skip
    found = head.submitted[3][3].task_class
    assert found.label_selector == (("gpu", "!t4"), ("zone", "in(a,b)"))
    assert found.label_selector_soft == (("disk", "ssd"),)
    first, second = found.fallback
    assert first.resources.amounts() == {"cpu_cores": 4}
    assert (first.label_selector, second.label_selector) == (found.label_selector, ())
    assert second.resources == found.resources


def test_submit_and_wait_prints_the_value(head: FakeHead, rustray):
    """With --wait the value goes to stdout, as JSON unless it is text."""
    assert rustray("submit", "add", "1", "2", "--wait")[:2] == (0, "3\n")
    code, out, _ = rustray("submit", "add", "1", "2", "--wait", "--json")
    shown = json.loads(out)
    assert (code, shown["value"], shown["state"], shown["error"]) == (0, 3, "SUCCEEDED", None)


def test_a_failed_task_is_exit_code_1(head: FakeHead, rustray):
    """The error of a failed task goes to stderr without its escape sequences."""
    code, out, err = rustray("submit", "fail", "--wait")
    assert (code, out) == (1, "")
    assert "boom" in err
    assert "\x1b" not in err
    assert "owned" not in err
    code, out, _ = rustray("submit", "fail", "--wait", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "TASK_FAILED")


def test_a_wait_that_ends_first_is_exit_code_124(head: FakeHead, rustray):
    """--timeout ends the wait, not the task, and says how to go on."""
    code, _, err = rustray("submit", "hang", "--timeout", "10ms")
    assert code == 124
    assert "rustray tasks get" in err


def test_get_of_an_unfinished_task_shows_its_state(head: FakeHead, rustray):
    """Without --wait, tasks get answers at once."""
    task_id = rustray("submit", "hang")[1].strip()
    assert rustray("tasks", "get", task_id)[:2] == (0, f"{task_id} RUNNING\n")
    assert json.loads(rustray("tasks", "get", task_id, "--json")[1])["value"] is None


def test_get_of_what_has_ended_brings_its_value(head: FakeHead, rustray, monkeypatch):
    """Bug: a task whose value stays with a worker was RUNNING for whoever did not wait."""
    task_id = rustray("submit", "add", "1", "2")[1].strip()
    ended, asked = head.results[task_id], []

    async def get_result(name: str, timeout_s: float | None) -> RawResult:
        asked.append(timeout_s)
        return ended if timeout_s else replace(ended, state=TaskState.RUNNING, payload=b"")

    async def explain(name: str) -> Explanation:
        return Explanation(name, TaskState.SUCCEEDED, "the task has ended")

    monkeypatch.setattr(head, "get_result", get_result)
    monkeypatch.setattr(head, "explain", explain)
    assert rustray("tasks", "get", task_id)[:2] == (0, "3\n")
    assert asked[0] == 0.0


def test_get_says_whose_failure_it_is(head: FakeHead, rustray):
    """Of a task that did not run, for what it takes has failed."""
    task_id = rustray("submit", "fail")[1].strip()
    failed = head.results[task_id]
    info = replace(decode_failure(failed.payload), origin="ab" * 16)
    head.results[task_id] = replace(failed, payload=encode_failure(info))
    _, _, err = rustray("tasks", "get", task_id)
    assert f"did not run: it needs the result of task {'ab' * 16}, which failed" in err
    shown = json.loads(rustray("tasks", "get", task_id, "--json")[1])
    assert shown["error"]["origin"] == "ab" * 16


def test_get_shows_what_a_running_task_said(head: FakeHead, rustray):
    """How far it is, and its words, in one line and cleaned."""
    words = f"row 3\nof 4 {ESC}"
    running = RawResult(UNKNOWN, TaskState.RUNNING, Codec.JSON, b"", "w", 1, 0.75, words)
    head.results[UNKNOWN] = running
    code, out, _ = rustray("tasks", "get", UNKNOWN)
    assert (code, out.strip()) == (0, f"{UNKNOWN} RUNNING 75% row 3 of 4")
    shown = json.loads(rustray("tasks", "get", UNKNOWN, "--json")[1])
    assert (shown["progress"], shown["message"]) == (0.75, words)


def test_a_pickled_result_is_described_not_loaded(head: FakeHead, rustray):
    """Looking at a result never runs code that came with it."""
    payload = b"cos\nsystem\n(S'touch /tmp/owned'\ntR."
    head.results[UNKNOWN] = RawResult(UNKNOWN, TaskState.SUCCEEDED, Codec.PICKLE, payload, "w", 1)
    code, out, _ = rustray("tasks", "get", UNKNOWN)
    assert code == 0
    assert f"{len(payload)} bytes" in out


def test_tasks_list_pages_through_everything(head: FakeHead, rustray):
    """F17: a long list comes page by page, as one JSON value or as lines."""
    head.tasks = [a_task(number) for number in range(2_500)]
    code, out, _ = rustray("tasks", "list", "--limit", "0", "--json")
    shown = json.loads(out)
    assert (code, len(shown["tasks"]), shown["total"]) == (0, 2_500, 2_500)
    assert shown["tasks"][0]["submitted"] == "2023-11-14T22:13:20.500Z"
    code, out, err = rustray("tasks", "list", "--limit", "3")
    assert len(out.splitlines()) == 4
    assert "3 of 2500" in err


def test_an_empty_list_is_valid_json(head: FakeHead, rustray):
    """No tasks is an empty list, not broken JSON."""
    shown = json.loads(rustray("tasks", "list", "--json")[1])
    assert shown == {"tasks": [], "total": 0}


def test_names_are_shown_without_escape_sequences(head: FakeHead, rustray):
    """F10: what somebody else named cannot steer the terminal."""
    head.tasks = [a_task(1, function="a\x1b[2Jb\u202ec\nd")]
    out = rustray("tasks", "list")[1]
    assert "ab\\u202ec\\nd" in out
    assert "\x1b" not in out
    assert "\x1b" not in rustray("workers", "list")[1]
    assert "\x1b" not in rustray("workers", "list", "--json")[1]


def test_objects_are_listed_and_counted(head: FakeHead, rustray):
    """The largest first; what is left out is said, and what is lost."""
    shown = json.loads(rustray("objects", "list", "--limit", "1", "--json")[1])
    assert [one["object_id"] for one in shown["objects"]] == ["o-2"]
    assert shown["total"] == 2
    out = rustray("objects", "list", "--limit", "1")[1]
    assert "w-1 (lost)" in out
    assert "1 more, all smaller" in out
    assert "\x1b" not in out + rustray("objects", "stats")[1]
    assert json.loads(rustray("objects", "stats", "--json")[1])["workers"][0]["bytes"] == 3_000_000
    assert rustray("objects", "list", "--limit", "0")[0] == 2


def test_cancel_has_a_verdict_per_task(head: FakeHead, rustray):
    """One unknown task does not hide the others, and shows in the exit code."""
    task_id = rustray("submit", "hang")[1].strip()
    assert rustray("tasks", "cancel", task_id)[:2] == (0, f"{task_id} CANCELLED\n")
    code, out, _ = rustray("tasks", "cancel", task_id, UNKNOWN, "--json")
    assert code == 5
    assert [task["state"] for task in json.loads(out)["tasks"]] == ["CANCELLED", None]


def test_explain_says_why(head: FakeHead, rustray):
    """Explain shows summary, place in the queue, a reason per worker and advice."""
    out = rustray("tasks", "explain", UNKNOWN)[1]
    for part in ("it waits", "3", "needs 4 cores", "add a worker"):
        assert part in out
    assert json.loads(rustray("tasks", "explain", UNKNOWN, "--json")[1])["position"] == 3


def test_status_has_head_workers_and_tasks(head: FakeHead, rustray):
    """Status --json has the three parts that programs rely on."""
    shown = json.loads(rustray("status", "--json")[1])
    assert shown["head"]["cluster_id"] == "c1"
    assert shown["workers"][0]["worker_id"] == "w-1"
    assert shown["tasks"] == {"QUEUED": 0, "SUCCEEDED": 7}
    out = rustray("status")[1]
    assert "7 succeeded" in out
    assert "w-1" in out


def test_drain_asks_the_head(head: FakeHead, rustray):
    """Workers drain passes the id, and an unknown one is exit code 5."""
    assert rustray("workers", "drain", "w-1")[0] == 0
    assert head.drained == ["w-1"]
    assert rustray("workers", "drain", "w-2")[0] == 5


def test_token_create_prints_the_token_alone(head: FakeHead, rustray):
    """Stdout of token create can go straight into a file."""
    code, out, _ = rustray("token", "create", "--role", "submit", "--ttl", "8h", "--allow-code")
    assert (code, out) == (0, "header.payload.signature\n")
    assert head.created == [("submit", 28_800.0, True)]


def test_without_ttl_the_head_says_how_long_a_token_is_good(head: FakeHead, rustray):
    """--json shows what it has chosen."""
    claims = base64.urlsafe_b64encode(b'{"iat": 100, "exp": 7300}').decode().rstrip("=")
    head.token = f"header.{claims}.signature"
    code, out, _ = rustray("token", "create", "--role", "submit", "--json")
    assert (code, head.created) == (0, [("submit", 0.0, False)])
    assert json.loads(out) == {"role": "submit", "ttl_s": 7200.0, "token": head.token}
    out = rustray("token", "create", "--role", "submit", "--ttl", "8h", "--json")[1]
    assert json.loads(out)["ttl_s"] == 28_800.0


def test_the_shared_flags_reach_the_connection(head: FakeHead, rustray):
    """--head, --token-file and --state-dir are the same on every client command."""
    rustray("status", "--head", "rustray://h:1", "--token-file", "t", "--state-dir", "s")
    target = head.targets[0]
    assert (target.head, target.token_file, target.state_dir) == ("rustray://h:1", "t", "s")


REFUSALS = [
    (errors.HeadUnavailable("not there"), 3, "HEAD_UNAVAILABLE"),
    (errors.CommunicationError("wrong CA"), 3, "COMMUNICATION"),
    (errors.AuthenticationError("expired"), 4, "UNAUTHENTICATED"),
    (errors.AuthorizationError("not your role"), 4, "PERMISSION_DENIED"),
    (errors.ConfigError("bad"), 2, "CONFIG"),
    (errors.ResourceExhausted("full"), 3, "RESOURCE_EXHAUSTED"),
]


@pytest.mark.parametrize(("refusal", "expected", "name"), REFUSALS)
def test_each_refusal_has_its_exit_code(head: FakeHead, rustray, refusal, expected, name):
    """F4, F9: errors of the connection become an exit code, a sentence, or valid JSON."""
    head.refusal = refusal
    code, out, err = rustray("status")
    assert (code, out) == (expected, "")
    assert err == f"error: {refusal}\n"
    code, out, _ = rustray("status", "--json")
    assert code == expected
    assert json.loads(out) == {"error": {"code": name, "message": str(refusal)}}


USAGE = [
    pytest.param(("submit", "f", "--deadline", "soon"), ["'soon'", "2030-12-31"], id="deadline"),
    pytest.param(
        ("submit", "f", "--deadline", "2030-01-01T00:00"), ["time zone"], id="deadline-zone"
    ),
    pytest.param(("submit", "f", "--on-duplicate", "x"), ["use_existing"], id="on-duplicate"),
    pytest.param(("submit", "f", "--retry-exception", "1x"), ["1x"], id="exception"),
    pytest.param(("submit", "f", "--crash-limit", "0"), ["crash_limit"], id="crash-limit"),
    pytest.param(
        ("submit", "f", "--idempotency-key", "k", "--task-id", "0" * 32), ["not both"], id="ids"
    ),
    pytest.param((), ["command is missing", "head", "worker"], id="F1"),
    pytest.param(("tasks",), ["command is missing", "explain"], id="F1-noun"),
    pytest.param(("statsu",), ["'status'"], id="F2-command"),
    pytest.param(("status", "--jsno"), ["--json"], id="F2-flag"),
    pytest.param(("submit", "f", "--wiat"), ["--wiat", "--wait"], id="F2-submit"),
    pytest.param(("head", "--prot", "1"), ["--port"], id="F2-head"),
    pytest.param(("worker", "--cpu", "1"), ["--cpus"], id="F2-worker"),
    pytest.param(("head", "--port"), ["--port"], id="F2-value-missing"),
    pytest.param(("head", "extra"), ["extra"], id="F2-extra"),
    pytest.param(("head", "--port", "99999"), ["node.head_port", "flag --port"], id="F14-range"),
    pytest.param(("head", "--port", "abc"), ["node.head_port", "'abc'"], id="F14-text"),
    pytest.param(("head", "--address", "0.0.0.0", "--no-auth"), ["0.0.0.0"], id="F15"),
    pytest.param(("status", "--token", "eyJ"), ["--token-file", "RUSTRAY_TOKEN"], id="F6"),
    pytest.param(("status", "--token=eyJ"), ["--token-file"], id="F6-equals"),
    pytest.param(("tasks", "get", "xyz"), ["'xyz'", "32 hexadecimal"], id="task-id"),
    pytest.param(("tasks", "list", "--state", "DONE"), ["DONE", "SUCCEEDED"], id="state"),
    pytest.param(("tasks", "list", "--limit", "-1"), ["--limit"], id="limit"),
    pytest.param(("token", "create", "--role", "root"), ["root", "worker, submit"], id="role"),
    pytest.param(
        ("token", "create", "--role", "submit", "--audience", "moon"),
        ["moon", "head, worker"],
        id="audience",
    ),
    pytest.param(("token", "create"), ["--role"], id="role-missing"),
    pytest.param(
        ("token", "create", "--role", "submit", "--ttl", "-5m"), ["--ttl"], id="F16-negative"
    ),
    pytest.param(
        ("token", "create", "--role", "submit", "--ttl", "1e9h"), ["--ttl"], id="F16-exponent"
    ),
    pytest.param(
        ("token", "create", "--role", "submit", "--ttl", "٥m"), ["--ttl"], id="F16-digits"
    ),
    pytest.param(("submit", "f", "--kwarg", "novalue"), ["NAME=VALUE"], id="kwarg"),
    pytest.param(("submit", "f", "--kwarg", "a=1", "--kwarg", "a=2"), ["twice"], id="kwarg-twice"),
    pytest.param(("submit", "f", "--cpus", "-1"), ["negative"], id="C10-negative"),
    pytest.param(("submit", "f", "--cpus", "nan"), ["finite"], id="C10-nan"),
    pytest.param(("submit", ""), ["function_name"], id="C8-empty"),
    pytest.param(("submit", "f" * 300), ["256"], id="C8-long"),
    pytest.param(("submit", "f", "--priority", str(2**31)), ["priority"], id="C14"),
    pytest.param(("submit", "f", "--max-retries", "-2"), ["max_retries"], id="C13"),
    pytest.param(("submit", "f", "--oom-retries", "-2"), ["oom_retries"], id="C13-oom"),
    pytest.param(("submit", "f", "--timeout", "0"), ["--timeout"], id="C12"),
    pytest.param(("submit", "f", "--task-id", "x"), ["not a task id"], id="C9"),
    pytest.param(("submit", "f", "a\udcff"), ["UTF-8"], id="F11"),
    pytest.param(("submit", "f", "[" * 100_000), ["nested"], id="deep"),
    pytest.param(("config", "show", "--config", "/nowhere/x.toml"), ["/nowhere/x.toml"], id="G1"),
]


@pytest.mark.parametrize(("argv", "expected"), USAGE)
def test_a_mistake_is_a_sentence_and_exit_code_2(head: FakeHead, rustray, argv, expected):
    """A user's mistake names itself, never ends in a traceback, and nothing is submitted."""
    code, out, err = rustray(*argv)
    assert (code, out) == (2, "")
    assert all(part in err for part in expected), err
    assert not head.submitted


@pytest.mark.parametrize(
    "argv",
    [("status", "--jsno", "--json"), ("nonsense", "--json"), ("tasks", "get", "xyz", "--json")],
)
def test_a_mistake_under_json_is_json(head: FakeHead, rustray, argv):
    """F9: with --json, even a mistake on the command line is one JSON value on stdout."""
    code, out, err = rustray(*argv)
    assert (code, err) == (2, "")
    assert json.loads(out)["error"]["code"] == "USAGE"


def test_a_token_on_the_command_line_is_not_repeated(head: FakeHead, rustray):
    """F6: the refusal does not print the token again."""
    _, _, err = rustray("status", "--token=eyJsecret")
    assert "eyJsecret" not in err


def test_ctrl_c_is_exit_code_130(head: FakeHead, rustray, monkeypatch):
    """F8: an interrupt while waiting ends with 130 and a word about the task."""

    async def interrupted(task_id: str, timeout_s: float | None) -> RawResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(head, "get_result", interrupted)
    code, _, err = rustray("submit", "hang", "--wait")
    assert code == 130
    assert "interrupted" in err


@pytest.mark.parametrize("error", [BrokenPipeError(), BrokenPipeError(errno.EPIPE, "as it is")])
def test_a_closed_pipe_is_quiet(head: FakeHead, rustray, monkeypatch, error: BrokenPipeError):
    """F7: a reader that left ends the command without a word.

    Regression: the framework knows the real error by its number, and made 1 (a task failed) of it.
    """

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", sys.stderr)  # the framework puts others in their places
    monkeypatch.setattr(sys, "stdout", Closed())
    assert main.run(["status"]) == 141


def test_output_survives_a_plain_ascii_terminal(head: FakeHead, monkeypatch):
    """F11: text that the stream cannot show is escaped instead of ending the command."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main.run(["submit", "echo", "大", "--wait"]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b'["\\u5927"]\n'


def test_an_unexpected_error_is_called_a_bug(head: FakeHead, monkeypatch, capsys):
    """Our own bug is reported as one, with the traceback that a report needs."""

    async def broken() -> None:
        raise ZeroDivisionError("1/0")

    monkeypatch.setattr(head, "status", broken)
    assert main.run(["status"]) == 1
    assert "a bug in rustray" in capsys.readouterr().err


def test_help_and_version_are_exit_code_0(rustray):
    """Asking for help is no mistake."""
    code, out, _ = rustray("head", "--help")
    assert code == 0
    assert "--state-dir" in out
    assert rustray("submit", "--help")[0] == 0
    assert rustray("--version")[0] == 0


def test_config_show_prints_value_and_origin(rustray, monkeypatch, tmp_path):
    """Config show says where each value came from, and check says ok."""
    path = tmp_path / "my.toml"
    path.write_text("[scheduler]\nmax_retries = 5\n")
    monkeypatch.setenv("RUSTRAY_NODE__HEAD_PORT", "9000")
    code, out, _ = rustray("config", "show", "--config", str(path), "--json")
    settings = json.loads(out)["settings"]
    assert code == 0
    assert settings["scheduler.max_retries"]["where"] == f"{path}:2"
    assert settings["node.head_port"]["origin"] == "env"
    assert rustray("config", "check", str(path))[:2] == (0, f"ok ({path})\n")
    assert os.environ["RUSTRAY_NODE__HEAD_PORT"] in rustray("config", "show")[1]
