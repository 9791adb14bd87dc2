"""The server of `fastmcp` with tasks: tools that show numbered messages, fail and ask. Its last argument: the store."""

import asyncio
import sys
from datetime import timedelta
from typing import Any

import uvicorn
from fastmcp import FastMCP
from fastmcp.dependencies import Progress
from fastmcp.server.context import Context
from fastmcp.utilities.tasks import TaskConfig
from fastmcp_tasks import TasksExtension
from gate import Gate
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

mcp = FastMCP("tools")
mcp.add_extension(TasksExtension(url=sys.argv[2]))
AS_TASK = TaskConfig(mode="required", poll_interval=timedelta(seconds=0.25))


@mcp.tool(task=AS_TASK)
async def work(steps: int = 8, pause: float = 0.3, end: str = "", progress: Progress = Progress()) -> str:  # noqa: B008 - a dependency
    words = [f"w{number}" for number in range(steps)]
    for word in words:
        await progress.set_message(word)
        await asyncio.sleep(pause)
    if end == "failed":
        raise RuntimeError("the tool broke")
    return " ".join(words)


@mcp.tool(task=True)
async def plain() -> str:
    return "done"


@mcp.tool(task=AS_TASK)
async def broken() -> str:
    raise MCPError(code=-32603, message="the protocol broke")


@mcp.tool(task=AS_TASK)
async def ask(context: Context) -> Any:
    """Waits for a name."""
    if context.input_responses is None:
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        form = ElicitRequestFormParams(message="Who are you?", requested_schema=schema)
        return InputRequiredResult(input_requests={"who": ElicitRequest(params=form)})
    return "thank you"


if __name__ == "__main__":
    app = mcp.http_app()
    app.add_middleware(Gate)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
