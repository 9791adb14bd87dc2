"""The server of `fastmcp` with tasks: a tool with numbered status messages. Its last argument is the backend's URL."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import uvicorn
from fastmcp import FastMCP
from fastmcp.dependencies import Progress
from fastmcp.utilities.tasks import TaskConfig
from fastmcp_tasks import TasksExtension
from gate import Gate

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


if __name__ == "__main__":
    app = mcp.http_app()
    app.add_middleware(Gate)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
