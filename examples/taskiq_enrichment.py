"""Jobs that run in taskiq, an asyncio queue; everything else is as in `celery_enrichment`.

TOWLINE_REDIS=redis://127.0.0.1 CATALOGUE=towline/cli/books.csv
taskiq worker examples.taskiq_enrichment:broker           # start as many as the work needs
python -m examples.taskiq_enrichment                      # start as many as the followers need
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError
from taskiq import AckableMessage, Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq_redis import RedisStreamBroker

from towline.server import Hub, Upload, serve

from .reported_enrichment import FILES, REDIS, give_up, run

TRIES = 5
LOST_AFTER = float(os.environ.get("LOST_AFTER", "15"))  # seconds without a sign of a worker


class Broker(RedisStreamBroker):
    """taskiq's broker, with workers that report regularly that they are alive.

    The original broker looks for the tasks of dead workers only after a new task has come, and counts every task older
    than `idle_timeout` as one of them. Here an idle worker looks regularly, and a busy worker refreshes the age of its
    own tasks.
    """

    def __init__(self, url: str, lost_after: float) -> None:
        # The group reads the stream from its beginning, so that workers also get tasks queued before they started.
        super().__init__(
            url, idle_timeout=round(lost_after * 1000), xread_block=round(lost_after * 250), consumer_id="0"
        )
        self._in_hand: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        await super().startup()
        if self.is_worker_process:
            self._keeper = asyncio.create_task(self._keep())

    async def shutdown(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        await super().shutdown()

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        who = {"groupname": self.consumer_group_name, "consumername": self.consumer_name}
        async with Redis(connection_pool=self.connection_pool) as redis:
            while True:
                new = await redis.xreadgroup(**who, streams={self.queue_name: ">"}, count=1, block=self.block)
                orphaned = await redis.xautoclaim(self.queue_name, **who, min_idle_time=self.idle_timeout, count=1)
                for identity, fields in [*(message for _, messages in new for message in messages), *orphaned[1]]:
                    self._in_hand.add(identity)
                    yield AckableMessage(data=fields[b"data"], ack=partial(self._done, identity))

    async def _done(self, identity: str) -> None:
        async with Redis(connection_pool=self.connection_pool) as redis:
            await redis.xack(self.queue_name, self.consumer_group_name, identity)
            await redis.xdel(self.queue_name, identity)
        self._in_hand.discard(identity)

    async def _keep(self) -> None:
        async with Redis(connection_pool=self.connection_pool) as redis:
            while True:
                await asyncio.sleep(self.idle_timeout / 4000)
                if self._in_hand:
                    with suppress(RedisError):  # try again next time
                        group = self.queue_name, self.consumer_group_name, self.consumer_name
                        await redis.xclaim(*group, min_idle_time=0, message_ids=[*self._in_hand], justid=True)


broker = Broker(REDIS, LOST_AFTER).with_middlewares(SimpleRetryMiddleware())


@broker.task(task_name="books.enrich", retry_on_error=True, max_retries=TRIES)
async def enrich(job_id: str, path: str, context: Context = TaskiqDepends()) -> None:  # noqa: B008 - taskiq's way
    try:
        await asyncio.to_thread(run, job_id, Path(path))
    except Exception:
        if int(context.message.labels.get("_retries", 0)) + 1 < TRIES:
            await asyncio.sleep(1)
        else:
            await asyncio.to_thread(give_up, job_id)
        raise


def make_hub() -> Hub:
    hub = Hub(REDIS, files=FILES)

    @hub.dispatch("batch_enrichment", path="/api/enrich", media_types=("application/json",))
    async def hand_out(job_id: str, upload: Upload) -> None:
        await enrich.kiq(job_id, str(upload.path.resolve()))

    return hub


if __name__ == "__main__":
    serve(port=int(os.environ.get("PORT", "8470")), hub=make_hub())
