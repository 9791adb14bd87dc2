"""The calls that watch a job: the socket, and the event stream."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from ...._exceptions import HubStorageError
from ...._secret import Secret
from ...log._base import Job
from .._access import bearer_token, query_token, socket_token
from .._answers import Refusal
from .._event_stream import EventStream, StreamWatcher, read_id
from .._socket import SocketWatcher
from ._shared import Calls, storage_refusal


class WatchCalls(Calls):
    """The socket is the object itself, an ASGI application: a framework's layers would cost time for each frame."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /ws/progress?jobId=`: the job's events, from the client's cursor on."""
        websocket = WebSocket(scope, receive, send)
        await websocket.receive()
        try:
            job, subprotocol = await self._admit(websocket)
        except Refusal as refusal:
            await self._deny(websocket, refusal)
        except HubStorageError as error:
            self.hub.counters.log_failures += 1
            await self._deny(websocket, storage_refusal(error))
        else:
            hub = self.hub
            watcher = SocketWatcher(websocket, send, job, hub.log, hub.limits, hub.counters, hub.now)
            with hub.watching(job.id, watcher, stream=False):
                await watcher.run(subprotocol)

    async def _admit(self, websocket: WebSocket) -> tuple[Job, str | None]:
        self.hub.check_open()
        self.check_origin(websocket)
        job_id = websocket.query_params.get("jobId")
        if not job_id:
            raise Refusal(400, "bad_request", "the query names no jobId")
        token, subprotocol = socket_token(websocket, subprotocol=self.hub.subprotocol, in_query=self.hub.token_in_query)
        return await self._watched(job_id, token), subprotocol

    async def events(self, request: Request) -> Response:
        """`GET /api/jobs/{jobId}/events`: the job's events as Server-Sent Events, from the client's place on."""
        hub = self.hub
        hub.check_open()
        self.check_origin(request)
        token = bearer_token(request) or (query_token(request) if hub.token_in_query else None)
        job = await self._watched(request.path_params["job_id"], token)
        # A page that reconnects sends the header by itself, with a later place than that of its URL.
        ready = read_id(request.headers.get("last-event-id") or request.query_params.get("lastEventId"))
        if not job.running and (ready.epoch, ready.seq) == (job.epoch, job.seq):
            # Nothing is left, and this status alone keeps an EventSource from reconnecting.
            return Response(status_code=204, headers={"cache-control": "no-store"})
        watcher = StreamWatcher(ready, job, hub.log, hub.limits, hub.counters, hub.now)
        return EventStream(watcher, lambda: hub.watching(job.id, watcher, stream=True))

    async def _watched(self, job_id: str, token: Secret | None) -> Job:
        """Find the job for one more watcher. Its caller awaits nothing before the watcher is among the hub's."""
        job = await self.job(job_id, token)
        self.hub.check_open()  # it may be stopping by now, and have sent its watchers away
        self.hub.check_room(job_id)
        return job

    async def _deny(self, websocket: WebSocket, refusal: Refusal) -> None:
        self.count(refusal, websocket)
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(refusal.response())
        else:  # this server can only say 403
            await websocket.close()

    async def no_upgrade(self, request: Request) -> Response:
        """A plain GET where an upgrade is wanted (RFC 9110 section 15.5.22)."""
        raise Refusal(426, "upgrade_required", "this is a WebSocket", {"upgrade": "websocket", "connection": "upgrade"})
