"""Requests between any two lines of a following: five times as many lines as the quick suite tries."""

from __future__ import annotations

import pytest
from interrupted import interrupt_everywhere, interrupted_cancel, interrupted_request

from towline.testing import virtual_time_backends


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_cancel_between_any_two_lines_is_kept_and_answered_truly(backend: str) -> None:
    interrupt_everywhere(backend, interrupted_cancel, tried=151)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", virtual_time_backends())
@pytest.mark.parametrize("request_", ["connect", "retry", "background", "path", "wake"])
def test_other_requests_between_any_two_lines_lose_nothing(backend: str, request_: str) -> None:
    interrupt_everywhere(backend, interrupted_request, request_, tried=37)
