"""Storm scripts: read strictly, made by seeds, and each step does its fault to a real proxy."""

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from towline import InvalidArgument
from towline.testing import FaultProxy, StormScript

SCRIPT = """
seed = 7

[[step]]
after = 1.5
do = "cut"
ending = "rst"

[[step]]
do = "black_hole"
directions = ["down"]
last = 8

[random]
steps = 5
between = [0.5, 2]
faults = ["cut", "refuse"]
"""


def test_a_script_is_its_steps_and_then_the_seeds() -> None:
    script = StormScript.from_toml(SCRIPT)
    steps = script.all_steps()
    assert [str(step) for step in steps[:2]] == ["cut (ending rst)", "black_hole (directions down) for 8 s"]
    assert (steps[0].after, steps[1].after) == (1.5, 0)
    assert len(steps) == 7
    assert all(str(step).startswith(("cut", "refuse")) and 0.5 <= step.after <= 2 for step in steps[2:])


def test_the_same_seed_makes_the_same_storm() -> None:
    def steps(seed: int) -> list[str]:
        return [str(step) for step in StormScript.from_toml(f"seed = {seed}\n[random]\nsteps = 50").all_steps()]

    assert steps(1) == steps(1) != steps(2)
    kinds = {step.split()[0] for seed in range(5) for step in steps(seed)}
    assert len(kinds) == 11
    assert "flip_bit" not in kinds


def test_for_tls_the_seed_chooses_no_messages() -> None:
    hidden = StormScript.from_toml("[random]\nsteps = 200")
    assert any(str(step).startswith("message") for step in hidden.all_steps())
    assert not any(str(step).startswith("message") for step in hidden.for_tls().all_steps())
    chosen = StormScript.from_toml(SCRIPT)
    assert chosen.for_tls() == chosen


@pytest.mark.parametrize(
    "text",
    ["[[step]]\ndo = 'message'\nfault = 'drop'\nnumber = 1", "[random]\nsteps = 1\nfaults = ['cut', 'message']"],
)
def test_a_message_that_tls_would_hide_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="ws://"):
        StormScript.from_toml(text).for_tls()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = 'x'", "seed"),
        ("what = 1", "what"),
        ("[[step]]\ndo = 'explode'", "explode"),
        ("[[step]]\ndo = 'cut'\nending = 'bang'", r"step\[0\].ending"),
        ("[[step]]\ndo = 'cut'\nspeed = 1", "speed"),
        ("[[step]]\ndo = 'cut'\nafter = -1", "after"),
        ("[[step]]\ndo = 'throttle'\nbytes_per_second = 0", "bytes_per_second"),
        ("[[step]]\ndo = 'throttle'\nbytes_per_second = inf", "bytes_per_second"),
        ("[[step]]\ndo = 'delay'\nlatency = inf", "latency"),
        ("[random]\nsteps = 1\nbetween = [inf, inf]", "between"),
        ("[random]\nsteps = 1_000_000_000", "steps"),
        ("[random]\nsteps = 1\nfaults = ['rain']", "rain"),
        ("[[step]", "Expected"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        StormScript.from_toml(text)


FAULTS = {
    "cut": ("do = 'cut'\nending = 'rst'", anyio.BrokenResourceError),
    "refuse": ("do = 'refuse'", anyio.BrokenResourceError),
    "hang_up": ("do = 'hang_up'\nending = 'fin'", anyio.EndOfStream),
    "drop_dials": ("do = 'drop_dials'", anyio.BrokenResourceError),
    "message": ("do = 'message'\nfault = 'drop'\nnumber = 1", anyio.BrokenResourceError),
    "cut_after": ("do = 'cut_after'\ncount = 5\nending = 'fin'", b"hello"),
    "flip_bit": ("do = 'flip_bit'\nnumber = 16", b"hemlo"),
    "black_hole": ("do = 'black_hole'", b""),
    "delay": ("do = 'delay'\nlatency = 9", b""),
    "throttle": ("do = 'throttle'\nbytes_per_second = 0.1\ndirections = ['down']", b"h"),
    "chop": ("do = 'chop'\npause = 9\ndirections = ['down']", b"h"),
    "gather": ("do = 'gather'\nseconds = 9", b""),
}


async def receive(stream: SocketStream) -> bytes:
    """What comes within a moment."""
    got = b""
    with anyio.move_on_after(0.15):
        while len(got) < 5:
            got += await stream.receive()
    return got


@pytest.mark.anyio
@pytest.mark.parametrize("name", FAULTS)
async def test_each_step_does_its_fault(name: str) -> None:
    text, seen = FAULTS[name]

    async def echo(stream: SocketStream) -> None:
        async with stream:
            try:
                while True:
                    await stream.send(await stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass

    script = StormScript.from_toml(f"[[step]]\n{text}\nlast = 60")
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        told = anyio.Event()
        with anyio.fail_after(20):
            async with FaultProxy("127.0.0.1", listener.extra(SocketAttribute.local_port)) as proxy:
                async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
                    await proxy.wait_links(1)
                    tasks.start_soon(script.run, proxy, lambda what: told.set())
                    await told.wait()
                    if isinstance(seen, type):
                        with pytest.raises(seen):
                            await stream.receive()
                    else:
                        await stream.send(b"hello")
                        assert await receive(stream) == seen
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_what_lasts_heals_and_what_is_armed_stays_armed() -> None:
    said: list[str] = []
    script = StormScript.from_toml("[[step]]\ndo='cut_after'\ncount=0\n[[step]]\ndo='refuse'\nlast=0.05")
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with FaultProxy("127.0.0.1", listener.extra(SocketAttribute.local_port)) as proxy:
            await script.run(proxy, said.append)
            assert said == [
                "cut_after (count 0, direction down, ending rst, times 1)",
                "refuse (ending rst) for 0.05 s",
                "heal",
            ]
            async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
