"""Several watchers of one job, and a client whose second socket replaces its first: over real sockets."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import towline
from towline.server import Hub, HubLimits, JobContext, Upload
from towline.server.log._clients import REPLACED, Arrival, Clients
from towline.statemachine import Policy
from towline.testing import FaultProxy, controlled

pytestmark = pytest.mark.timeout(60)


async def waiting(context: JobContext, upload: Upload) -> None:
    """Count to three, and end when the test has put a file into the job's folder."""
    for done in (1, 2, 3):
        await context.progress(done, 3)
    while not await anyio.Path(context.directory / "end").exists():  # noqa: ASYNC110 - put there by another thread
        await anyio.sleep(0.005)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "hub.db", limits=HubLimits(ready_wait=0.3))
    hub.job("waiting", path="/start")(waiting)
    return hub


@pytest.fixture
def client(hub: Hub, serving: Any) -> Iterator[Any]:
    with serving(hub) as client:
        assert client.start(b"x", "/start", content_type="application/octet-stream").status_code == 202
        yield client
        end_job(hub, client)


def end_job(hub: Hub, client: Any) -> None:
    with suppress(FileNotFoundError):  # it has ended, and its folder is gone
        (hub.directory(client.job) / "end").touch()


def greeted(ready: Any, following: Any, socket: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Say `ready`, and wait until all that there is has come."""
    ready(socket, fields)
    return following(socket, lambda frame: frame["seq"] == 4).cursor


def test_the_second_socket_of_a_client_replaces_the_first(client: Any, hub: Hub, ready: Any, following: Any) -> None:
    with client.socket() as first, client.socket() as second:
        cursor = greeted(ready, following, first, {"client": "c", "socket": 1})
        ready(second, {"client": "c", "socket": 2, **cursor})
        closed = following(first)
        assert (closed.code, closed.reason) == (4509, "replaced by a later socket of the same client")
        end_job(hub, client)
        assert following(second).code == 1000
    assert hub.statistics().closes == {4509: 1, 1000: 1}


def test_a_greeting_that_was_stuck_does_not_cut_the_later_socket(
    client: Any, hub: Hub, ready: Any, following: Any
) -> None:
    with client.socket() as first, client.socket() as second:
        cursor = greeted(ready, following, second, {"client": "c", "socket": 2})
        ready(first, {"client": "c", "socket": 1, **cursor})
        assert following(first).code == REPLACED
        end_job(hub, client)
        assert following(second).code == 1000


def test_watchers_with_one_token_are_not_cut(client: Any, hub: Hub, ready: Any, following: Any) -> None:
    """Nor those that say nothing of themselves, nor one that greets again, nor two of the same number."""
    greetings: list[dict[str, Any]] = [
        *({"client": name, "socket": 1} for name in ("a", "b", "b")),
        *({}, {}, {"client": "c"}, {"socket": 7}),
    ]
    with ExitStack() as stack:
        sockets = [stack.enter_context(client.socket()) for _ in greetings]
        for socket, greeting in zip(sockets, greetings, strict=True):
            cursor = greeted(ready, following, socket, greeting)
        ready(sockets[0], {"client": "a", "socket": 1, **cursor})
        end_job(hub, client)
        assert [following(socket).code for socket in sockets] == [1000] * len(sockets)


@pytest.mark.parametrize("wrong", [{"client": ""}, {"client": "x" * 65}, {"socket": 0}, {"socket": 2**31}])
def test_what_is_no_identity_is_refused(client: Any, ready: Any, following: Any, wrong: dict[str, Any]) -> None:
    with client.socket() as socket:
        ready(socket, {"client": "c", "socket": 1} | wrong)
        assert following(socket).code == 1007


def test_nothing_is_kept_of_sockets_that_are_gone(
    client: Any, hub: Hub, ready: Any, following: Any, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with client.socket() as one, client.socket() as two:
        greeted(ready, following, one, {"client": "c", "socket": 1})
        greeted(ready, following, two, {"client": "c", "socket": 2})
    eventually(lambda: not vars(hub.log.clients)["_sockets"])


def connection(url: str, client: Any) -> towline.Connection:
    line = towline.Connection(
        url.replace("http", "ws", 1) + "/ws/progress",
        job=client.job,
        token=client.token,
        policy=Policy(ping_after=0.2, lost_after=0.6, dial_spacing=0.1),
        store=None,
    )
    return controlled(line, random=lambda: 0.0)


@pytest.mark.anyio
async def test_the_engine_lets_its_half_open_socket_go(
    client: Any, hub: Hub, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The network swallows the first link without a word; the hub lets it go when the engine is back."""
    port = int(client.url.rpartition(":")[2])
    async with FaultProxy("127.0.0.1", port) as far, FaultProxy("127.0.0.1", far.port) as near:
        async with connection(f"http://127.0.0.1:{near.port}", client) as line:
            await line.wait_for(towline.State.CONNECTED, timeout=120)
            far.black_hole()
            near.target = ("127.0.0.1", port)
            await anyio.to_thread.run_sync(lambda: eventually(lambda: hub.statistics().closes.get(REPLACED) == 1))
            assert hub.statistics().sockets_opened == 2
            end_job(hub, client)
            updates = [update async for update in line]
    assert isinstance(updates[-1], towline.JobComplete)


@pytest.mark.anyio
async def test_an_engine_that_is_replaced_stays_away(client: Any, hub: Hub, ready: Any, following: Any) -> None:
    """Two programs with one identity do not replace each other for ever: the replaced one gives up, and says why."""
    async with connection(client.url, client) as line:
        await line.wait_for(towline.State.CONNECTED, timeout=120)
        [(_, name)] = vars(hub.log.clients)["_sockets"]

        def usurp() -> None:
            with client.socket() as socket:
                greeted(ready, following, socket, {"client": name, "socket": 100})

        await anyio.to_thread.run_sync(usurp)
        with pytest.raises(towline.Exhausted) as gave_up:
            async for _ in line:
                pass
    assert gave_up.value.reason == "protocol"
    assert "replaced by a later socket" in str(gave_up.value)
    assert hub.statistics().sockets_opened == 2


def test_of_the_sockets_of_a_client_the_latest_stays() -> None:
    clients = Clients()
    gone: list[int] = []
    sockets = {number: (lambda number=number: gone.append(number)) for number in (3, 1, 2)}
    for number, let_go in sockets.items():
        clients.add(Arrival(job_id="j", client="c", socket=number), let_go)
    assert clients.arrived(Arrival(job_id="j", client="c", socket=2)) == 3
    assert gone == [1]
    clients.remove(Arrival(job_id="j", client="c", socket=3), sockets[3])
    assert clients.arrived(Arrival(job_id="j", client="c", socket=2)) == 2
    assert clients.arrived(Arrival(job_id="j", client="d", socket=9)) == 9
    assert gone == [1, 1]
