"""What one progress message costs to decode, to read and to put in order, without a socket.

    python benchmarks/reading.py [rounds]

Prints microseconds a message (the best of the rounds, which alternate) for the codec alone and for the protocol with
the sequencer, in batches of 50, as a socket delivers them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from towline import Progress
from towline._facts import Follow, Message, Numbered, Snapshot
from towline.engine.sequence.sequencer import Sequencer
from towline.protocols.towline import Towline
from towline.protocols.wire.codec import decode_known

COUNT = 20_000
BATCH = 50
EPOCH = "5f2c9a71"


def messages() -> list[str]:
    """Progress messages as the hub sends them."""
    return [
        json.dumps(
            {
                "type": "job_progress",
                "jobId": "j1",
                "pipeline": "csv_import",
                "timestamp": 1750000000000 + seq,
                "version": "1.0.0",
                "seq": seq,
                "epoch": EPOCH,
                "payload": {
                    "type": "job_progress",
                    "progress": seq / COUNT,
                    "status": "importing",
                    "processedCount": seq,
                    "currentItem": "Emma",
                },
            }
        )
        for seq in range(1, COUNT + 1)
    ]


def decode_only(texts: list[str]) -> None:
    """Run the codec alone."""
    for text in texts:
        decode_known(text)


def read_and_order(texts: list[str]) -> None:
    """Run the protocol and the sequencer."""
    protocol, sequencer = Towline("ws://h/ws/progress", "j1"), Sequencer("j1")
    sequencer.opened("state")
    sequencer.state((Snapshot((Progress(fraction=None, processed_count=0),), Numbered(0, EPOCH)),))
    sequencer.release()
    want, read, follow = Follow("websocket"), protocol.read, sequencer.follow
    for start in range(0, len(texts), BATCH):
        for text in texts[start : start + BATCH]:
            follow(read(want, Message(text)))
        sequencer.take()
    assert sequencer.applied == Numbered(len(texts), EPOCH)


def main(rounds: int = 9) -> None:
    """Measure each, alternately, and print the best."""
    texts = messages()
    runs: dict[str, Callable[[list[str]], None]] = {"decode": decode_only, "decode, read, order": read_and_order}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(texts)
            best[name] = min(best[name], (time.perf_counter() - begun) / COUNT * 1e6)
    for name, cost in best.items():
        print(f"{name:22} {cost:5.2f} us a message")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
