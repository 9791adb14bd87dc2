"""Where a connection's token comes from: a fixed one, a provider or the store, and how it is renewed."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

import anyio

from ._exceptions import DeadlineExceeded, TokenProviderFailed, TokenRefused, TowlineError
from ._secret import Secret
from ._tasks import failure_of
from .transport import JobCalls


class Token(NamedTuple):
    """A token, and when it expires: seconds since 1970, or None."""

    secret: Secret
    expires: float | None = None


#: An async function that gives a token, as text, as a `Secret`, or with its expiry. Raises `TokenRefused` for "never".
TokenProvider: TypeAlias = Callable[[], Awaitable[str | Secret | Token]]

#: A token is renewed when it has less than this to live, in seconds.
RENEW_BEFORE: Final = 60.0

_TOKEN: Final = re.compile(r"[!-~]+")


def as_token(given: object) -> Token:
    """What a provider gave, checked; raises `TokenProviderFailed` for what no request could carry."""
    if isinstance(given, str):
        given = Secret(given)
    if isinstance(given, Secret):
        given = Token(given)
    if not isinstance(given, Token) or not is_usable(given.secret):
        del given  # a traceback that prints locals must not show what may be nearly a token
        raise TokenProviderFailed("gave what is no token: it must be printable ASCII, without spaces")
    return given


def is_usable(token: Secret) -> bool:
    """Whether a header can carry the token (RFC 6750 section 2.1 allows less, servers more)."""
    return _TOKEN.fullmatch(token.reveal()) is not None


class _Given(NamedTuple):
    token: Token | None
    number: int


class TokenSource:
    """Gives the token to use now. Single-flight: callers that come meanwhile share one answer.

    The provider is called when there is no token, when the token expires within a minute, and when a fresh one is asked
    for; not at every attempt. Without a provider a fresh token is got from the server in exchange for the old one, if
    `refresh` allows it.
    """

    def __init__(
        self,
        job: str,
        calls: JobCalls,
        *,
        provider: TokenProvider | None,
        refresh: bool,
        deadline: float,
        changed: Callable[[Token], None],
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        self._job = job
        self._calls = calls
        self._provider = provider
        self._refresh = refresh
        self._deadline = deadline
        self._changed = changed
        self._wall_time = wall_time
        # Made when a token is renewed: one caller at a time does that, the others wait for what comes of it.
        self._renewing: anyio.Lock | None = None
        self._given = _Given(None, 0)
        # What a given token was replaced by; another one that is given counts for more.
        self._renewed: tuple[_Given, Token] | None = None

    def give(self, token: Token | None) -> None:
        """Use this token from now on. From any thread, signal handler or finalizer."""
        self._given = _Given(token, self._given.number + 1)

    @property
    def _token(self) -> Token | None:
        given, renewed = self._given, self._renewed
        return renewed[1] if renewed is not None and renewed[0] is given else given.token

    @property
    def held(self) -> Secret | None:
        """The token in use, however old: for a question that must not bother the provider."""
        token = self._token
        return None if token is None else token.secret

    @property
    def token_id(self) -> str | None:
        """Tells one given token from the next; None where tokens are made on demand."""
        return None if self.renewable else str(self._given.number)

    @property
    def renewable(self) -> bool:
        """Whether a rejected token can be replaced by a fresh one."""
        return self._provider is not None or self._refresh

    @property
    def expires(self) -> float | None:
        """When the token in use expires: seconds since 1970."""
        token = self._token
        return None if token is None else token.expires

    async def get(self, *, fresh: bool = False) -> Secret:
        """The token to use. `fresh`: another one than is held now.

        Raises `TokenRefused` where none is to be had, `DeadlineExceeded` if the provider takes too long, and whatever
        the provider or the server's refusal raises.
        """
        held = self._token
        renewing = self._renewing is not None and self._renewing.locked()
        if held is not None and not fresh and not renewing and not self._is_to_be_renewed(held):
            return held.secret
        self._renewing = self._renewing or anyio.Lock()
        async with self._renewing:
            token = self._token
            renewed_meanwhile = token is not None and token is not held
            if token is None or (fresh and not renewed_meanwhile) or self._is_to_be_renewed(token):
                token = await self._renew(token, demanded=fresh or token is None)
            return token.secret

    def _is_to_be_renewed(self, token: Token) -> bool:
        expires = token.expires
        return self.renewable and expires is not None and expires - self._wall_time() < RENEW_BEFORE

    async def _renew(self, old: Token | None, *, demanded: bool) -> Token:
        given = self._given
        try:
            token = await self._ask(old)
        except TowlineError:
            # A token that still lives is used on, when renewing it was our own idea.
            if old is None or demanded:
                raise
            return old
        self._renewed = given, token
        if given is not self._given and self._given.token is not None:
            # The user gave another one meanwhile, which counts for more.
            return self._given.token
        self._changed(token)
        return token

    async def _ask(self, old: Token | None) -> Token:
        if self._provider is not None:
            return await self._provided(self._provider)
        if old is None:
            raise TokenRefused(f"there is no token for job {self._job!r}: none was given and none is on record")
        if not self._refresh:
            raise TokenRefused("the token was rejected, and a fixed token cannot be renewed")
        renewed = await self._calls.refresh_token(self._job, old.secret)
        expires = None if renewed.expires_in is None else self._wall_time() + renewed.expires_in
        return Token(renewed.token, expires)

    async def _provided(self, provider: TokenProvider) -> Token:
        with anyio.move_on_after(self._deadline):
            try:
                answer: object = provider()
                if not isinstance(answer, Awaitable):
                    del answer  # a token, by all appearances
                    raise TokenProviderFailed("is no async function: make it one")
                given = await answer
            except BaseException as error:
                # Not logged with its text, which may quote the token.
                if await failure_of(error, "the token provider", log=False) is error:
                    raise
                raise TokenProviderFailed(f"raised {type(error).__name__}") from error
            return as_token(given)
        raise DeadlineExceeded("an answer of the token provider", self._deadline)
