import anyio

import towline
from towline.protocols import Polling


def each(answer):
    match answer:
        case {"event": "progress", "percent": percent}:
            return towline.Progress(fraction=percent / 100)
        case {"event": "done", "result": result}:
            return towline.JobComplete(result=result)


async def main(url="http://127.0.0.1:8471/jobs/7"):
    async with towline.Connection(Polling(url, each)) as connection:
        async for update in connection:
            print(update)


if __name__ == "__main__":
    anyio.run(main)
