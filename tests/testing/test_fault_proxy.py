"""Every fault of the proxy, seen from both ends of real loopback sockets, in real time."""

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from towline._exceptions import InvalidArgument
from towline.testing import Direction, Ending, FaultProxy

pytestmark = pytest.mark.anyio

BYTES = bytes(range(256)) * 40


@dataclass
class Server:
    """Keeps its streams; echoes unless told not to."""

    port: int = 0
    echoes: bool = True
    streams: list[SocketStream] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    endings: list[type[Exception]] = field(default_factory=list)

    changed: anyio.Event = field(default_factory=anyio.Event)

    async def handle(self, stream: SocketStream) -> None:
        self.streams.append(stream)
        self.touch()
        async with stream:
            try:
                while True:
                    data = await stream.receive()
                    self.received.append(data)
                    self.touch()
                    if self.echoes:
                        await stream.send(data)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                self.endings.append(type(error))
                self.touch()

    def touch(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def wait_streams(self, count: int = 1) -> SocketStream:
        while len(self.streams) < count:
            await self.changed.wait()
        return self.streams[-1]

    async def wait_endings(self, count: int = 1) -> list[type[Exception]]:
        while len(self.endings) < count:
            await self.changed.wait()
        return self.endings

    async def wait_received(self, count: int) -> None:
        while sum(map(len, self.received)) < count:
            await self.changed.wait()


@asynccontextmanager
async def serving(*, echoes: bool = True) -> AsyncIterator[Server]:
    server = Server(echoes=echoes)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        server.port = listener.extra(SocketAttribute.local_port)
        group.start_soon(listener.serve, server.handle)
        yield server
        group.cancel_scope.cancel()


@asynccontextmanager
async def scene(*, echoes: bool = True, seed: int = 0) -> AsyncIterator[tuple[Server, FaultProxy]]:
    with anyio.fail_after(20):
        async with serving(echoes=echoes) as server, FaultProxy("127.0.0.1", server.port, seed=seed) as proxy:
            yield server, proxy


async def dial(proxy: FaultProxy) -> SocketStream:
    return await anyio.connect_tcp(proxy.host, proxy.port)


async def read(stream: SocketStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += await stream.receive()
    return got


async def read_to_end(stream: SocketStream) -> tuple[bytes, type[Exception]]:
    got = b""
    try:
        while True:
            got += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
        return got, type(error)


async def is_silent(stream: SocketStream) -> bool:
    with anyio.move_on_after(0.15):
        await stream.receive()
        return False
    return True


ERRORS = {"fin": anyio.EndOfStream, "rst": anyio.BrokenResourceError}


async def test_in_fair_weather_everything_passes_and_is_counted() -> None:
    async with scene() as (server, proxy), await dial(proxy) as stream:
        await stream.send(BYTES)
        assert await read(stream, len(BYTES)) == BYTES
        await proxy.wait_passed(len(BYTES), "down")
        figures = proxy.statistics()
        assert (figures.dials, figures.links, figures.cuts) == (1, 1, 0)
        assert (figures.bytes_up, figures.bytes_down) == (len(BYTES), len(BYTES))
        await stream.aclose()
        assert await server.wait_endings() == [anyio.EndOfStream]
        await proxy.wait_links(0)


async def test_a_large_transfer_both_ways() -> None:
    async with scene() as (_, proxy), await dial(proxy) as stream, anyio.create_task_group() as group:
        data = BYTES * 400  # 4 MB: more than all buffers on the way
        group.start_soon(stream.send, data)
        assert await read(stream, len(data)) == data


async def test_half_a_close_passes() -> None:
    async with scene(echoes=False) as (server, proxy), await dial(proxy) as stream:
        await (await server.wait_streams()).send_eof()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.send(b"still here")
        await server.wait_received(10)
        assert server.received == [b"still here"]


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_a_cut_is_seen_by_both_sides_as_it_is_named(ending: Ending) -> None:
    async with scene() as (server, proxy):
        async with await dial(proxy) as one, await dial(proxy) as two:
            await server.wait_streams(2)
            assert await proxy.cut(ending) == 2
            assert proxy.statistics().links == 0
            for stream in (one, two):
                with pytest.raises(ERRORS[ending]):
                    await stream.receive()
        assert await server.wait_endings(2) == [ERRORS[ending]] * 2
        async with await dial(proxy) as stream:  # a cut is not a refusal
            await stream.send(b"x")
            assert await stream.receive() == b"x"
        assert proxy.statistics().cuts == 2


async def test_an_orderly_cut_stays_orderly_while_the_peer_still_sends() -> None:
    async with scene(echoes=False) as (server, proxy), await dial(proxy) as stream:
        await server.wait_streams()
        proxy.black_hole("up")
        await stream.send(BYTES)  # never read by the proxy
        await proxy.cut("fin")
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_reset_of_one_side_reaches_the_other(direction: Direction) -> None:
    async with scene(echoes=False) as (server, proxy), FaultProxy(proxy.host, proxy.port) as outer:
        # The outer proxy tears its own link to the inner one, as a peer's system would.
        async with await dial(outer) as stream:
            await server.wait_streams()
            await (outer.cut("rst") if direction == "up" else proxy.cut("rst"))
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
            assert await server.wait_endings() == [anyio.BrokenResourceError]


async def test_a_black_hole_swallows_both_ways_until_healed() -> None:
    async with scene() as (server, proxy), await dial(proxy) as stream:
        await server.wait_streams()
        proxy.black_hole()
        await stream.send(b"anyone?")
        assert await is_silent(stream)
        assert not server.received
        async with await dial(proxy) as late:  # dials are accepted, and get nothing
            await late.send(b"hello?")
            assert await is_silent(late)
            assert len(server.streams) == 1
            await proxy.heal()
            assert await late.receive() == b"hello?"
        assert await stream.receive() == b"anyone?"
        assert proxy.statistics().dials == 2


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_black_hole_of_one_direction(direction: Direction) -> None:
    async with scene(echoes=False) as (server, proxy), await dial(proxy) as stream:
        far = await server.wait_streams()
        proxy.black_hole(direction)
        await stream.send(b"up")
        await far.send(b"down")
        if direction == "up":
            assert await stream.receive() == b"down"
            await anyio.sleep(0.05)
            assert server.received == []
        else:
            assert await is_silent(stream)
            assert server.received == [b"up"]


async def test_a_black_hole_does_not_tell_that_the_peer_has_gone() -> None:
    async with scene() as (server, proxy), await dial(proxy) as stream:
        far = await server.wait_streams()
        proxy.black_hole()
        await far.aclose()
        assert await is_silent(stream)
        await proxy.cut("rst")
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


async def test_dropped_dials_hang_and_come_through_when_healed() -> None:
    async with scene() as (server, proxy), await dial(proxy) as present:
        await server.wait_streams()
        await proxy.drop_dials()
        with anyio.move_on_after(0.3) as waiting:
            await dial(proxy)
        assert waiting.cancelled_caught
        await present.send(b"x")
        assert await present.receive() == b"x"
        await proxy.heal()
        async with await dial(proxy) as stream:
            await stream.send(b"y")
            assert await stream.receive() == b"y"
        assert proxy.statistics().dials == 2


async def test_refused_dials_fail_at_once_and_present_links_live_on() -> None:
    async with scene() as (server, proxy), await dial(proxy) as present:
        await server.wait_streams()
        port = proxy.port
        await proxy.refuse()
        for _ in range(3):
            with pytest.raises(OSError, match=r"(?i)connect"):
                await dial(proxy)
        await present.send(b"x")
        assert await present.receive() == b"x"
        await proxy.heal()
        assert proxy.port == port
        async with await dial(proxy) as stream:
            await stream.send(b"y")
            assert await stream.receive() == b"y"


@pytest.mark.parametrize("closed", ["refuse", "drop_dials"])
async def test_hanging_up_opens_a_door_that_was_closed(closed: str) -> None:
    async with scene() as (server, proxy):
        await getattr(proxy, closed)()
        proxy.hang_up()
        async with await dial(proxy) as stream:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        assert not server.streams
        assert proxy.statistics().dials == 1


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_hanging_up_takes_each_dial_and_ends_it(ending: Ending) -> None:
    async with scene() as (server, proxy):
        proxy.hang_up(ending)
        for _ in range(3):
            try:
                async with await dial(proxy) as stream:
                    with pytest.raises(ERRORS[ending]):
                        await stream.receive()
            except OSError:
                assert ending == "rst"  # the reset may come before the dial has returned
        assert not server.streams
        assert proxy.statistics().dials == len(proxy.dials) == 3
        await proxy.heal()
        async with await dial(proxy) as stream:
            await stream.send(b"y")
            assert await stream.receive() == b"y"


async def test_latency_is_waited_out_and_does_not_limit_the_rate() -> None:
    async with scene() as (_, proxy), await dial(proxy) as stream:
        proxy.delay(0.1)
        begun = time.monotonic()
        for _ in range(20):
            await stream.send(b"x")
            await anyio.sleep(0.005)
        await read(stream, 20)
        took = time.monotonic() - begun
        assert 0.2 <= took < 2  # not 20 × 0.2


async def test_jitter_keeps_the_order() -> None:
    async with scene() as (_, proxy), await dial(proxy) as stream:
        proxy.delay(0, jitter=0.05)
        for number in range(40):
            await stream.send(bytes([number]))
            await anyio.sleep(0.002)
        assert await read(stream, 40) == bytes(range(40))


async def test_bandwidth_limits_the_rate() -> None:
    async with scene(echoes=False) as (server, proxy), await dial(proxy) as stream:
        proxy.throttle(40_000, "up")
        begun = time.monotonic()
        await stream.send(b"x" * 20_000)
        await server.wait_received(20_000)
        assert time.monotonic() - begun >= 0.45


async def test_one_byte_at_a_time() -> None:
    async with scene(echoes=False) as (server, proxy), await dial(proxy) as stream:
        far = await server.wait_streams()
        proxy.chop(1, "down", pause=0.005)
        await far.send(b"abcdefghij")
        begun = time.monotonic()
        pieces = []
        while sum(map(len, pieces)) < 10:
            pieces.append(await stream.receive())
        assert b"".join(pieces) == b"abcdefghij"
        assert len(pieces) > 5
        assert time.monotonic() - begun > 0.03


async def test_many_writes_become_one() -> None:
    async with scene(echoes=False) as (server, proxy), await dial(proxy) as stream:
        far = await server.wait_streams()
        proxy.gather(0.2, "down")
        begun = time.monotonic()
        for number in range(10):
            await far.send(bytes([number]))
            await anyio.sleep(0.005)
        pieces = []
        while sum(map(len, pieces)) < 10:
            pieces.append(await stream.receive())
        assert b"".join(pieces) == bytes(range(10))
        # Where the machine is slow there may be two, but each was gathered for its time (a timer's grain apart).
        assert len(pieces) <= (time.monotonic() - begun) / 0.19
        await far.send(b"last")
        await far.send_eof()
        assert await read_to_end(stream) == (b"last", anyio.EndOfStream)


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_a_link_ends_after_exactly_n_bytes(ending: Ending, direction: Direction, count: int) -> None:
    async with scene(echoes=False) as (server, proxy):
        proxy.cut_after(count, direction, ending)
        async with await dial(proxy) as stream:
            far = await server.wait_streams()
            if direction == "down":
                try:
                    await far.send(BYTES)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    assert count == 0
                assert await read_to_end(stream) == (BYTES[:count], ERRORS[ending])
            else:
                try:
                    await stream.send(BYTES)
                except anyio.BrokenResourceError:
                    assert count == 0
                assert await server.wait_endings() == [ERRORS[ending]]
                assert b"".join(server.received) == BYTES[:count]
        server.received.clear()
        async with await dial(proxy) as stream:  # it struck once
            await stream.send(BYTES)
            await server.wait_received(len(BYTES))


async def test_an_armed_cut_strikes_as_often_as_asked() -> None:
    async with scene() as (_, proxy):
        proxy.cut_after(3, "up", "fin", times=2)
        for struck in (True, True, False):
            async with await dial(proxy) as stream:
                await stream.send(b"abcdef")
                if struck:
                    got, error = await read_to_end(stream)
                    assert error is anyio.EndOfStream
                    assert b"abc".startswith(got)
                else:
                    assert await read(stream, 6) == b"abcdef"


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_one_bit_is_flipped_once(direction: Direction) -> None:
    async with scene() as (_, proxy), await dial(proxy) as stream:
        proxy.flip_bit(8 * 3, direction)
        await stream.send(b"a")
        await stream.send(b"bcdef")
        assert await read(stream, 6) == b"abceef"  # "d" is 0x64
    async with scene() as (_, proxy), await dial(proxy) as stream:
        await stream.send(b"abcdef")
        assert await read(stream, 6) == b"abcdef"


async def test_the_target_may_move_and_may_be_gone() -> None:
    async with scene() as (server, proxy):
        async with serving() as other:
            proxy.target = ("localhost", other.port)
            async with await dial(proxy) as stream:
                await stream.send(b"x")
                assert await stream.receive() == b"x"
            assert not server.streams
        async with await dial(proxy) as stream:  # nobody listens there any more
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        proxy.target = ("127.0.0.1", server.port)
        async with await dial(proxy) as stream:
            await stream.send(b"y")
            assert await stream.receive() == b"y"


async def test_healing_takes_everything_back() -> None:
    async with scene() as (_, proxy), await dial(proxy) as stream:
        proxy.delay(5)
        proxy.throttle(1)
        proxy.chop(1, pause=5)
        proxy.cut_after(1, "up")
        proxy.hang_up()
        await proxy.heal()
        begun = time.monotonic()
        await stream.send(b"xyz")
        assert await read(stream, 3) == b"xyz"
        assert time.monotonic() - begun < 2


async def test_nothing_is_left_when_the_block_ends() -> None:
    async with serving() as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            streams = [await dial(proxy) for _ in range(5)]
            await server.wait_streams(5)
            await proxy.drop_dials()
        for stream in streams:
            async with stream:
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
        with pytest.raises(OSError, match=r"(?i)connect"):
            await dial(proxy)


async def test_weather_that_cannot_be_is_refused() -> None:
    """Once it is made it is met in the middle of a link, where nobody could be told of it."""
    proxy = FaultProxy("127.0.0.1", 1)
    for rate in (0, -1, math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="bytes_per_second"):
            proxy.throttle(rate)
    with pytest.raises(InvalidArgument, match="piece"):
        proxy.chop(0)
    for seconds in (-1, math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="latency"):
            proxy.delay(seconds)
        with pytest.raises(InvalidArgument, match="jitter"):
            proxy.delay(0, jitter=seconds)
        with pytest.raises(InvalidArgument, match="pause"):
            proxy.chop(pause=seconds)
        with pytest.raises(InvalidArgument, match="seconds"):
            proxy.gather(seconds)


async def test_a_reset_ends_a_link_that_is_full() -> None:
    """The way down ends while more waits to go there: that is the link's end, and no error of the proxy's."""

    async def flood(stream: SocketStream) -> None:
        with suppress(anyio.BrokenResourceError):
            async with stream:
                while True:
                    await stream.send(BYTES)

    with anyio.fail_after(20):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, flood)
            async with FaultProxy("127.0.0.1", listener.extra(SocketAttribute.local_port)) as proxy:
                proxy.chop(1, "down", pause=0.01)
                stream = await dial(proxy)
                await proxy.wait_passed(10, "down")
                await anyio.sleep(0.3)  # until the way is full, and the proxy's reader waits for its writer
                proxy.black_hole("up")  # by which it would learn of the reset too
                await stream.aclose()  # with bytes unread: the system answers the next one with a reset
                await proxy.wait_links(0)
            group.cancel_scope.cancel()
