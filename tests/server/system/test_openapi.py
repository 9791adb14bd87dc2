"""What the hub publishes of its HTTP side is what it does, whatever it is sent."""

import contextlib
import itertools
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from towline.server import Hub, HubLimits, csv_import

EXAMPLES = 60


@pytest.mark.timeout(600)
def test_no_call_breaks_the_hub_or_its_word(tmp_path: Path, serving: Any) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import checks

    hub = Hub(tmp_path / "hub.db", limits=HubLimits(starts=10**6, calls=10**6, jobs_of_owner=10**6))
    hub.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import())
    with serving(hub) as client:
        client.start(b"title,author\na,b\n")
        client.follow()
        schema = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 11
        # What the document allows, and what it does not; some calls leave nothing that is not allowed.
        modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
        for operation, mode in itertools.product(operations, modes):

            @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                case.call_and_validate(
                    headers=client.auth,
                    checks=[
                        checks.not_a_server_error,
                        checks.status_code_conformance,
                        checks.content_type_conformance,
                        checks.response_schema_conformance,
                    ],
                )

            with contextlib.suppress(Unsatisfiable, SkipTest):
                check()
        client.start(b"title,author\na,b\n")
        assert client.follow().code == 1000
    assert sum(hub.statistics().refusals.values()) > 100
