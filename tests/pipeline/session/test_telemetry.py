"""Whether the loader keeps up: what is said of it, and that it is said once."""

from pipeline.data.loader import Feed
from pipeline.hosting import Hosting
from pipeline.session.telemetry import Supply


def supply(workers: int = 2) -> tuple[Feed, Supply]:
    feed = Feed(iter(()))
    return feed, Supply(feed, Hosting(workers=workers, cores=3))


def tell(feed: Feed, told: Supply, *, waited: float, prepared: float) -> list[str]:
    """Return what is said of 100 views in 10 seconds."""
    feed.seconds_waited += waited
    feed.seconds_prepared += prepared
    return list(told.tell(100, 10.0))


def test_what_workers_give_and_what_the_steps_ask_is_said_once_and_not_of_the_first_line() -> None:
    feed, told = supply()
    assert tell(feed, told, waited=9, prepared=90) == []
    assert tell(feed, told, waited=0, prepared=10) == [
        "loader    2 worker(s) on 3 core(s) give about 20 views/s, the steps ask for 10"
    ]
    assert tell(feed, told, waited=0, prepared=10) == []


def test_steps_that_wait_for_data_name_the_remedy_once() -> None:
    feed, told = supply()
    tell(feed, told, waited=0, prepared=0)
    compared, waiting = tell(feed, told, waited=5, prepared=20)
    assert compared == "loader    2 worker(s) on 3 core(s) give about 10 views/s, the steps ask for 20: too few"
    assert waiting.startswith("50% of the time goes by in waiting for data. What helps: more cores a process")
    assert tell(feed, told, waited=5, prepared=20) == []


def test_without_workers_only_the_waiting_is_said() -> None:
    feed, told = supply(workers=0)
    tell(feed, told, waited=0, prepared=0)
    assert len(tell(feed, told, waited=5, prepared=5)) == 1
