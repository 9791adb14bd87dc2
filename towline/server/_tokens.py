"""Tokens of jobs: made, kept by digest, checked, refreshed.

A follower's token is 256 random bits, so a plain digest is enough at rest: there is nothing to guess.

A worker's token is computed from the job's id and a random key that the log keeps. It costs nothing to check, so calls
with wrong ones cost nothing either, and the two kinds cannot be taken for each other.

Refreshing does not end the old token. It ends (after a grace period) when its successor is first used, which proves
that the answer arrived: a lost answer costs nothing, the call is simply made again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from .._secret import Secret
from ._settings import Lifetimes
from .log._base import EventLog, Job, Token


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
        self._worker_key: bytes | None = None

    async def grant(self, job_id: str, *, replaces: bytes | None = None, seconds: float | None = None) -> Grant:
        """Make a token for a job, for the usual time or for so many seconds."""
        text = secrets.token_urlsafe(32)
        lifetime = self._lifetimes.token if seconds is None else seconds
        expires = self._now() + round(lifetime * 1000)
        await self._log.add_token(Token(digest=_digest(text), job_id=job_id, expires=expires, replaces=replaces))
        return Grant(Secret(text), int(lifetime))

    async def worker_token(self, job_id: str) -> Secret:
        """The token of a job's workers. It opens nothing but reports, and holds as long as the job runs."""
        if self._worker_key is None:
            self._worker_key = (await self._log.keep_note("worker-key", os.urandom(32).hex(), replace=False)).encode()
        return Secret(hmac.digest(self._worker_key, _bytes(job_id), "sha256").hex())

    async def admits_worker(self, job_id: str, presented: Secret) -> bool:
        """Whether it is the token of the workers of this job, which need not be there."""
        token = await self.worker_token(job_id)
        return hmac.compare_digest(_bytes(token.reveal()), _bytes(presented.reveal()))

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

    async def _find(self, job_id: str, presented: Secret) -> Token | None:
        digest = _digest(presented.reveal())
        token = await self._log.token(digest)
        if token is None:
            return None
        # Both compared whole, so that the time taken says nothing of either.
        same_digest = hmac.compare_digest(token.digest, digest)
        same_job = hmac.compare_digest(token.job_id.encode(), _bytes(job_id))
        return token if same_digest and same_job else None


def _outlived_by(token: Token, job: Job) -> bool:
    """Whether the token was valid when the job ended: it then opens the result for as long as there is one."""
    return job.ended is not None and job.ended < token.expires


def _digest(text: str) -> bytes:
    return hashlib.sha256(_bytes(text)).digest()


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
