"""Provides a connection's token, from a fixed token, a provider or the store, and renews it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Final, NamedTuple, TypeAlias

import anyio

from .._exceptions import DeadlineExceeded, TokenProviderFailed, TokenRefused, TowlineError
from .._facts import NewToken, RefreshToken
from .._secret import Secret
from .._tasks import failure_of
from ..sources import Access, UnusableAnswer, call
from .reader import Reader


@dataclass(frozen=True, slots=True, init=False)
class Token:
    """A token, with its expiry in seconds since 1970 if that is known.

    `refresh`: the server may exchange it for a fresh one, when it is about to expire or was refused.
    """

    secret: Secret
    expires: float | None
    refresh: bool

    def __init__(self, secret: str | Secret, expires: float | None = None, *, refresh: bool = False) -> None:
        object.__setattr__(self, "secret", Secret(secret) if isinstance(secret, str) else secret)
        object.__setattr__(self, "expires", expires)
        object.__setattr__(self, "refresh", refresh)


#: An async function that returns a token as text, a `Secret` or a `Token`. Raises `TokenRefused` for "never".
TokenProvider: TypeAlias = Callable[[], Awaitable[str | Secret | Token]]

#: A token is renewed this many seconds before it expires.
RENEW_BEFORE: Final = 60.0
#: The least seconds between two renewals.
_RENEWAL_SPACING: Final = 5.0

#: The deadline of the refresh call in seconds, and its largest answer in bytes.
_REFRESH_DEADLINE: Final = 10.0
_MAX_ANSWER: Final = 1 << 20

#: A token that a header can carry (RFC 6750 section 2.1 allows less, servers more).
_TOKEN: Final = re.compile(r"[!-~]+")


def as_token(given: object) -> Token:
    """Check a provider's return value; raises `TokenProviderFailed` if no request could carry it as a token."""
    if isinstance(given, str | Secret):
        given = Token(given)
    if not (isinstance(given, Token) and isinstance(given.secret, Secret) and _TOKEN.fullmatch(given.secret.reveal())):
        del given  # a traceback with locals must not show a value that may almost be a token
        raise TokenProviderFailed("returned something that is not a token: return printable ASCII without spaces")
    return given


class _Given(NamedTuple):
    token: Token | None
    number: int


@dataclass(slots=True, eq=False, repr=False)
class TokenSource:
    """Provides the token to use now. Concurrent callers share one renewal.

    The provider is called when there is no token, when the token expires within a minute, and when a fresh one is
    required; not for every attempt. Without a provider, a token that allows it is exchanged for a fresh one if the
    protocol `exchanges` tokens.
    """

    job: str
    reader: Reader
    access: Access
    _: KW_ONLY
    provider: TokenProvider | None
    exchanges: bool
    required: bool
    deadline: float
    changed: Callable[[Token], None]
    # Created for the first renewal: one caller renews, the others wait for the result.
    _renewing: anyio.Lock | None = field(default=None, init=False)
    _given: _Given = field(default=_Given(None, 0), init=False)
    # The given token and its renewed replacement; a token given later replaces both.
    _renewed: tuple[_Given, Token] | None = field(default=None, init=False)

    def give(self, token: Token | None) -> None:
        """Use this token from now on. Safe from any thread, signal handler or finalizer."""
        self._given = _Given(token, self._given.number + 1)

    @property
    def _token(self) -> Token | None:
        given, renewed = self._given, self._renewed
        return renewed[1] if renewed is not None and renewed[0] is given else given.token

    @property
    def held(self) -> Secret | None:
        """The current token, without calling the provider, even if it has expired."""
        token = self._token
        return None if token is None else token.secret

    @property
    def token_id(self) -> str | None:
        """Identifies the given token; None if tokens are provided on demand."""
        return None if self.renewable else str(self._given.number)

    @property
    def renewable(self) -> bool:
        """Whether a rejected token can be replaced by a fresh one."""
        return self.provider is not None or self._can_exchange(self._token)

    def _can_exchange(self, token: Token | None) -> bool:
        return self.exchanges and token is not None and token.refresh

    @property
    def renew_in(self) -> float | None:
        """The seconds until the token should be renewed; None if it does not expire, has expired or must stay."""
        token = self._token
        if token is None or token.expires is None or not self.renewable:
            return None
        left = token.expires - self.access.wall_time()
        return max(left - RENEW_BEFORE + 1, _RENEWAL_SPACING) if left > 0 else None

    async def get(self, *, fresh: bool = False) -> Secret | None:
        """Return the token to use; with `fresh`, another one than the current. None: there is none, and none is needed.

        Raises `TokenRefused` if there is none, `DeadlineExceeded` if the provider takes too long, and the errors of the
        provider or of the refresh call.
        """
        held = self._token
        if held is None and not fresh and not self.required and self.provider is None:
            return None
        renewing = self._renewing is not None and self._renewing.locked()
        if held is not None and not fresh and not renewing and not self._needs_renewal(held):
            return held.secret
        self._renewing = self._renewing or anyio.Lock()
        async with self._renewing:
            token = self._token
            renewed_meanwhile = token is not None and token is not held
            if token is None or (fresh and not renewed_meanwhile) or self._needs_renewal(token):
                token = await self._renew(token, demanded=fresh or token is None)
            return token.secret

    def _needs_renewal(self, token: Token) -> bool:
        expires = token.expires
        return self.renewable and expires is not None and expires - self.access.wall_time() < RENEW_BEFORE

    async def _renew(self, old: Token | None, *, demanded: bool) -> Token:
        given = self._given
        try:
            token = await self._ask(old)
        except TowlineError:
            # If only we wanted the renewal, keep using a token that is still valid.
            if old is None or demanded:
                raise
            return old
        self._renewed = given, token
        if given is not self._given and self._given.token is not None:
            # The user gave another token meanwhile, which takes precedence.
            return self._given.token
        self.changed(token)
        return token

    async def _ask(self, old: Token | None) -> Token:
        if self.provider is not None:
            return await self._provided(self.provider)
        if old is None:
            raise TokenRefused(
                f"there is no token for job {self.job!r}, neither given nor stored: pass token=, or on the command "
                "line use TOWLINE_TOKEN or --token-file"
            )
        want = RefreshToken()
        asked = self.reader.ask(want, old.secret) if self._can_exchange(old) else None
        if asked is None:
            hint = " or Token(..., refresh=True)" if self.exchanges else ""
            raise TokenRefused(f"the token was rejected and cannot be renewed: pass a token provider{hint}")
        answer, retry_after = await call(asked, self.access, deadline=_REFRESH_DEADLINE, max_body=_MAX_ANSWER)
        for fact in self.reader.read(want, answer):
            if isinstance(fact, NewToken):
                expires = None if fact.expires_in is None else self.access.wall_time() + fact.expires_in
                return Token(fact.token, expires=expires, refresh=True)
        raise UnusableAnswer(answer, "no new token was sent", retry_after=retry_after)

    async def _provided(self, provider: TokenProvider) -> Token:
        with anyio.move_on_after(self.deadline):
            try:
                answer: object = provider()
                if not isinstance(answer, Awaitable):
                    del answer  # it is probably a token
                    raise TokenProviderFailed("is not an async function: define it with async def")
                given = await answer
            except BaseException as error:
                # Not logged with its text, which may quote the token.
                if await failure_of(error, "the token provider", log=None) is error:
                    raise
                raise TokenProviderFailed(f"raised {type(error).__name__}") from error
            return as_token(given)
        raise DeadlineExceeded("an answer from the token provider", self.deadline)
