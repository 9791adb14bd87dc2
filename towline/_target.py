"""What a connection follows: a protocol, the URL of a server that speaks Towline's own, or a job on record."""

from __future__ import annotations

from typing import Final

from ._exceptions import AmbiguousJob, InvalidArgument, RecordMismatch, TokenRefused
from ._facts import Protocol
from .protocols._shared.kept import protocol_of
from .protocols._shared.requests import path_segment
from .protocols.towline import Towline
from .protocols.wire.messages import NAME
from .storage import Record, RecordKey, Store
from .transport import URL, Origin, parse_origin, parse_url

_WEBSOCKET: Final = ("wss", "ws")
_ANY: Final = ("https", "http", *_WEBSOCKET)


class Target:
    """Checks what the caller named, finds its record, and makes the protocol.

    Raises `InvalidArgument` for a target or a job that cannot be used.
    """

    def __init__(self, given: str | Protocol | None, job: str | None, *, allow_insecure: bool) -> None:
        self._given = None if given is None or isinstance(given, str) else given
        self._allow_insecure = allow_insecure
        self.url = given if isinstance(given, str) else None if self._given is None else self._given.url
        self.job = _job_of(self._given, job)
        if self._given is not None:
            self.origins(self._given)
        elif self.url is not None:
            self.parse(self.url)

    @property
    def has_token_of_job(self) -> bool:
        """Whether each job has its token, as far as that is known without a record."""
        return self._given is None or getattr(self._given, "token_of_job", False)

    def parse(self, text: str) -> URL:
        """Check a URL. Raises `InvalidArgument`."""
        schemes = _WEBSOCKET if self._given is None and self.url is not None else _ANY
        return parse_url(text, schemes=schemes, allow_insecure=self._allow_insecure)

    def origins(self, protocol: Protocol) -> frozenset[Origin]:
        """The origins that the protocol's requests and the token may go to. Raises `InvalidArgument`."""
        found = {self.parse(protocol.url).origin}
        if (other := getattr(protocol, "api_origin", None)) is not None:
            found.add(parse_origin(other, allow_insecure=self._allow_insecure).origin)
        return frozenset(found)

    async def find(self, store: Store, *, needed: bool) -> Record | None:
        """Return the job's record at the URL's server; without a URL, the only record with this id.

        Raises `AmbiguousJob` if there are several, and `RecordMismatch` if a record is `needed`, and only others exist.
        """
        if self.url is None:
            found = await store.find(self.job)
            if len(found) > 1:
                raise AmbiguousJob(self.job, (record.key.server for record in found))
            return found[0] if found else None
        name = NAME if self._given is None else self._given.name
        key = RecordKey(name, self.parse(self.url).address, self.job)
        record = await store.read(key)
        if record is None and needed and (found := await store.find(self.job)):
            others = ", ".join(record.key.server for record in found)
            raise RecordMismatch(
                f"job {self.job!r} is on record for {others}, not for {key.server}: pass the URL it was saved for, "
                "or pass token="
            )
        return record

    def protocol(self, record: Record | None) -> Protocol:
        """Return the protocol; the record completes what the caller left out.

        Raises `TokenRefused` without a target and a record, and the errors of `protocol_of`.
        """
        if self._given is not None:
            return self._given
        if record is not None:
            parameters = dict(record.parameters)
            if self.url is not None:
                parameters["url"] = self.parse(self.url).whole
            return protocol_of(record.key.protocol, self.job, parameters, record.secrets)
        if self.url is not None:
            return Towline(self.parse(self.url).whole, self.job)
        raise TokenRefused(f"no record of job {self.job!r}: name its URL or its protocol, and pass its token")


def _job_of(given: Protocol | None, job: str | None) -> str:
    """The job's id, which a protocol knows itself."""
    if given is None:
        if job is None:
            raise InvalidArgument("job", "is missing: pass the job's id, or a protocol that names it")
        path_segment(job)
        return job
    if job not in (None, given.job):
        raise InvalidArgument("job", "the protocol names another job: leave job= out")
    return given.job
