"""Text for terminals and logs."""

import logging

import pytest

from towline._text import JobLog


def test_a_log_line_names_its_job_and_the_place_that_wrote_it(caplog: pytest.LogCaptureFixture) -> None:
    log = JobLog("50%s\x1b[2J")
    with caplog.at_level(logging.INFO, "towline"):
        log.info("stopped")
        log.warning("%d %% of %s", 7, "%s")
        log.debug("not shown")
    assert [record.getMessage() for record in caplog.records] == [
        "job 50%s\\x1b[2J: stopped",
        "job 50%s\\x1b[2J: 7 % of %s",
    ]
    assert {record.filename for record in caplog.records} == {"test_text.py"}
    assert caplog.records[0].funcName == test_a_log_line_names_its_job_and_the_place_that_wrote_it.__name__


def test_an_error_of_a_job_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    JobLog("j1").error("it failed", exc_info=ValueError("why"))
    assert "ValueError: why" in caplog.text
    assert caplog.records[0].getMessage() == "job j1: it failed"
