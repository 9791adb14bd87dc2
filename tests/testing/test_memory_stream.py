"""A link in memory keeps the manners of a TCP connection, and its faults do what they say."""

from typing import Any, Literal

import anyio
import pytest

from towline.testing import Ending, MemoryLink

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


async def test_bytes_go_both_ways_in_order() -> None:
    link = MemoryLink()
    await link.client.send(b"one")
    await link.client.send(b"two")
    await link.server.send(b"three")
    assert await link.server.receive(4) == b"onet"
    assert await link.server.receive() == b"wo"
    assert await link.client.receive() == b"three"
    assert (link.carried("up"), link.carried("down")) == (6, 5)


async def test_the_end_of_one_side_is_read_after_its_bytes() -> None:
    link = MemoryLink()
    await link.client.send(b"last words")
    await link.client.send_eof()
    assert await link.server.receive() == b"last words"
    with pytest.raises(anyio.EndOfStream):
        await link.server.receive()
    await link.server.send(b"heard")
    assert await link.client.receive() == b"heard"


async def test_a_closed_end_cannot_be_used_and_its_peer_cannot_write() -> None:
    link = MemoryLink()
    await link.client.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await link.client.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await link.client.send(b"x")
    with pytest.raises(anyio.EndOfStream):
        await link.server.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await link.server.send(b"x")


async def test_closing_wakes_the_reader_of_the_same_end() -> None:
    link = MemoryLink()
    async with anyio.create_task_group() as group:

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await link.client.receive()

        group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        await link.client.aclose()


async def test_two_readers_collide() -> None:
    link = MemoryLink()
    async with anyio.create_task_group() as group:
        group.start_soon(link.client.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await link.client.receive()
        group.cancel_scope.cancel()


async def test_a_writer_waits_for_a_slow_reader() -> None:
    link = MemoryLink()
    with anyio.move_on_after(1) as scope:
        for _ in range(1000):
            await link.client.send(b"x" * 1000)
    assert scope.cancelled_caught
    held = link.carried("up")
    assert held < 100_000
    while link.carried("up") < held + 1:
        async with anyio.create_task_group() as group:
            group.start_soon(link.server.receive)
            group.start_soon(link.client.send, b"y" * 1000)


async def test_a_send_that_has_begun_and_has_room_is_not_cancelled() -> None:
    link = MemoryLink()
    scope = anyio.CancelScope()
    begun: list[bool] = []

    async def send() -> None:
        with scope:
            begun.append(True)
            await link.client.send(b"x")

    async def cancel() -> None:
        begun.append(False)
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        group.start_soon(cancel)
    assert scope.cancelled_caught is not begun[0]
    assert link.carried("up") == begun[0]


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_a_cut_is_read_after_what_was_sent(ending: Ending) -> None:
    link = MemoryLink()
    await link.server.send(b"before")
    link.cut(ending)
    assert await link.client.receive() == b"before"
    with pytest.raises(anyio.EndOfStream if ending == "fin" else anyio.BrokenResourceError):
        await link.client.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await link.client.send(b"x")
    assert link.closed


async def test_a_black_hole_tells_nobody_and_gives_its_bytes_back() -> None:
    link = MemoryLink()
    link.hold()
    await link.client.send(b"lost?")
    with anyio.move_on_after(3600) as scope:
        await link.server.receive()
    assert scope.cancelled_caught
    link.release()
    assert await link.server.receive() == b"lost?"


async def test_a_black_hole_hides_that_the_peer_is_gone() -> None:
    link = MemoryLink()
    link.hold()
    await link.server.aclose()
    await link.client.send(b"x")
    with anyio.move_on_after(60) as scope:
        await link.client.receive()
    assert scope.cancelled_caught
    link.cut("rst")
    with pytest.raises(anyio.BrokenResourceError):
        await link.client.receive()


async def test_a_black_hole_of_one_direction_leaves_the_other() -> None:
    link = MemoryLink()
    link.hold("down")
    await link.client.send(b"up")
    assert await link.server.receive() == b"up"
    await link.server.send(b"down")
    with anyio.move_on_after(60) as scope:
        await link.client.receive()
    assert scope.cancelled_caught


async def test_latency_delays_bytes_and_the_end() -> None:
    link = MemoryLink(latency=0.25)
    await link.client.send(b"a")
    await anyio.sleep(0.1)
    await link.client.send(b"b")
    await link.client.aclose()
    assert await link.server.receive() == b"a"
    assert anyio.current_time() == pytest.approx(0.25)
    assert await link.server.receive() == b"b"
    assert anyio.current_time() == pytest.approx(0.35)
    with pytest.raises(anyio.EndOfStream):
        await link.server.receive()


async def test_reads_of_one_byte() -> None:
    link = MemoryLink()
    link.set_largest_read(1)
    await link.client.send(b"abc")
    assert [await link.server.receive() for _ in range(3)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("count", [0, 1, 5, 6])
async def test_the_link_ends_after_n_bytes(count: int) -> None:
    link = MemoryLink()
    link.end_after(count, "down", "fin")
    got = b""
    try:
        await link.server.send(b"abc")
        await link.server.send(b"def")
        await link.server.send(b"ghi")
    except anyio.BrokenResourceError:
        pass
    with pytest.raises(anyio.EndOfStream):
        while True:
            got += await link.client.receive()
    assert got == b"abcdef"[:count]


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_one_bit_is_flipped(direction: Literal["up", "down"]) -> None:
    link = MemoryLink()
    link.flip_bit(8 * 2, direction)
    sender, receiver = (link.client, link.server) if direction == "up" else (link.server, link.client)
    for byte in b"abcd":
        await sender.send(bytes([byte]))
    assert await receiver.receive() == b"abbd"  # "c" is 0x63
