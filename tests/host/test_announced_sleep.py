"""A system's thread that is held back while the loop does its work: real threads, a real loop."""

import threading

import anyio
import anyio.to_thread
import pytest

from towline.host.sleep._announced import AnnouncedSleep

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def nothing() -> None:
    pass


async def test_the_thread_is_held_until_the_work_is_done() -> None:
    announcer = AnnouncedSleep(20)
    story: list[str] = []
    woke = anyio.Event()

    async def before_sleep() -> None:
        story.append("parting")
        await anyio.sleep(0.05)
        story.append("parted")

    def after_sleep() -> None:
        story.append("woke")
        woke.set()

    def system() -> None:
        announcer.will_sleep()
        story.append("asleep")
        announcer.woke()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(announcer.watch_sleep, before_sleep, after_sleep)
            await anyio.to_thread.run_sync(system)
            await woke.wait()
            tasks.cancel_scope.cancel()
    assert story == ["parting", "parted", "asleep", "woke"]
    announcer.close()


async def test_work_that_takes_too_long_does_not_hold_it_for_ever() -> None:
    announcer = AnnouncedSleep(0.05)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(announcer.watch_sleep, anyio.sleep_forever, lambda: None)
            await anyio.to_thread.run_sync(announcer.will_sleep)
            tasks.cancel_scope.cancel()
    announcer.close()


async def test_work_that_is_given_up_lets_it_go() -> None:
    announcer = AnnouncedSleep(3600)
    begun = anyio.Event()

    async def before_sleep() -> None:
        begun.set()
        await anyio.sleep_forever()

    thread = threading.Thread(target=announcer.will_sleep)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(announcer.watch_sleep, before_sleep, lambda: None)
            thread.start()
            await begun.wait()
            tasks.cancel_scope.cancel()
    thread.join(20)
    assert not thread.is_alive()
    announcer.close()


async def test_closing_lets_go_whom_nobody_heard_and_nobody_is_held_after_it() -> None:
    announcer = AnnouncedSleep(3600)
    thread = threading.Thread(target=announcer.will_sleep)
    thread.start()
    with anyio.fail_after(20):
        while not announcer._announcements._things:  # noqa: ASYNC110 - the thread's own word is what is waited for
            await anyio.sleep(0.001)
        announcer.close()
    thread.join(20)
    assert not thread.is_alive()
    announcer.will_sleep()
    announcer.woke()
