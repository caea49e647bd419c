"""What tasks print, from executors to a person's terminal, through real heads and workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually, eventually

pytestmark = pytest.mark.slow

_NOT_FOUND = 5
_UNAVAILABLE = 3


def raw(cluster: Cluster, *arguments: str) -> bytes:
    """Run ``rustray logs ARGUMENTS`` into a pipe; return its bytes, or none while it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "rustray", "logs", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        env=cluster.environment(),
        check=False,
    )
    assert done.returncode in (0, _UNAVAILABLE), done.stderr
    return done.stdout


async def test_a_tasks_output_can_be_read_and_followed(tmp_path: Path) -> None:
    """Over two attempts and a restart of the head, until the worker is gone."""
    first = b"a begins %d\na has a child\n"
    rest = b"\xff\x00 no text\na ends"
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("w")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                spec = rustray.TaskSpec("chatter", [str(tmp_path), "a"], max_retries=1)
                task = await head.submit_task(spec)
                argv = ["-m", "rustray", "logs", task, "--follow", "--stdout"]
                follow = cluster.launch("logs", argv)
                await aeventually(lambda: first % 2 in follow.log.read_bytes(), 30)
                assert first % 1 == raw(cluster, task, "--attempt", "1", "--stdout")
                assert raw(cluster, task, "--stderr") == b"a grumbles 2\n"
                (tmp_path / "go").touch()
                assert follow.wait() == 0, follow.text()
                assert follow.log.read_bytes().endswith(first % 2 + rest)
                found = [r async for r in head.task_logs(task, stream="stdout")]
                assert b"".join(r.data for r in found) == first % 2 + rest
                assert {(r.worker_id, r.function) for r in found} == {(worker.node_id, "chatter")}
        cluster.restart_head()
        eventually(lambda: first % 2 + rest == raw(cluster, task, "--stdout"), 30)
        shown = json.loads(raw(cluster, task, "--json"))
        assert shown["task_id"] == task
        text = "".join(r["text"] for r in shown["records"] if r["stream"] == "stdout")
        assert text == (first % 2).decode() + "\\xff\x00 no text\na ends"
        unknown = cluster.run("logs", task, "--attempt", "9")
        assert unknown.returncode == _NOT_FOUND, unknown.stderr
        assert "attempts with output: 1, 2" in unknown.stderr
        worker.kill()

        def is_gone() -> bool:
            answer = cluster.run("logs", task)
            return answer.returncode == _NOT_FOUND and "which is gone" in answer.stderr

        eventually(is_gone, 30)


_PROGRAM = """
import subprocess, sys, rustray

@rustray.remote
def square(number):
    print("alike in all")
    print("number", number, file=sys.stderr)
    subprocess.run(["echo", f"child of {number}"], check=True)
    print("the end", end="")
    return number * number

settings = {"num_cpus": 2} if len(sys.argv) < 3 else {}
with rustray.init(*sys.argv[2:], log_to_driver=sys.argv[1] == "yes", **settings):
    print(rustray.get([square.remote(number) for number in range(3)]))
"""


def program(env: dict[str, str], *arguments: str) -> tuple[list[str], list[str]]:
    """Run a program to its end; return the lines of its stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=env, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def _check_lines(out: list[str], err: list[str], who: str) -> None:
    """Each line names its function, process and worker; the program's own is as it was."""
    assert "[0, 1, 4]" in out
    said = [re.fullmatch(rf"\(square {who}\) (.*)", line) for line in out if line != "[0, 1, 4]"]
    texts = sorted(found[1] for found in said if found is not None)
    assert len(texts) == len(said), out
    assert [text for text in texts if text.startswith("child")] == [
        f"child of {number}" for number in range(3)
    ]
    assert {"alike in all", "the end"} <= {text.partition(" [")[0] for text in texts}
    numbers = [re.fullmatch(rf"\(square {who}\) number (\d)", line) for line in err]
    assert sorted(found[1] for found in numbers if found is not None) == ["0", "1", "2"], err


def test_a_program_sees_what_its_tasks_print(tmp_path: Path) -> None:
    """On its own stdout and stderr, also what came just before its end; unless it says no."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        env = cluster.environment(RUSTRAY_DEDUP_LOGS="0")
        _check_lines(*program(env, "yes", cluster.address), r"pid=\d+, worker=a")
        assert program(env, "no", cluster.address) == (["[0, 1, 4]"], [])
        _check_lines(*program(env, "yes"), r"pid=\d+")
        assert program(env, "no") == (["[0, 1, 4]"], [])
