"""The paths of the calls about a job, on a server that speaks Towline's own protocol."""

from __future__ import annotations

from dataclasses import dataclass

from .transport import fill_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """The paths of the calls. `{job}` stands for the job id, percent-encoded.

    `job_state` and `result` require it. `cancel` may be a fixed path, because the id is also in the body.
    """

    job_state: str = "/api/job-state/{job}"
    token_refresh: str = "/api/token/refresh"
    cancel: str = "/api/jobs/{job}/cancel"
    result: str = "/api/jobs/{job}/results"

    def __post_init__(self) -> None:
        for template in (self.job_state, self.result):
            fill_template(template, "job")
        fill_template(self.cancel, "job", fixed=True)
