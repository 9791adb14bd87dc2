"""`towline.js` in a real browser: on the real hub, and on a server whose sockets follow a script."""

import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from towline.server import Hub, JobContext, Upload
from towline.server.web._page import page_file

DOCS = Path(__file__).parents[3] / "docs" / "hub.md"
CSV = b"title,author\n" + b"".join(b"%d,A\n" % n for n in range(60))
#: Follows job `j` and keeps all views. Waits between attempts are recorded and hardly take time; the two long timers
#: (silence, stable link) keep theirs, unless a test sets `silence`.
FOLLOW = """(async () => {
    const timer = window.setTimeout;
    window.waits = [];
    window.silence ??= 45_000;
    window.setTimeout = (action, ms) => {
        if (ms === 45_000) return timer(action, silence);
        if (ms === 30_000) return timer(action, ms);
        waits.push(ms);
        return timer(action, 5);
    };
    const { follow } = await import("/towline.js");
    window.views = [];
    window.stop = follow("/", "j", %s, (view) => views.push(structuredClone(view)));
})()"""


class Script:
    """A server of the wire protocol. `states` are the answers to the state calls, `sockets` what each socket does: a
    status that refuses it, or messages, pauses in seconds and a close `(code, reason)`; a socket without a close stays
    open. The last one of each is for all that follow.
    """

    def __init__(self) -> None:
        self.states: list[int | dict[str, Any]] = [state(0)]
        self.sockets: list[int | list[Any]] = [[]]
        self.token = "t"
        self.readies: list[dict[str, Any]] = []
        self.refreshed: list[str] = []
        self.closes: list[int] = []
        self.url = ""

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", lambda request: HTMLResponse("<!doctype html><title>test</title>")),
                Route("/towline.js", lambda request: page_file("towline.js")),
                Route("/api/job-state/j", self.state),
                Route("/api/token/refresh", self.refresh, methods=["POST"]),
                WebSocketRoute("/ws/progress", self.socket),
            ]
        )

    def state(self, request: Request) -> Response:
        if request.headers["authorization"] != f"Bearer {self.token}":
            return Response(status_code=401)
        answer = take(self.states)
        return Response(status_code=answer) if isinstance(answer, int) else JSONResponse(answer)

    async def refresh(self, request: Request) -> Response:
        old = (await request.json())["oldToken"]
        self.refreshed.append(old)
        if old != "old":
            return Response(status_code=401)
        self.token = "new"
        return JSONResponse({"jobId": "j", "token": "new", "expiresIn": 60})

    async def socket(self, websocket: WebSocket) -> None:
        script = take(self.sockets)
        if websocket.scope["subprotocols"] != ["towline", f"towline.{self.token}"]:
            script = 401
        if isinstance(script, int):
            await websocket.send_denial_response(Response(status_code=script))
            return
        await websocket.accept("towline")
        try:
            self.readies.append(await websocket.receive_json())
            for step in script:
                if isinstance(step, float):
                    await anyio.sleep(step)
                    continue
                if isinstance(step, tuple):
                    await websocket.close(*step)
                    return
                await websocket.send_text(step if isinstance(step, str) else json.dumps(step))
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect as gone:
            self.closes.append(gone.code)

    @property
    def cursors(self) -> list[int | None]:
        return [ready.get("seq") for ready in self.readies]


def take(script: list[Any]) -> Any:
    return script.pop(0) if len(script) > 1 else script[0]


def state(seq: int, status: str = "running", **fields: Any) -> dict[str, Any]:
    return {"status": status, "seq": seq, "epoch": "e", "processedCount": seq, "totalCount": 10} | fields


def progress(seq: int, epoch: str = "e", **payload: Any) -> dict[str, Any]:
    payload = {"type": "job_progress", "progress": seq / 10, "processedCount": seq} | payload
    return {"type": "job_progress", "seq": seq, "epoch": epoch, "timestamp": seq, "payload": payload}


def end(seq: int, epoch: str = "e") -> dict[str, Any]:
    payload = {"type": "job_complete", "pipeline": "p", "answer": 42}
    return {"type": "job_complete", "seq": seq, "epoch": epoch, "timestamp": seq, "payload": payload}


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    config = uvicorn.Config(script.application(), port=0, log_level="warning", ws="websockets-sansio", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    script.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield script
    server.force_exit = server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def following(script: Script, open_tab: Any, eventually: Any) -> Any:
    """Follow the scripted job: `following()`; `following(token='"t"')` is a JavaScript expression."""

    def start(token: str = '"t"', before: str = "") -> Any:
        tab = open_tab(f"{script.url}/", before)
        eventually(lambda: tab.evaluate("document.title") == "test")
        tab.evaluate(FOLLOW % token)
        return tab

    return start


def views(tab: Any) -> list[dict[str, Any]]:
    return tab.evaluate("views")


def last(tab: Any) -> dict[str, Any]:
    return tab.evaluate("views.at(-1)")


def delivered(tab: Any) -> list[int]:
    return [view["event"]["seq"] for view in views(tab) if view["event"]]


def ends(tab: Any) -> list[str]:
    return [view["status"] for view in views(tab) if view["ended"]]


# --- the real hub ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_each_event_once_over_kills_of_the_hub(hub_process: Any, open_tab: Any, eventually: Any) -> None:
    hub = hub_process(row_delay=0.05)
    client = hub.start()
    assert client.start(CSV).status_code == 202
    tab = open_tab(f"{client.url}/towline.js")
    eventually(lambda: tab.evaluate("document.readyState") == "complete")
    tab.evaluate((FOLLOW % json.dumps(client.token)).replace('"j"', json.dumps(client.job)))
    for count in (10, 30):
        eventually(lambda count=count: last(tab)["done"] >= count)
        hub.kill()
        eventually(lambda: last(tab)["link"] == "reconnecting")
        hub.start()
    eventually(lambda: last(tab)["ended"])
    seqs = delivered(tab)
    assert seqs == list(range(seqs[0], 63))
    counts = [view["done"] for view in views(tab)]
    assert counts == sorted(counts)
    assert ends(tab) == ["complete"]
    final = last(tab)
    assert (final["link"], final["fraction"], final["result"]["successRate"]) == ("closed", 1, "60/60")
    # Who comes after the end gets it from the state, also by the URL of the stream.
    late = "new Promise(done => follow(url, id, token, view => view.ended && done(view)))"
    values = (
        f"const url = '{client.url.replace('http', 'ws')}/ws/progress', id = '{client.job}', token = '{client.token}'"
    )
    view = tab.evaluate(f"import('/towline.js').then(({{ follow }}) => {{ {values}; return {late}; }})")
    assert (view["status"], view["done"], view["result"]["successRate"]) == ("complete", 60, "60/60")
    assert tab.errors == []


@pytest.mark.timeout(120)
def test_the_page_of_the_documentation(tmp_path: Path, open_tab: Any, eventually: Any, free_port: Any) -> None:
    """The document's page follows a job of a mounted hub, and is what the document shows."""
    [html] = re.findall(r"```html\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    hub = Hub(tmp_path / "hub.db", base_path="/jobs")
    gate = tmp_path / "gate"

    @hub.job("gated", path="/start")
    async def gated(context: JobContext, upload: Upload) -> None:
        await context.start(4)
        await context.progress(1)
        while not gate.exists():  # noqa: ASYNC110 - made by the test's thread
            await anyio.sleep(0.01)

    started: dict[str, str] = {}

    async def page(request: Request) -> Response:
        text = html.replace("JOB", started["jobId"]).replace("TOKEN", started["token"])
        return HTMLResponse(text, headers={"cache-control": "no-store"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    routes = [Route("/page", page), Mount("/jobs", hub)]
    port = free_port()
    application = Starlette(routes=routes, lifespan=lifespan)
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        headers = {"content-type": "application/octet-stream"}
        started |= httpx.post(f"http://127.0.0.1:{port}/jobs/start", content=b"x", headers=headers).json()
        tab = open_tab(f"http://127.0.0.1:{port}/page")
        eventually(lambda: tab.evaluate("document.querySelector('progress')?.value") == 0.25)
        gate.touch()
        eventually(lambda: tab.evaluate("document.querySelector('progress').value") == 1)
        assert tab.errors == []
    finally:
        server.force_exit = server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


# --- a scripted server -------------------------------------------------------------------------------------------


def test_a_drop_is_continued_and_what_comes_again_is_dropped(script: Script, following: Any, eventually: Any) -> None:
    script.states = [state(2)]
    script.sockets = [
        [progress(3), progress(4), (1011, "")],
        [progress(3), progress(4), progress(5), "no JSON", "null", (1000, "")],
        [progress(6), end(7), end(7)],
    ]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    assert delivered(tab) == [3, 4, 5, 6, 7]
    assert script.cursors == [2, 4, 5]
    assert [ready["socket"] for ready in script.readies] == [1, 2, 3]
    assert len({ready["client"] for ready in script.readies}) == 1
    assert ends(tab) == ["complete"]
    assert last(tab)["result"] == {"pipeline": "p", "answer": 42}
    eventually(lambda: script.closes == [1000])
    first, second = tab.evaluate("waits")
    assert 250 <= first <= 1000
    assert 250 <= second <= 2000


def test_a_job_that_waits(script: Script, following: Any, eventually: Any) -> None:
    script.sockets = [[progress(1), {**progress(2), "payload": {"type": "job_progress", "keepAlive": True}}, end(3)]]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    assert script.cursors == [None]  # no event was seen, so the hub starts with the first
    shown = [view["status"] for view in views(tab)]
    assert [one for one, before in zip(shown, [None, *shown], strict=False) if one != before] == [
        "unknown",
        "waiting",
        "running",
        "complete",
    ]
    assert delivered(tab) == [1, 3]


def test_a_hole_is_replayed_and_else_the_state_covers_it(script: Script, following: Any, eventually: Any) -> None:
    script.states = [state(0), state(5)]
    script.sockets = [[progress(1), progress(3)], [progress(3)], [progress(6), end(7)]]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    assert script.cursors == [None, 1, 5]
    assert delivered(tab) == [1, 6, 7]
    assert [view["done"] for view in views(tab) if view["event"] is None and view["done"] == 5]
    eventually(lambda: script.closes == [4000, 4000, 1000])


def test_a_log_that_starts_again(script: Script, following: Any, eventually: Any) -> None:
    script.states = [state(7)]
    script.sockets = [[progress(8), (1011, "")], [progress(1, "new"), progress(2, "new"), end(3, "new")]]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    assert [view["done"] for view in views(tab) if view["event"]] == [8, 1, 2, 2]


def test_a_restored_log_of_the_same_epoch(script: Script, following: Any, eventually: Any) -> None:
    script.states = [state(7)]
    acknowledgement = {"type": "ready_ack", "epoch": "e", "from": 1, "to": 2}
    script.sockets = [[acknowledgement, progress(1), progress(2), end(3)]]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    assert delivered(tab) == [1, 2, 3]


def test_a_server_without_a_log_is_asked_after_each_drop(script: Script, following: Any, eventually: Any) -> None:
    script.states = [state(1), state(5), state(9, "canceled", error={"reason": "enough"})]
    for answer in script.states:
        answer["seq"] = None
    bare = progress(2) | {"seq": 1}
    del bare["seq"]
    script.sockets = [[bare, (1001, "")], [(1001, "")]]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    dones = [view["done"] for view in views(tab)]
    assert sorted(set(dones)) == [0, 1, 2, 5, 9]
    assert dones == sorted(dones)
    assert (last(tab)["status"], last(tab)["message"]) == ("canceled", "enough")


def test_the_hubs_advice_on_when_to_reconnect(script: Script, following: Any, eventually: Any) -> None:
    advice = json.dumps({"retry_in": 2, "spread": 3})
    script.sockets = [[progress(1), (1012, advice)], [(1013, '{"retry_in": "soon"}')], [progress(2), end(3)]]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    first, second = tab.evaluate("waits")
    assert 2000 <= first <= 5000
    assert 250 <= second <= 2000


def test_an_expired_token_is_refreshed(script: Script, following: Any, eventually: Any) -> None:
    script.token = "new"
    script.sockets = [[progress(1), end(2)]]
    tab = following('"old"')
    eventually(lambda: last(tab)["ended"])
    assert script.refreshed == ["old"]
    assert delivered(tab) == [1, 2]


def test_a_function_gives_a_token_for_each_attempt(script: Script, following: Any, eventually: Any) -> None:
    script.sockets = [[progress(1), (1008, "expired")], [progress(2), end(3)]]
    tab = following("(() => { window.asked = (window.asked ?? 0) + 1; return Promise.resolve('t'); })")
    eventually(lambda: last(tab)["ended"])
    assert (delivered(tab), tab.evaluate("asked")) == ([1, 2, 3], 2)


@pytest.mark.parametrize(
    ("states", "sockets", "token", "status"),
    [
        ([404], [[]], '"t"', "gone"),
        ([410], [[]], '"t"', "gone"),
        ([403], [[]], '"t"', "refused"),
        ([state(0)], [[]], '"bad"', "refused"),
        ([state(0)], [[]], "(() => null)", "refused"),
        ([state(0)], [[(4500, "not here")]], '"t"', "refused"),
        ([state(0)], [[progress(1), (4509, "replaced")]], '"t"', "refused"),
        ([state(0)], [[(1002, "")]], '"t"', "refused"),
        ([state(0)], [[(1008, "")]], '"t"', "refused"),
        ([state(0), 410], [401], '"t"', "gone"),
    ],
)
def test_what_ends_without_an_end_of_the_job(
    script: Script, following: Any, eventually: Any, states: Any, sockets: Any, token: str, status: str
) -> None:
    script.states, script.sockets = list(states), list(sockets)
    tab = following(token)
    eventually(lambda: last(tab)["ended"])
    assert ends(tab) == [status]
    assert last(tab)["link"] == "closed"
    assert last(tab)["message"]
    assert tab.errors == []


def test_what_does_not_end_it(script: Script, following: Any, eventually: Any) -> None:
    script.states = [503, 429, 500, state(0)]
    script.sockets = [503, 429, 426, [progress(1), (1002, "")], [(4000, "")], [(3000, "")], [end(2)]]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    assert ends(tab) == ["complete"]
    assert delivered(tab) == [1, 2]


def test_where_no_socket_opens_the_state_is_shown(script: Script, following: Any, eventually: Any) -> None:
    script.sockets = [426]
    script.states = [state(1), state(2), state(3), state(4), state(5, "failed", error={"message": "bad"})]
    tab = following()
    eventually(lambda: last(tab)["ended"])
    # The first is the start; those after one and two failures only say that the job is still there.
    assert sorted({view["done"] for view in views(tab)}) == [0, 1, 4, 5]
    assert (last(tab)["status"], last(tab)["message"]) == ("failed", "bad")


def test_a_silent_link_is_left(script: Script, following: Any, eventually: Any) -> None:
    script.sockets = [[progress(1)], [progress(2), end(3)]]
    tab = following(before="window.silence = 300;")
    eventually(lambda: last(tab)["ended"])
    assert script.cursors == [None, 1]
    assert delivered(tab) == [1, 2, 3]


def test_signs_of_life_keep_a_link(script: Script, following: Any, eventually: Any) -> None:
    script.sockets = [[progress(1), *[0.1, {"type": "ping"}] * 20, end(2)]]
    tab = following(before="window.silence = 1000;")
    eventually(lambda: last(tab)["ended"])
    assert script.cursors == [None]


def test_a_callback_that_fails_does_not_end_the_following(script: Script, following: Any, eventually: Any) -> None:
    script.sockets = [[progress(1), end(2)]]
    tab = following(before="window.addEventListener('error', () => { window.faults = (window.faults ?? 0) + 1; });")
    script.sockets = [[progress(1), end(2)]]
    failing = "follow('/', 'j', 't', (view) => { window.final = view; throw new Error('mine'); })"
    tab.evaluate(f"import('/towline.js').then(({{ follow }}) => {{ {failing} }})")
    eventually(lambda: tab.evaluate("window.final?.ended"))
    assert tab.evaluate("faults") >= 3


def test_stop(script: Script, following: Any, eventually: Any) -> None:
    script.sockets = [[progress(1)]]
    tab = following()
    eventually(lambda: last(tab)["done"] == 1)
    count = tab.evaluate("(stop(), views.length)")
    eventually(lambda: script.closes == [4000])
    assert tab.evaluate("views.length") == count
    assert ends(tab) == []
