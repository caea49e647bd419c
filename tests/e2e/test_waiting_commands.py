"""Commands that wait, while the head is away or dies."""

from __future__ import annotations

from pathlib import Path

from helpers.cluster import Cluster
from helpers.waiting import eventually

_UNAVAILABLE = 3


def test_submit_waits_for_a_head_that_is_about_to_start(tmp_path: Path) -> None:
    """It says so once, and hands its task in as soon as there is one, at whatever port."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head().end()
        argv = ["-m", "rustray", "submit", "add", "1", "2", "--wait", "--timeout", "60"]
        command = cluster.launch("submit", [*argv, "--wait-for-resources"])
        eventually(lambda: "waiting up to" in command.text(), 20)
        cluster.start_head()
        cluster.start_worker("a")
        assert command.wait(60) == 0, command.text()
        lines = command.text().splitlines()
        assert lines[-1] == "3"
        assert sum("waiting up to" in line for line in lines) == 1
        assert "the head is back" in lines


def test_a_wait_goes_on_over_a_restart(tmp_path: Path) -> None:
    """Of `submit` and of `tasks get`, also where the new head is somewhere else."""
    with Cluster(tmp_path) as cluster:
        head = cluster.start_head()
        cluster.start_worker("a")
        argv = ["-m", "rustray", "submit", "hold", str(tmp_path), "1", "--wait"]
        submit = cluster.launch("submit", argv)
        eventually(lambda: (tmp_path / "runs-1").exists(), 20)
        [task] = cluster.json("tasks", "list")["tasks"]
        argv = ["-m", "rustray", "tasks", "get", task["task_id"], "--wait"]
        get = cluster.launch("get", argv)
        eventually(lambda: cluster.run("status").returncode == 0, 20)
        head.kill()
        eventually(lambda: all("waiting up to" in each.text() for each in (submit, get)), 20)
        cluster.start_head(port=cluster.port)
        (tmp_path / "go").touch()
        for command in (submit, get):
            assert command.wait(60) == 0, command.text()
            assert command.text().splitlines()[-1] == "1"
        assert (tmp_path / "runs-1").read_text() == "x"


def test_the_limit_holds_without_a_head(tmp_path: Path) -> None:
    """Exit code 3, what is missing, and no traceback; without --wait it does not wait at all."""
    with Cluster(tmp_path) as cluster:
        for command in (
            ("submit", "add", "1", "2", "--wait", "--timeout", "1"),
            ("submit", "add", "1", "2"),
            ("tasks", "get", "ab" * 16, "--timeout", "1"),
        ):
            answer = cluster.run(*command)
            assert answer.returncode == _UNAVAILABLE, answer.stderr
            assert ("waiting up to 1 s" in answer.stderr) == ("--timeout" in command)
            assert "no head" in answer.stderr
            assert "Traceback" not in answer.stderr


def test_an_empty_journal_is_exported_as_nothing_with_a_note(tmp_path: Path) -> None:
    """Nothing on stdout, for a program; a word for a person; no error."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head().end()
        answer = cluster.run("state", "export")
        assert (answer.returncode, answer.stdout) == (0, "")
        assert "holds no tasks" in answer.stderr
