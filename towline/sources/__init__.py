"""The I/O about one job: each call opens a connection, and an answer or a typed error comes back."""

from .job_calls import JobCalls, RefreshedToken, StartedJob, Templates

__all__ = [
    "JobCalls",
    "RefreshedToken",
    "StartedJob",
    "Templates",
]
