"""An A2A agent of `a2a-sdk`, in memory. The text of a task's first message says what the task does, as JSON.

It makes `steps` status messages and chunks, one every `pause` seconds, and ends as `end` says. A second message is the
answer that a paused task waits for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvicorn
from a2a.helpers import new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, Part
from gate import Gate
from starlette.applications import Starlette


class Agent(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = TaskUpdater(event_queue, context.task_id, context.context_id)

        def said(text: str) -> Any:
            return task.new_agent_message([Part(text=text)])

        if context.current_task is not None:
            await task.start_work(said("answered"))
            await task.complete(said("done after the answer"))
            return
        await event_queue.enqueue_event(new_task_from_user_message(context.message))
        job = json.loads(context.get_user_input())
        for step in range(job["steps"]):
            await task.start_work(said(f"w{step}"))
            await task.add_artifact([Part(text=f"w{step}")], artifact_id="text", append=step > 0)
            await asyncio.sleep(job["pause"])
        ends = {
            "": task.complete,
            "failed": task.failed,
            "rejected": task.reject,
            "input": task.requires_input,
            "auth": task.requires_auth,
        }
        await ends[job["end"]](said(f"the end: {job['end']}"))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = TaskUpdater(event_queue, context.task_id, context.context_id)
        await task.cancel(task.new_agent_message([Part(text="stopped")]))


if __name__ == "__main__":
    card = AgentCard(name="agent", version="1", capabilities=AgentCapabilities(streaming="polled" not in sys.argv))
    handler = DefaultRequestHandler(Agent(), InMemoryTaskStore(), card)
    app = Starlette(routes=create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True))
    app.add_middleware(Gate)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
