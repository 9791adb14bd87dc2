import anyio

import towline
from towline.protocols import EventStream


def each(event):
    match event:
        case {"event": "progress", "percent": percent}:
            return towline.Progress(fraction=percent / 100)
        case {"event": "done", "result": result}:
            return towline.JobComplete(result=result)


async def main(url="http://127.0.0.1:8471/jobs/7/events"):
    async with towline.Connection(EventStream(url, each)) as connection:
        async for update in connection:
            print(update)


if __name__ == "__main__":
    anyio.run(main)
