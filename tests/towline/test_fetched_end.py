"""An end that a state says on a link without states: what came before it may be missing, and this is reported."""

from __future__ import annotations

import pytest

from towline import JobComplete, Progress, Resynced
from towline._facts import Ended, Item
from towline.engine.sequence.findings import End, Gap
from towline.engine.sequence.sequencer import Sequencer

END = (Ended(JobComplete(result=1)),)


@pytest.mark.parametrize("replays_end", [True, False])
def test_the_report(replays_end: bool) -> None:
    sequencer = Sequencer("j", replays_end=replays_end)
    sequencer.opened("first_fact")
    sequencer.follow((Item(Progress(fraction=None, status="a")),))
    sequencer.release()
    sequencer.take()
    found = sequencer.look(END)
    if replays_end:
        assert isinstance(found, Gap)
        sequencer.resync()
        found = sequencer.state(END)
    assert isinstance(found, End)
    assert [type(update) for update in found.before] == [Resynced]
