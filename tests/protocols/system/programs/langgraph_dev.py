"""`langgraph dev` with a graph: a run makes `steps` updates, one every `pause` seconds, and ends as `end` says.

It refuses every token but the one in the file `token`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from langgraph_sdk import Auth


class State(TypedDict, total=False):
    steps: int
    pause: float
    end: str
    done: int
    answer: str


async def work(state: State) -> State:
    await asyncio.sleep(state["pause"])
    return {"done": state.get("done", 0) + 1}


async def last(state: State) -> State:
    if state["end"] == "failed":
        raise ValueError("the disk is full")
    return {"answer": interrupt("which colour?") if state["end"] == "input" else "42"}


builder = StateGraph(State)
builder.add_node("work", work)
builder.add_node("last", last)
builder.add_edge(START, "work")
builder.add_conditional_edges("work", lambda state: "work" if state["done"] < state["steps"] else "last")
builder.add_edge("last", END)
graph = builder.compile()

auth = Auth()
ACCEPTED = Path.cwd() / "token"


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> str:
    if headers.get(b"authorization") != b"Bearer " + await asyncio.to_thread(ACCEPTED.read_bytes):
        raise Auth.exceptions.HTTPException(status_code=401, detail="unknown token")
    return "someone"


if __name__ == "__main__":
    here = str(Path(__file__).resolve())
    config = {"dependencies": ["."], "graphs": {"work": f"{here}:graph"}, "auth": {"path": f"{here}:auth"}}
    Path("langgraph.json").write_text(json.dumps(config))
    options = ["--host", "127.0.0.1", "--port", sys.argv[1], "--no-browser", "--no-reload", "--n-jobs-per-worker", "4"]
    os.execv(sys.executable, [sys.executable, "-m", "langgraph_cli", "dev", *options])
