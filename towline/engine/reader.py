"""Asks and reads with a protocol, and checks what it returns: it may be the program's own.

A protocol that raises, returns something else than facts or never stops yielding costs an attempt, and the error names
it. An end that was read before stands.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import PurePath
from typing import Final, NoReturn, get_args

from .._exceptions import InvalidArgument, MalformedMessage, ProtocolFailed
from .._facts import Ended, Fact, Item, Mark, Numbered, Protocol, Received, Request, Snapshot, Want
from .._secret import Secret
from .._tasks import is_failure
from .._text import JobLog, escape
from .._updates import Outcome, Progress, Update

#: The most facts of one message.
FACTS_LIMIT: Final = 10_000
#: The longest mark, in bytes: the store keeps it.
MARK_LIMIT: Final = 4096

_FACTS: Final = frozenset(get_args(Fact))
_OUTCOMES: Final = get_args(Outcome)


class Reader:
    """Calls one protocol. Raises `ProtocolFailed` if it does not keep its contract."""

    __slots__ = ("_has_raised", "log", "protocol")

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.log = JobLog(protocol.job)
        self._has_raised = False

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the protocol's request for `want`; None if its server has no such request."""
        try:
            asked: object = self.protocol.ask(want, token)
        except BaseException as error:
            if not is_failure(error):
                raise
            raise self._raised("ask", error) from error
        if asked is not None and not isinstance(asked, Request):
            raise self._failed(f"ask returned {type(asked).__name__}, not a Request or None")
        return asked

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what the server said; also raises `MalformedMessage`."""
        try:
            return self.checked(self.protocol.read(want, received))
        except BaseException as error:
            self.raise_failure(error)

    def raise_failure(self, error: BaseException) -> NoReturn:
        """Raise what an error that the protocol's `read` raised means."""
        if isinstance(error, MalformedMessage | ProtocolFailed) or not is_failure(error):
            raise error
        raise self._raised("read", error) from error

    def checked(self, facts: Iterable[Fact]) -> tuple[Fact, ...]:
        """Return what `read` returned, if it keeps the contract."""
        if type(facts) is tuple and len(facts) == 1:
            fact = facts[0]
            if type(fact) is Item and type(fact.update) is Progress and fact.at is None:
                return facts  # nearly every message of a server without a log
        if not isinstance(facts, Iterable):
            raise self._failed(f"read returned {type(facts).__name__}, not an iterable of facts")
        checked: list[Fact] = []
        try:
            for fact in facts:
                if (problem := _problem_of(fact)) is not None:
                    raise self._failed(problem)
                if len(checked) == FACTS_LIMIT:
                    raise self._failed(f"read returned more than {FACTS_LIMIT} facts for one message")
                checked.append(fact)
        except BaseException as error:
            if not is_failure(error):
                raise
            known = isinstance(error, MalformedMessage | ProtocolFailed)
            failure = error if known else self._raised("read", error)
            if not any(isinstance(fact, Ended) for fact in checked):
                if known:
                    raise
                raise failure from error
            self.log.warning("the job has ended, but then the protocol failed: %s", escape(str(failure)))
        return tuple(checked)

    def _raised(self, call: str, error: BaseException) -> ProtocolFailed:
        """The failure of a call that raised. The first one is logged with its traceback."""
        if not self._has_raised:
            self._has_raised = True
            self.log.error("the protocol %r raised an error in %s", self.protocol.name, call, exc_info=error)
        if isinstance(error, InvalidArgument):  # it says what the user's function must do
            return self._failed(f"{call} raised: {error}")
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.name}, {PurePath(place.filename).name}, line {place.lineno}"
        return self._failed(f"{call} raised {type(error).__name__} ({where})")

    def _failed(self, problem: str) -> ProtocolFailed:
        return ProtocolFailed(self.protocol.name, problem)


def _problem_of(fact: object) -> str | None:
    if type(fact) not in _FACTS:
        return f"read returned {type(fact).__name__}, which is not a fact"
    if isinstance(fact, Item | Snapshot | Ended):
        at: object = fact.at
        if at is not None and not isinstance(at, Numbered | Mark):
            return f"the position of {type(fact).__name__} is {type(at).__name__}, not Numbered or Mark"
        if isinstance(at, Mark) and len(at.text.encode("utf-8", "replace")) > MARK_LIMIT:
            return f"a mark has more than {MARK_LIMIT} bytes"
        if isinstance(fact, Ended):
            return None if isinstance(fact.outcome, _OUTCOMES) else "the outcome of Ended is not an outcome"
        updates = (fact.update,) if isinstance(fact, Item) else fact.updates
        for update in updates:
            if update is not None and (not isinstance(update, Update) or isinstance(update, _OUTCOMES)):
                return f"{type(update).__name__} is not an update"
    return None
