"""A storm as a script: which faults affect a `FaultProxy`, and when. In TOML (docs/testing.md), or made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeAlias

import anyio
import msgspec
from msgspec import Meta, Struct

from .._exceptions import InvalidArgument
from .memory._stream import Direction, Ending
from .proxy._fault_proxy import FaultProxy
from .proxy._message_faults import MessageFault

# TOML allows infinity, but a storm must not: this large limit excludes it.
_MOST: Final = 1e12
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=_MOST)]
Positive: TypeAlias = Annotated[float, Meta(gt=0, le=_MOST)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
One: TypeAlias = Annotated[int, Meta(ge=1)]
# They are created, and listed in the report, before the storm starts.
FewSteps: TypeAlias = Annotated[int, Meta(ge=0, le=100_000)]


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do"):
    """One fault, `after` seconds after the previous step. With `last`, it heals that many seconds later."""

    after: Seconds = 0.0
    last: Seconds | None = None

    async def perform(self, proxy: FaultProxy) -> None:
        """Apply the fault to the proxy."""
        raise NotImplementedError

    def __str__(self) -> str:
        facts = {
            name: value for name, value in msgspec.to_builtins(self).items() if name not in ("do", "after", "last")
        }
        details = ", ".join(f"{name} {_as_text(value)}" for name, value in facts.items() if value not in ((), []))
        lasting = "" if self.last is None else f" for {self.last:g} s"
        return f"{self.__struct_config__.tag}{f' ({details})' if details else ''}{lasting}"


def _as_text(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Cut(Step, frozen=True, tag="cut"):
    """End all links."""

    ending: Ending = "fin"

    async def perform(self, proxy: FaultProxy) -> None:
        await proxy.cut(self.ending)


class BlackHole(Step, frozen=True, tag="black_hole"):
    """Forward nothing, in both directions if none is named."""

    directions: tuple[Direction, ...] = ()

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.black_hole(*self.directions)


class DropDials(Step, frozen=True, tag="drop_dials"):
    """Leave new connection attempts unanswered, and cut the open links."""

    async def perform(self, proxy: FaultProxy) -> None:
        await proxy.drop_dials()
        await proxy.cut("rst")


class Refuse(Step, frozen=True, tag="refuse"):
    """The server is gone: open links end, new connections are refused."""

    ending: Ending = "rst"

    async def perform(self, proxy: FaultProxy) -> None:
        await proxy.refuse()
        await proxy.cut(self.ending)


class HangUp(Step, frozen=True, tag="hang_up"):
    """A failing server: open links end, new connections are accepted and closed."""

    ending: Ending = "fin"

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.hang_up(self.ending)
        await proxy.cut(self.ending)


class Delay(Step, frozen=True, tag="delay"):
    """Delay all data; times in seconds."""

    latency: Seconds
    jitter: Seconds = 0.0
    directions: tuple[Direction, ...] = ()

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.delay(self.latency, *self.directions, jitter=self.jitter)


class Throttle(Step, frozen=True, tag="throttle"):
    """Limit the bandwidth."""

    bytes_per_second: Positive
    directions: tuple[Direction, ...] = ()

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.throttle(self.bytes_per_second, *self.directions)


class Chop(Step, frozen=True, tag="chop"):
    """Write small pieces, with a pause in seconds between them."""

    piece: One = 1
    pause: Seconds = 0.0
    directions: tuple[Direction, ...] = ()

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.chop(self.piece, *self.directions, pause=self.pause)


class Gather(Step, frozen=True, tag="gather"):
    """Collect the data of some seconds and forward it together."""

    seconds: Seconds
    directions: tuple[Direction, ...] = ()

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.gather(self.seconds, *self.directions)


class CutAfter(Step, frozen=True, tag="cut_after"):
    """End the next link that has carried `count` bytes."""

    count: Count
    direction: Direction = "down"
    ending: Ending = "rst"
    times: One = 1

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.cut_after(self.count, self.direction, self.ending, times=self.times)


class FlipBit(Step, frozen=True, tag="flip_bit"):
    """Flip one bit on the next link that carries it."""

    number: Count
    direction: Direction = "down"
    times: One = 1

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.flip_bit(self.number, self.direction, times=self.times)


class Message(Step, frozen=True, tag="message"):
    """Change the n-th message of the next WebSocket; the open links end, so that there is one."""

    fault: MessageFault
    number: One
    times: One = 1

    async def perform(self, proxy: FaultProxy) -> None:
        proxy.fault_message(self.fault, self.number, times=self.times)
        await proxy.cut("rst")


class Heal(Step, frozen=True, tag="heal"):
    """Remove all lasting faults."""

    async def perform(self, proxy: FaultProxy) -> None:
        await proxy.heal()


AnyStep: TypeAlias = (
    Cut
    | BlackHole
    | DropDials
    | Refuse
    | HangUp
    | Delay
    | Throttle
    | Chop
    | Gather
    | CutAfter
    | FlipBit
    | Message
    | Heal
)


class RandomSteps(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`steps` more faults, `between` seconds apart, chosen from `faults` (by default all but `flip_bit`)."""

    steps: FewSteps
    between: tuple[Seconds, Seconds] = (0.5, 5.0)
    faults: tuple[str, ...] = ()


class StormScript(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"steps": "step"}):
    """A storm of faults. `all_steps()` lists what will be done; the same seed gives the same steps."""

    seed: int = 0
    steps: tuple[AnyStep, ...] = ()
    random: RandomSteps | None = None

    @classmethod
    def from_toml(cls, text: str) -> StormScript:
        """Read a script. Raises `InvalidArgument`, which says what is wrong and where."""
        try:
            script = msgspec.toml.decode(text, type=cls)
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidArgument("storm", str(error)) from error
        for fault in script.random.faults if script.random else ():
            if fault not in _MAKERS:
                raise InvalidArgument("storm", f"{fault!r} is not a fault: use {', '.join(_MAKERS)}")
        return script

    def all_steps(self) -> list[AnyStep]:
        """The written steps, then the random ones."""
        steps = list(self.steps)
        if self.random is not None:
            chance = random.Random(self.seed)
            makers = [_MAKERS[name] for name in self.random.faults or _USUAL]
            for _ in range(self.random.steps):
                step = chance.choice(makers)(chance)
                steps.append(msgspec.structs.replace(step, after=round(chance.uniform(*self.random.between), 3)))
        return steps

    def for_tls(self) -> StormScript:
        """The storm for a connection with TLS, where a proxy sees no messages: the seed chooses no `message` faults.

        Raises `InvalidArgument` if the script names one.
        """
        chosen = self.random.faults if self.random is not None else ()
        if "message" in chosen or any(isinstance(step, Message) for step in self.steps):
            raise InvalidArgument("storm", "`message` needs a ws:// URL: with TLS the proxy cannot see messages")
        if self.random is None or chosen:
            return self
        usual = tuple(name for name in _USUAL if name != "message")
        return msgspec.structs.replace(self, random=msgspec.structs.replace(self.random, faults=usual))

    async def run(self, proxy: FaultProxy, report: Callable[[str], Any] = lambda what: None) -> None:
        """Run the storm. `report` gets each fault as it is applied. A fault without `last` stays to the end."""
        for step in self.all_steps():
            await anyio.sleep(step.after)
            report(str(step))
            await step.perform(proxy)
            if step.last is not None:
                await anyio.sleep(step.last)
                report("heal")
                await proxy.heal(disarm=False)


def _lasting(chance: random.Random) -> float:
    return round(chance.uniform(0.2, 4), 3)


def _ending(chance: random.Random) -> Ending:
    return "fin" if chance.random() < 0.5 else "rst"


def _directions(chance: random.Random) -> tuple[Direction, ...]:
    return chance.choice(((), ("up",), ("down",)))


def _message_fault(chance: random.Random) -> MessageFault:
    faults: tuple[MessageFault, ...] = ("drop", "duplicate", "swap", "replay")
    return chance.choice(faults)


#: Makes each fault with the seed's random numbers.
_MAKERS: Final[dict[str, Callable[[random.Random], AnyStep]]] = {
    "cut": lambda chance: Cut(ending=_ending(chance)),
    "black_hole": lambda chance: BlackHole(directions=_directions(chance), last=_lasting(chance)),
    "drop_dials": lambda chance: DropDials(last=_lasting(chance)),
    "refuse": lambda chance: Refuse(ending=_ending(chance), last=_lasting(chance)),
    "hang_up": lambda chance: HangUp(ending=_ending(chance), last=_lasting(chance)),
    "delay": lambda chance: Delay(latency=round(chance.uniform(0, 0.5), 3), jitter=0.1, last=_lasting(chance)),
    "throttle": lambda chance: Throttle(bytes_per_second=chance.choice((200, 2000, 20_000)), last=_lasting(chance)),
    "chop": lambda chance: Chop(piece=chance.choice((1, 2, 7)), directions=_directions(chance), last=_lasting(chance)),
    "gather": lambda chance: Gather(seconds=round(chance.uniform(0.01, 0.5), 3), last=_lasting(chance)),
    "cut_after": lambda chance: CutAfter(count=chance.randint(0, 4000), ending=_ending(chance)),
    "flip_bit": lambda chance: FlipBit(number=chance.randint(0, 8 * 2000)),
    "message": lambda chance: Message(fault=_message_fault(chance), number=chance.randint(1, 10)),
}

# TCP and TLS detect damaged bits. On a bare proxy a damaged bit may change any number in a message.
_USUAL: Final = tuple(name for name in _MAKERS if name != "flip_bit")
