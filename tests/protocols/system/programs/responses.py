"""The server of `azure-ai-agentserver-responses` with one agent, which says numbered words.

The request's metadata say what the agent does: `steps`, `pause` (seconds between words), `end`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from azure.ai.agentserver.responses import ResponseEventStream, ResponsesAgentServerHost, ResponsesServerOptions
from gate import Gate

#: `resilient`: a killed server runs its jobs again when it starts.
app = ResponsesAgentServerHost(options=ResponsesServerOptions(resilient_background="resilient" in sys.argv[2:]))


@app.response_handler
async def agent(request: Any, context: Any, cancelled: asyncio.Event) -> AsyncIterator[Any]:
    asked = request.get("metadata") or {}
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    message = stream.add_output_item_message()
    yield message.emit_added()
    text = message.add_text_content()
    yield text.emit_added()
    words = [f"w{number} " for number in range(int(asked.get("steps", "8")))]
    for word in words:
        await asyncio.sleep(float(asked.get("pause", "0.1")))
        if cancelled.is_set():
            return
        yield text.emit_delta(word)
    yield text.emit_text_done("".join(words))
    yield text.emit_done()
    yield message.emit_done()
    match asked.get("end"):
        case "failed":
            yield stream.emit_failed(code="server_error", message="the model broke")
        case "incomplete":
            yield stream.emit_incomplete(reason="max_output_tokens")
        case _:
            yield stream.emit_completed()


if __name__ == "__main__":
    app.add_middleware(Gate)
    app.run(host="127.0.0.1", port=int(sys.argv[1]))
