"""The scenes: each follows one job on a stage to its end, and says what was seen and what was wrong."""

from __future__ import annotations

import secrets
import signal
import time
from dataclasses import dataclass
from email.utils import formatdate
from itertools import groupby

import anyio
import anyio.to_thread

from .app import Close, Refusal
from .child import ChildFollower
from .follower import PINGS, QUICK, SELDOM_PINGS, Follower
from .process import Process
from .stage import Stage


@dataclass(frozen=True)
class Seen:
    """What the client saw and what the engine did, in words, and what was wrong with it."""

    words: str
    findings: list[str]


def told(follower: Follower, since: float, findings: list[str]) -> Seen:
    """Each failure with its code, the first with how soon it came; then how it ended."""
    words: list[str] = []
    for code, run in groupby(follower.failures(), key=lambda failure: failure.code):
        failures = list(run)
        soon = "" if words else f" ({max(0.0, failures[0].at - since):.1f} s)"
        words.append(f"{code}{soon}{f' ×{len(failures)}' if len(failures) > 1 else ''}")
    gave_up = _unless(f"gave up: {follower.gave_up}", follower.gave_up is None)
    return Seen(", ".join([*words, *(gave_up or ["end"])]), [*follower.findings(), *gave_up, *findings])


async def left_alone(stage: Stage) -> Seen:
    """Nothing happens to it, and the job is followed on one socket."""
    return await _left_alone(stage, 0)


async def left_silent(stage: Stage) -> Seen:
    """Nothing happens to it but a silence, in which both sides ping, and the job is followed on one socket."""
    return await _left_alone(stage, 4)


async def _left_alone(stage: Stage, silence: float) -> Seen:
    follower = stage.follower(PINGS)
    since = anyio.current_time()
    async with follower.following():
        await follower.job.work(8)
        await follower.shown(8)
        await anyio.sleep(silence)
    return told(follower, since, _unless(f"the link was lost: {follower.failures()}", not follower.failures()))


async def stopped(stage: Stage) -> Seen:
    """The server is told to stop (SIGTERM), and begun again."""
    return await _begun_again(stage, stage.backend, signal.SIGTERM)


async def killed(stage: Stage) -> Seen:
    """The server is killed (SIGKILL), and begun again."""
    return await _begun_again(stage, stage.backend, signal.SIGKILL)


async def proxy_stopped(stage: Stage) -> Seen:
    """The proxy is told to stop (SIGTERM), and begun again."""
    assert stage.proxy is not None
    return await _begun_again(stage, stage.proxy, signal.SIGTERM)


async def proxy_killed(stage: Stage) -> Seen:
    """The proxy is killed (SIGKILL), and begun again."""
    assert stage.proxy is not None
    return await _begun_again(stage, stage.proxy, signal.SIGKILL)


async def frozen(stage: Stage) -> Seen:
    """The server stands still (SIGSTOP) until the link is lost and an attempt has failed as well, then goes on."""
    follower = stage.follower()
    async with follower.following():
        await follower.job.work(8)
        await follower.shown(8)
        since = anyio.current_time()
        stage.backend.send_signal(signal.SIGSTOP)
        await follower.job.work(4)
        await follower.failed(2)
        stage.backend.send_signal(signal.SIGCONT)
    codes = [failure.code for failure in follower.failures()]
    proxy = stage.setup.behind
    if proxy is not None and stage.setup.timeout < QUICK.connect_deadline:
        return told(follower, since, _unless(f"no {proxy.mute}: {codes}", proxy.mute in codes))
    return told(follower, since, _unless(f"no silence, then timeout: {codes}", codes[:2] == ["silence", "timeout"]))


async def client_frozen(stage: Stage) -> Seen:
    """The client stands still (SIGSTOP) for longer than a pinging server bears, then goes on."""
    plain = stage.follower()
    follower = ChildFollower(plain.url, plain.job)
    async with follower.following():
        await follower.job.work(8)
        await follower.shown(8)
        follower.send_signal(signal.SIGSTOP)
        await follower.job.work(4)
        await anyio.sleep(4)
        since = anyio.current_time()
        follower.send_signal(signal.SIGCONT)
    return told(follower, since, [])


async def dead(stage: Stage) -> Seen:
    """The server is killed, and begun again when the proxy has said so."""
    follower, proxy = stage.follower(), stage.setup.behind
    assert proxy is not None
    async with follower.following():
        await follower.job.work(8)
        await follower.shown(8)
        since = anyio.current_time()
        await anyio.to_thread.run_sync(stage.backend.end)
        await follower.job.work(4)
        await follower.failed(3)
        await anyio.to_thread.run_sync(stage.backend.start)
    codes = [failure.code for failure in follower.failures()]
    return told(follower, since, _unless(f"no {proxy.dead}: {codes}", proxy.dead in codes))


async def idle_kept(stage: Stage) -> Seen:
    """The job is silent for longer than the proxy bears, and pings keep the one socket."""
    follower = stage.follower(PINGS)
    since = anyio.current_time()
    async with follower.following():
        follower.job.go_on(1)
        await follower.shown(2)
        await anyio.sleep(2.2 * stage.setup.timeout)
    return told(follower, since, _unless(f"the link was lost: {follower.failures()}", not follower.failures()))


async def idle_cut(stage: Stage) -> Seen:
    """The job is silent, the proxy cuts the socket before any ping, twice, and the job is followed on."""
    follower, proxy = stage.follower(SELDOM_PINGS), stage.setup.behind
    assert proxy is not None
    async with follower.following():
        follower.job.go_on(1)
        await follower.shown(2)
        since = anyio.current_time()
        if proxy.cuts_idle:
            await follower.failed(2)
        else:
            await anyio.sleep(2.2 * stage.setup.timeout)
    return told(follower, since, _unless("the link was lost", proxy.cuts_idle or not follower.failures()))


@dataclass(frozen=True)
class Refused:
    """A scene: the upgrade is refused, `once` or always, and the engine ends or goes on as `ends` says.

    `wait`: what Retry-After asks for, in seconds, `dated` as a date. `renewable`: there is a fresh token to be had.
    """

    status: int
    ends: str
    once: bool = False
    wait: int = 0
    dated: bool = False
    renewable: bool = False
    state: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    async def __call__(self, stage: Stage) -> Seen:
        """Play it."""
        follower = stage.follower(job=f"refused-{self.status}-{self.ends}")
        if self.renewable:
            follower.token = _fresh
        bare = stage.server.bare_403
        ends = self.ends if self.renewable or not bare else "auth"
        headers = dict(self.headers)
        if self.wait:
            headers["Retry-After"] = str(self.wait)
        # A date has no fractions: the time that is at least `wait` ahead.
        not_before = int(time.time()) + 1 + self.wait
        if self.dated:
            headers["Retry-After"] = formatdate(not_before, usegmt=True)
        refusal = Refusal(self.status, headers, self.body, self.once, self.state)
        follower.job.refuse(refusal)
        code = f"http {403 if bare else self.status}"
        return await _turned_away(follower, code, ends, self.wait, not_before if self.dated else 0)


@dataclass(frozen=True)
class Closed:
    """A scene: the application closes the socket once, and the engine ends or goes on as `ends` says.

    `wait`: when the close's reason asks to come back, in seconds. `renewable`: there is a fresh token to be had.
    """

    code: int
    ends: str
    wait: int = 0
    renewable: bool = False

    async def __call__(self, stage: Stage) -> Seen:
        """Play it."""
        follower = stage.follower(job=f"closed-{self.code}-{self.ends}")
        if self.renewable:
            follower.token = _fresh
        follower.job.close(Close(self.code, f'{{"retry_in": {self.wait}, "spread": 1}}' if self.wait else ""))
        if stage.server.few_closes and 1000 < self.code < 3000:
            return await _turned_away(follower, "close 1011", "end")
        return await _turned_away(follower, f"close {self.code}", self.ends, self.wait)


async def _turned_away(follower: Follower, code: str, ends: str, wait: float = 0, not_before: float = 0) -> Seen:
    """Follow a job that the server turns away. The one attempt after it comes after `wait`, or not before a time."""
    async with follower.following():
        await follower.failed(1)
    upgrades = follower.job.upgrades()
    codes = [failure.code for failure in follower.failures()]
    findings = _unless(f"ended with {follower.gave_up}, not {ends}", (follower.gave_up or "end") == ends)
    findings += _unless(f"saw {codes}, not {code}", codes == [code])
    findings += _unless(f"dialled {len(upgrades)} times", len(upgrades) == (2 if ends == "end" else 1))
    if ends == "end":
        # A date says the same however late the refusal comes on a busy machine.
        early = (not_before or upgrades[0] + wait) - upgrades[-1]
        findings += _unless(f"came back {early:.2f} s too early", early <= 0)
    end = f"back in {upgrades[-1] - upgrades[0]:.1f} s, end" if ends == "end" else f"gave up: {follower.gave_up}"
    return Seen(f"{', '.join(codes)}, {end}", [*follower.findings(), *findings])


async def _fresh() -> str:
    return secrets.token_hex(8)


async def _begun_again(stage: Stage, process: Process, number: signal.Signals) -> Seen:
    follower = stage.follower()
    async with follower.following():
        await follower.job.work(8)
        await follower.shown(8)
        since = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, process.end, number)
            await follower.job.work(4)
        await follower.failed(1)
        await anyio.to_thread.run_sync(process.start)
    return told(follower, since, _unless("the link was not lost", follower.failures() != []))


def _unless(finding: str, holds: bool) -> list[str]:
    return [] if holds else [finding]
