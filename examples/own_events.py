import anyio

import towline
from towline.protocols import EventStream


def each(name, data):
    match name, data:
        case "progress", {"percent": percent}:
            return towline.Progress(fraction=percent / 100)
        case "done", {"result": result}:
            return towline.JobComplete(result=result)


async def main(url="http://127.0.0.1:8471/jobs/7/events"):
    async with towline.Connection(EventStream(url, each, with_type=True)) as connection:
        async for update in connection:
            print(update)


if __name__ == "__main__":
    anyio.run(main)
