"""Tokens of jobs: made, kept by digest, checked, refreshed.

A token is 256 random bits, so a plain digest is enough at rest: there is nothing to guess.

Refreshing does not end the old token. It ends (after a grace period) when its successor is first used, which proves
that the answer arrived: a lost answer costs nothing, the call is simply made again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from .._secret import Secret
from ._settings import Lifetimes
from .log._base import WORKER_TOKENS, EventLog, Job, Token


@dataclass(frozen=True)
class Grant:
    """A token as it is given out, once. `expires_in` is in seconds."""

    token: Secret
    expires_in: int


@dataclass(frozen=True)
class TooEarly:
    """The token need not be refreshed yet: come back in `retry_after` seconds."""

    retry_after: int


class Tokens:
    """The tokens of a log. `now` gives milliseconds since 1970."""

    def __init__(self, log: EventLog, lifetimes: Lifetimes, now: Callable[[], int]) -> None:
        self._log = log
        self._lifetimes = lifetimes
        self._now = now

    async def grant(self, job_id: str, *, replaces: bytes | None = None, seconds: float | None = None) -> Grant:
        """Make a token for a job, for the usual time or for so many seconds."""
        text = secrets.token_urlsafe(32)
        lifetime = self._lifetimes.token if seconds is None else seconds
        expires = self._now() + round(lifetime * 1000)
        await self._log.add_token(Token(digest=_digest(text), job_id=job_id, expires=expires, replaces=replaces))
        return Grant(Secret(text), int(lifetime))

    async def grant_worker(self, job_id: str) -> Secret:
        """Make a token for a job's worker. It opens nothing but reports, and holds as long as the job runs."""
        text = secrets.token_urlsafe(32)
        digest = _digest(text, worker=True)
        await self._log.add_token(Token(digest=digest, job_id=job_id, expires=WORKER_TOKENS + self._now()))
        return Secret(text)

    async def admits_worker(self, job: Job, presented: Secret) -> bool:
        """Whether it is the token of a worker of this job."""
        return await self._find(job.id, presented, worker=True) is not None

    async def admits(self, job: Job, presented: Secret) -> bool:
        """Whether the token opens the job now."""
        token = await self._find(job.id, presented)
        if token is None or not (self._now() < token.expires or _outlived_by(token, job)):
            return False
        if token.replaces is not None:
            await self._log.limit_token(token.replaces, self._now() + round(self._lifetimes.grace * 1000))
        return True

    async def refresh(self, job_id: str, presented: Secret) -> Grant | TooEarly | None:
        """Give a new token for an old one; None where the old one opens nothing."""
        token = await self._find(job_id, presented)
        job = await self._log.job(job_id)
        if token is None or not isinstance(job, Job):
            return None
        if _outlived_by(token, job):
            return await self.grant(job_id, replaces=token.digest)
        left = (token.expires - self._now()) / 1000
        if left <= -self._lifetimes.grace:
            return None
        if left > self._lifetimes.refresh_window:
            return TooEarly(int(left - self._lifetimes.refresh_window) + 1)
        return await self.grant(job_id, replaces=token.digest)

    async def _find(self, job_id: str, presented: Secret, *, worker: bool = False) -> Token | None:
        digest = _digest(presented.reveal(), worker=worker)
        token = await self._log.token(digest)
        if token is None:
            return None
        # Both compared whole, so that the time taken says nothing of either.
        same_digest = hmac.compare_digest(token.digest, digest)
        same_job = hmac.compare_digest(token.job_id.encode(), job_id.encode(errors="surrogateescape"))
        return token if same_digest and same_job else None


def _outlived_by(token: Token, job: Job) -> bool:
    """Whether the token was valid when the job ended: it then opens the result for as long as there is one."""
    return job.ended is not None and job.ended < token.expires


def _digest(text: str, *, worker: bool = False) -> bytes:
    # The two kinds have digests of different functions, so no text is a token of both.
    data = text.encode(errors="surrogateescape")
    return hmac.digest(b"worker", data, "sha256") if worker else hashlib.sha256(data).digest()
