"""What running tasks say: shown, published, and dropped where nobody may say it."""

from __future__ import annotations

from helpers.scheduling import PREFIX, Bench, NaiveWorker
from rustray.scheduler import commands as c
from rustray.scheduler.news import NEWS_PER_S
from rustray.task.frames import LeaseNews
from rustray.task.state import TaskState


def say(
    bench: Bench, worker: NaiveWorker, lease: int, offset: int = 0, fraction: float | None = 0.5
) -> list[c.PublishEvents]:
    """Let a task say something; return what subscribers get."""
    value = b"" if fraction is not None else b"\x01"
    bench.report(worker, news=[LeaseNews(lease, offset, fraction, "half", value)])
    return [command for command in bench.commands if isinstance(command, c.PublishEvents)]


def progress_of(bench: Bench, number: int) -> float | None:
    """Return how far a task is, as the head shows it."""
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    return None if found.progress is None else found.progress.fraction


def test_progress_is_shown_and_published_as_long_as_the_task_runs() -> None:
    """Who speaks has started; with the end the head forgets what was said."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1)
    [lease] = worker.held
    told = say(bench, worker, lease)
    assert [(each.state, each.news is None) for each in told] == [
        (TaskState.RUNNING, True),
        (TaskState.RUNNING, False),
    ]
    assert progress_of(bench, 0) == 0.5
    found = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert found is not None
    assert "50% done: half." in found.summary
    assert [each.news.fraction for each in say(bench, worker, lease, 0, 0.7) if each.news] == [0.7]
    bench.end(worker, lease, 0)
    assert progress_of(bench, 0) is None
    assert bench.scheduler.state.progress == {}


def test_an_emitted_value_is_published_and_no_progress() -> None:
    """It goes to the subscribers as it came."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1)
    [lease] = worker.held
    [_, told] = say(bench, worker, lease, 0, None)
    assert told.news == LeaseNews(lease, 0, None, "half", b"\x01")
    assert progress_of(bench, 0) is None


def test_an_old_attempt_is_not_heard() -> None:
    """The lease is the fence: what comes under another one, or of no task, is counted."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    bench.submit(1)
    [old] = worker.held
    say(bench, worker, old)
    bench.die(worker)
    assert progress_of(bench, 0) is None  # of the attempt that is gone
    other = bench.join("w-2", cpus=1)
    [new] = other.held
    before = bench.scheduler.state.counters["stale_news"]
    for lease, offset in ((old, 0), (new, 1), (new, 2**32 - 1), (77, 0)):
        assert say(bench, other, lease, offset) == []
    assert bench.scheduler.state.counters["stale_news"] == before + 4
    assert progress_of(bench, 0) is None
    assert say(bench, other, new)[-1].news is not None
    bench.end(other, new, 0)
    assert say(bench, other, new) == []


def test_a_cancelled_task_may_say_how_far_its_end_is() -> None:
    """Until it has ended it is heard."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1)
    [lease] = worker.held
    bench.cancel(0)
    [told] = say(bench, worker, lease)
    assert (told.state, progress_of(bench, 0)) == (TaskState.CANCELLING, 0.5)


def test_what_is_published_is_bounded_and_what_is_shown_is_not() -> None:
    """However much is said, other events stay in the log; the latest progress is known."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1)
    [lease] = worker.held
    most = int(NEWS_PER_S)
    told = sum(len(say(bench, worker, lease, 0, n / most / 2)) for n in range(2 * most))
    assert told == most + 1  # and the start of the task
    assert bench.scheduler.state.counters["news_dropped"] == most
    assert progress_of(bench, 0) == (2 * most - 1) / most / 2
    bench.now += 0.1
    told = sum(len(say(bench, worker, lease)) for n in range(2 * most))
    assert told == most // 10
