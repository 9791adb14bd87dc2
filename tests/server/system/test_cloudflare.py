"""The Cloudflare example speaks the wire protocol as the hub does: asked by plain clients, on a real workerd."""

import concurrent.futures
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from towline.server import ImportedBook, read_books

EXAMPLES = Path(__file__).parents[3] / "examples"
BOOKS = Path(__file__).parents[3] / "towline" / "cli" / "books.csv"
ROWS = 30
CSV = b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(ROWS))
MANY = b"title,author\n" + b"".join(b"Book %d,Somebody\n" % n for n in range(10_000))

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def quick(workerd: Any) -> Any:
    """A backend that takes no pauses."""
    return workerd()


@pytest.fixture(scope="module")
def slow(workerd: Any) -> Any:
    """A backend whose jobs last as long as a test needs them to."""
    return workerd(SLICE_PAUSE_MS=50)


@pytest.fixture
def client(quick: Any, client_of: Any) -> Iterator[Any]:
    with client_of(quick.url) as client:
        yield client


@pytest.fixture
def patient(slow: Any, client_of: Any) -> Iterator[Any]:
    with client_of(slow.url) as client:
        yield client


def start(client: Any, start_key: dict[str, str], body: bytes = CSV, **headers: str) -> Any:
    answer = client.start(body, **start_key, **headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


# --- events ------------------------------------------------------------------------------------------------------


def test_a_csv_is_followed_to_its_end(client: Any, quick: Any, start_key: Any) -> None:
    answer = start(client, start_key)
    assert (answer["jobId"], answer["token"], answer["expiresIn"]) == (client.job, client.token, 86400)
    seen = client.follow()
    assert (seen.code, seen.ack["from"]) == (1000, 1)
    assert seen.seqs == list(range(1, ROWS + 3))
    assert [event["type"] for event in seen.events] == ["job_started", *["job_progress"] * ROWS, "job_complete"]
    assert seen.events[-1]["payload"]["successRate"] == f"{ROWS}/{ROWS}"
    assert seen.events == quick.events(client.job)
    for event in (*seen.events, seen.ack):
        assert (event["jobId"], event["pipeline"], event["version"]) == (client.job, "csv_import", "1.0.0")


def test_a_late_client_gets_everything(client: Any, start_key: Any, eventually: Any) -> None:
    start(client, start_key)
    eventually(lambda: client.state()["status"] == "complete")
    seen = client.follow()
    assert (seen.ack["from"], seen.ack["to"]) == (1, ROWS + 2)
    assert seen.seqs == list(range(1, ROWS + 3))


def test_a_cursor_is_gone_on_from(patient: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key)
    with patient.socket() as socket:
        ready(socket)
        first = following(socket, lambda frame: frame["seq"] == 7)
    rest = patient.follow(first.cursor)
    assert rest.ack["from"] == 8
    assert first.seqs + rest.seqs == list(range(1, ROWS + 3))


@pytest.mark.parametrize("cursor", [{"epoch": "another", "seq": 5}, {"epoch": "another"}, {"seq": 5}, {}])
def test_a_cursor_of_another_epoch_begins_anew(client: Any, start_key: Any, cursor: dict[str, Any]) -> None:
    start(client, start_key)
    client.follow()  # to the end, so that the log has an event 5
    seen = client.follow(cursor)
    assert seen.ack["from"] == 1
    assert seen.seqs == list(range(1, ROWS + 3))


@pytest.mark.parametrize("seq", [1000, -1, 1.5, "7", None])
def test_a_cursor_that_is_none_begins_anew(client: Any, start_key: Any, seq: Any) -> None:
    start(client, start_key)
    epoch = client.follow().events[0]["epoch"]
    assert client.follow({"epoch": epoch, "seq": seq}).ack["from"] == 1


def test_a_cursor_at_the_end_gets_nothing_more_and_a_close(client: Any, start_key: Any) -> None:
    start(client, start_key)
    again = client.follow(client.follow().cursor)
    assert (again.ack["from"], again.ack["to"]) == (ROWS + 3, ROWS + 2)
    assert (again.events, again.code) == ([], 1000)


def test_ready_may_be_said_again(patient: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key)
    with patient.socket() as socket:
        ready(socket)
        first = following(socket, lambda frame: frame["seq"] == 3)
        ready(socket, first.cursor | {"seq": 1})
        rest = following(socket)
    assert rest.ack["from"] == 2
    place = rest.seqs.index(2)
    assert first.seqs + rest.seqs[:place] == list(range(1, place + 4))  # the first reading went on until then
    assert rest.seqs[place:] == list(range(2, ROWS + 3))


def test_a_silent_client_gets_everything_without_an_acknowledgement(
    client: Any, start_key: Any, following: Any
) -> None:
    start(client, start_key)
    with client.socket() as socket:
        seen = following(socket)
    assert (seen.ack, seen.code) == ({}, 1000)
    assert seen.seqs == list(range(1, ROWS + 3))


def test_a_client_that_speaks_late_is_told_nothing_twice(
    patient: Any, start_key: Any, ready: Any, following: Any
) -> None:
    rows = 80
    start(patient, start_key, b"title,author\n" + b"Emma,Jane Austen\n" * rows)
    with patient.socket() as socket:
        early = following(socket, lambda frame: frame["seq"] == 3)
        ready(socket)
        rest = following(socket)
    assert early.ack == {}
    assert rest.ack["from"] > 3
    assert early.seqs + rest.seqs == list(range(1, rows + 3))


def test_several_watchers_see_the_same(patient: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key)
    with patient.socket() as one, patient.socket() as two:
        for socket in (one, two):
            ready(socket)
        first, second = following(one), following(two)
    assert first.events == second.events
    assert first.seqs == list(range(1, ROWS + 3))


def test_the_state_holds_its_events(patient: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key)
    with patient.socket() as socket:
        ready(socket)
        last = following(socket, lambda frame: frame["seq"] == 5).events[-1]
        state = patient.state()
        end = following(socket).events[-1]
    assert state["seq"] >= last["seq"]
    assert state["processedCount"] == state["seq"] - 1  # one event says that it began, each of the others tells a row
    assert (state["status"], state["totalCount"], state["epoch"]) == ("running", ROWS, last["epoch"])
    assert state["currentItem"] == f"Book {state['processedCount'] - 1}"
    state = patient.state()
    assert (state["seq"], state["status"], state["epoch"]) == (end["seq"], "complete", end["epoch"])
    assert state["results"] == {key: value for key, value in end["payload"].items() if key != "type"}
    assert state["startTime"] <= state["lastUpdate"] == state["endTime"]


def test_a_long_job_tells_its_progress_in_larger_steps(client: Any, start_key: Any) -> None:
    start(client, start_key, MANY)
    seen = client.follow()
    counts = [event["payload"]["processedCount"] for event in seen.events[1:-1]]
    assert counts == list(range(20, 10_001, 20))
    assert seen.events[-2]["payload"]["progress"] == 1


# --- results -----------------------------------------------------------------------------------------------------


def test_a_large_result_goes_by_url(client: Any, start_key: Any) -> None:
    start(client, start_key, MANY + b"bad\n")
    payload = client.follow().events[-1]["payload"]
    assert payload == {"type": "job_complete", "pipeline": "csv_import", "resultUrl": f"/api/jobs/{client.job}/results"}
    assert client.state()["results"]["resultUrl"] == payload["resultUrl"]
    result = client.http.get(payload["resultUrl"], headers=client.auth).json()
    assert [book["title"] for book in result["books"]] == [f"Book {n}" for n in range(10_000)]
    assert (result["successRate"], len(result["errors"])) == ("10000/10001", 1)
    assert client.http.get(payload["resultUrl"]).status_code == 401


def test_a_result_is_measured_in_bytes(client: Any, start_key: Any) -> None:
    for letter, inline in (("a", True), ("å", False)):
        start(client, start_key, b"title,author\n" + f"{letter * 50},B\n".encode() * 3000)
        assert ("books" in client.follow().events[-1]["payload"]) is inline


def test_a_small_result_is_there_by_url_too(client: Any, start_key: Any) -> None:
    start(client, start_key)
    end = client.follow().events[-1]["payload"]
    response = client.http.get(f"/api/jobs/{client.job}/results", headers=client.auth)
    assert response.json() == {key: value for key, value in end.items() if key != "type"}


def test_no_result_before_the_end_nor_without_one(patient: Any, start_key: Any) -> None:
    start(patient, start_key)
    path = f"/api/jobs/{patient.job}/results"
    assert patient.http.get(path, headers=patient.auth).status_code == 409
    patient.cancel()
    assert patient.http.get(path, headers=patient.auth).status_code == 404


TRICKY = """Title;Author;ISBN;Publisher;Year\r
Plain;Anybody;0-306-40615-2;A House;1999\r
"Quoted ""so""; with
two lines";"B, C";;;\r
\r
Å ß 書;D;978-0-306-40615-7;;"2001"\r
;No title;;;\r
No author;;;;\r
Wrong digit;E;9780306406158;;\r
Not 978;F;1234567890123;;\r
X;G;097522980X;;\r
Short;H\r
Long;I;;;;J\r
Empty more;K;;;;\r
"Text" after;L;;;\r
Last;M;;;"""


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + TRICKY.encode(), (BOOKS).read_bytes()])
def test_rows_are_read_as_the_hub_reads_them(client: Any, start_key: Any, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "books.csv"
    file.write_bytes(content)
    start(client, start_key, content)
    result = client.follow().events[-1]["payload"]
    told = list(read_books(file))
    assert result["books"] == [msgspec.to_builtins(row) for row in told if isinstance(row, ImportedBook)]
    # They name a row without a title in different ways.
    untitled = re.compile(r"\((line|row) \d+\)")
    assert [untitled.sub("", error["title"]) for error in result["errors"]] == [
        untitled.sub("", row.title) for row in told if not isinstance(row, ImportedBook)
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "CSV_EMPTY"),
        (b"\n\n", "CSV_EMPTY"),
        (b"name,price\nA,1\n", "CSV_HEADER"),
        (b"title,author\n\xff\xfe,x\n", "CSV_ENCODING"),
    ],
)
def test_a_failure_says_why(client: Any, start_key: Any, body: bytes, code: str) -> None:
    start(client, start_key, body)
    seen = client.follow()
    [end] = seen.events
    assert (seen.code, end["type"], end["payload"]["code"], end["payload"]["retryable"]) == (1000, "error", code, False)
    state = client.state()
    assert state["status"] == "failed"
    assert {"type": "error"} | state["error"] == end["payload"]


def test_a_file_without_rows_is_no_failure(client: Any, start_key: Any) -> None:
    start(client, start_key, b"title,author\n")
    assert client.follow().events[-1]["payload"]["successRate"] == "0/0"


def test_a_row_of_any_length_costs_itself_only(client: Any, start_key: Any) -> None:
    row, quoted = b"x" * 3_000_000, b'"' + b"x" * 20_000
    start(client, start_key, b"title,author\nA,B\n" + row + b"\n" + quoted + b'",D\nE,F\n')
    result = client.follow().events[-1]["payload"]
    assert [book["title"] for book in result["books"]] == ["A", "E"]
    errors = ["row 2: the row is too long", "row 3: a quote is never closed"]
    assert [error["error"] for error in result["errors"]] == errors


def test_no_letter_is_cut_in_half(patient: Any, start_key: Any) -> None:
    title, number = "x" * 499 + "\N{BOOKS}", "9" * 39 + "\N{BOOKS}"
    start(patient, start_key, f"title,author,isbn\n{title},A,{number}\n{title},B,\n".encode())
    events = patient.follow().events
    for event in events:
        json.dumps(event, ensure_ascii=False).encode()  # half a letter has no UTF-8
    assert events[1]["payload"]["currentItem"] == "x" * 499 + "\N{REPLACEMENT CHARACTER}"
    start(patient, start_key, MANY)
    path = f"/api/jobs/{patient.job}/cancel"
    assert patient.http.post(path, headers=patient.auth, json={"reason": title}).status_code == 200
    assert patient.follow().events[-1]["payload"]["reason"] == events[1]["payload"]["currentItem"]


def test_a_quote_that_is_never_closed_costs_one_row(client: Any, start_key: Any) -> None:
    start(client, start_key, b'title,author\nA,B\n"C,D\nE,F\n')
    result = client.follow().events[-1]["payload"]
    assert [book["title"] for book in result["books"]] == ["A", "E"]
    assert [error["error"] for error in result["errors"]] == ["row 2: a quote is never closed"]


# --- cancel ------------------------------------------------------------------------------------------------------


def test_cancel_stops_the_work(patient: Any, slow: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key)
    with patient.socket() as socket:
        ready(socket)
        first = following(socket, lambda frame: frame["seq"] == 5)
        path = f"/api/jobs/{patient.job}/cancel"
        assert patient.http.post(path).status_code == 401
        assert patient.http.post(path, headers=patient.auth, content=b"[").status_code == 400
        headers = patient.auth | {"idempotency-key": "once"}
        answer = patient.http.post(path, headers=headers, json={"reason": "enough"})
        assert answer.json() == {"jobId": patient.job, "result": "accepted"}
        end = following(socket)
    assert end.code == 1000
    payload = end.events[-1]["payload"]
    assert payload == {"type": "job_canceled", "processedCount": payload["processedCount"], "reason": "enough"}
    assert payload["processedCount"] < ROWS
    assert patient.cancel() == "accepted"
    time.sleep(0.5)  # ten times as long as a slice waits
    assert slow.events(patient.job) == first.events + end.events
    assert patient.state()["status"] == "canceled"


def test_cancel_after_the_end_is_too_late(client: Any, start_key: Any) -> None:
    start(client, start_key)
    client.follow()
    assert client.cancel() == "too_late"
    assert client.state()["status"] == "complete"


def test_cancel_racing_the_end_has_one_winner(client: Any, start_key: Any) -> None:
    for _ in range(20):
        start(client, start_key, b"title,author\na,b\n")
        answer = client.cancel()
        events = client.follow().events
        assert (answer, events[-1]["type"]) in {("accepted", "job_canceled"), ("too_late", "job_complete")}
        assert client.cancel() == answer
        assert client.follow().events == events


# --- who may -----------------------------------------------------------------------------------------------------


def test_refusals_at_the_upgrade(client: Any, start_key: Any) -> None:
    start(client, start_key)
    path, good = f"/ws/progress?jobId={client.job}", {"additional_headers": client.auth}
    assert client.refusal("/ws/progress", **good).status_code == 400
    assert client.refusal(path).status_code == 401
    assert client.refusal(path, additional_headers={"authorization": "Bearer nonsense"}).status_code == 401
    assert client.refusal(path + "&token=" + client.token).status_code == 401
    assert client.refusal("/ws/progress?jobId=nope").status_code == 401
    unknown = client.refusal("/ws/progress?jobId=nope", **good)
    assert unknown.status_code == 404
    assert json.loads(unknown.body)["error"]["code"] == "unknown_job"
    assert client.http.get(path, headers=client.auth).status_code == 426
    assert client.refusal(path, **good, origin="https://evil.example").status_code == 403
    with client.socket(origin=client.url) as socket:
        assert socket.response.status_code == 101


def test_a_token_opens_its_own_job_only(client: Any, start_key: Any) -> None:
    start(client, start_key)
    first = client.job
    start(client, start_key)
    assert client.http.get(f"/api/job-state/{first}", headers=client.auth).status_code == 401


def test_unauthorized_comes_before_unknown(client: Any, start_key: Any) -> None:
    start(client, start_key)
    escaped = f"%{ord(client.job[0]):x}{client.job[1:]}"
    for job in ("nope", "a" * 64, client.job.upper(), escaped, "'; DROP TABLE event; --"):
        assert client.http.get(f"/api/job-state/{job}").status_code == 401
        assert client.http.get(f"/api/job-state/{job}", headers={"authorization": "Bearer x"}).status_code == 404
        assert client.http.post(f"/api/jobs/{job}/cancel").status_code == 401
    answer = client.http.post("/api/token/refresh", json={"jobId": "nope", "oldToken": "x"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_token_by_subprotocol(client: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(client, start_key)
    carrier = f"towline.{client.token}"
    for offered, answered in (([carrier], carrier), (["towline", carrier], "towline")):
        with client.socket(additional_headers={}, subprotocols=offered) as socket:
            assert socket.subprotocol == answered
            ready(socket)
            assert following(socket).code == 1000


def test_starting_needs_the_key(client: Any, start_key: Any) -> None:
    assert client.start(CSV).status_code == 403
    assert client.start(CSV, authorization="Bearer nonsense").status_code == 403
    assert client.start(CSV, **start_key, content_type="application/json").status_code == 415
    assert client.http.get("/api/imports/csv").status_code == 405


def test_the_same_start_is_the_same_job(client: Any, start_key: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor() as threads:
        calls = [threads.submit(start, client, start_key, idempotency_key="k1") for _ in range(4)]
        answers = [call.result() for call in calls]
    assert len({answer["jobId"] for answer in answers}) == 1
    assert len({answer["token"] for answer in answers}) == 4
    for answer in answers:
        client.token = answer["token"]
        assert client.follow().seqs == list(range(1, ROWS + 3))
    assert client.start(CSV + b"more,more,\n", **start_key, idempotency_key="k1").status_code == 422
    assert client.start(CSV, **start_key, idempotency_key="").status_code == 400
    assert start(client, start_key, idempotency_key="k2")["jobId"] != answers[0]["jobId"]


def test_the_upload_limit(workerd: Any, client_of: Any, start_key: Any) -> None:
    with client_of(workerd(UPLOAD_BYTES=2_500_000).url) as client:
        # More than one value in storage may hold, and cut in the middle of a letter.
        exact = b"title,author\n" + "åååååååå,AB\n".encode() * 124_999
        exact += b"x" * (2_500_000 - len(exact))
        assert exact[1024 * 1024 - 1 :].startswith("å".encode())
        start(client, start_key, exact)
        url = client.follow().events[-1]["payload"]["resultUrl"]
        result = client.http.get(url, headers=client.auth).json()
        assert [book["title"] for book in result["books"]] == ["åååååååå"] * 124_999
        assert client.start(exact + b"a", **start_key).status_code == 413
        headers = {**start_key, "content-type": "text/csv"}
        of_no_told_length = iter([exact, b"a"])
        answer = client.http.post("/api/imports/csv", content=of_no_told_length, headers=headers)
        assert answer.status_code == 413


def test_bad_bodies(client: Any, start_key: Any) -> None:
    start(client, start_key)
    assert client.http.post("/api/token/refresh", content=b"[" * 10_000).status_code == 400
    assert client.http.post("/api/token/refresh", content=b" " * 20_000).status_code == 413
    assert client.http.post("/api/token/refresh", json={"jobId": client.job}).status_code == 400


# --- tokens and time ---------------------------------------------------------------------------------------------


def refresh(client: Any, token: str | None = None) -> Any:
    return client.http.post("/api/token/refresh", json={"jobId": client.job, "oldToken": token or client.token})


def status(client: Any) -> int:
    return client.http.get(f"/api/job-state/{client.job}", headers=client.auth).status_code


def test_a_token_is_not_on_the_disk(client: Any, quick: Any, start_key: Any) -> None:
    start(client, start_key)
    client.follow()
    assert len(quick.files()) >= 2
    for file in quick.files():
        assert client.token.encode() not in file.read_bytes()
    assert client.token not in quick.log()


def test_tokens_are_not_without_number(client: Any, start_key: Any) -> None:
    for _ in range(100):
        start(client, start_key, idempotency_key="many")
    refused = client.start(CSV, **start_key, idempotency_key="many")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert status(client) == 200


def test_a_refresh_too_early(client: Any, start_key: Any) -> None:
    start(client, start_key)
    response = refresh(client)
    assert response.status_code == 425
    assert 0 < int(response.headers["retry-after"]) <= 18 * 3600


def test_a_lost_refresh_costs_nothing(workerd: Any, client_of: Any, start_key: Any, eventually: Any) -> None:
    backend = workerd(SLICE_PAUSE_MS=600_000, TOKEN_SECONDS=3600, GRACE_SECONDS=1)
    with client_of(backend.url) as client:
        start(client, start_key)
        old = client.token
        lost, kept = refresh(client).json(), refresh(client).json()
        assert lost["token"] != kept["token"]
        time.sleep(1.2)  # longer than the grace, which has not begun
        assert status(client) == 200
        client.token = kept["token"]
        assert status(client) == 200
        # The new token was used, so the answer arrived, and the old one's grace begins.
        client.token = old
        assert status(client) == 200
        eventually(lambda: status(client) == 401)
        client.token = kept["token"]
        assert status(client) == 200
        assert refresh(client, "nonsense").status_code == 401


def test_an_expired_token(workerd: Any, client_of: Any, start_key: Any, eventually: Any) -> None:
    backend = workerd(SLICE_PAUSE_MS=600_000, TOKEN_SECONDS=1, GRACE_SECONDS=3)
    with client_of(backend.url) as client:
        start(client, start_key)
        assert status(client) == 200
        eventually(lambda: status(client) == 401)
        late = client.token
        assert refresh(client).status_code == 200
        eventually(lambda: refresh(client, late).status_code == 401)


def test_a_job_has_its_time(workerd: Any, client_of: Any, start_key: Any, eventually: Any) -> None:
    backend = workerd(TOKEN_SECONDS=1, RESULT_SECONDS=4, TRACE_SECONDS=3)
    with client_of(backend.url) as client:
        start(client, start_key, idempotency_key="k")
        first = client.follow()
        time.sleep(1.5)  # the token ran out, but it was good when the job ended
        assert status(client) == 200
        eventually(lambda: status(client) == 410)
        path = f"/ws/progress?jobId={client.job}"
        assert client.refusal(path, additional_headers=client.auth).status_code == 410
        assert refresh(client).status_code == 401
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            backend.events(client.job)
        eventually(lambda: status(client) == 404)
        # The same call makes the same job again: its log begins anew, and says so.
        before = client.job
        assert start(client, start_key, idempotency_key="k")["jobId"] == before
        again = client.follow(first.cursor | {"seq": 3})
        assert again.ack["from"] == 1
        assert again.seqs == first.seqs
        assert again.cursor["epoch"] != first.cursor["epoch"]


# --- sockets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x00", 1003),
        ("not json", 1007),
        ("[" * 4000, 1007),
        ('{"type":"x","pad":"' + "x" * 5000 + '"}', 1009),
    ],
)
def test_what_a_client_may_not_say(
    patient: Any, start_key: Any, following: Any, message: str | bytes, code: int
) -> None:
    start(patient, start_key)
    with patient.socket() as socket:
        socket.send(message)
        assert following(socket).code == code


def test_other_messages_are_ignored_up_to_a_point(patient: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key)
    with patient.socket() as socket:
        for text in ('{"type":"ping","timestamp":1}', "null", "[]", "7"):
            socket.send(text)
        ready(socket)
        assert following(socket).code == 1000
    start(patient, start_key, MANY)
    with patient.socket() as socket:
        for _ in range(101):
            socket.send('{"no":"type"}')
        assert following(socket).code == 1008


def test_a_flood_of_ready_is_not_answered_for_ever(patient: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key, MANY)
    with patient.socket() as socket:
        cursor: dict[str, Any] = {}
        for _ in range(102):
            ready(socket, cursor)
            cursor = cursor or following(socket, lambda frame: frame["seq"] == 1).cursor
        assert following(socket).code == 1008


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_a_clients_sockets_the_latest_stays(
    patient: Any, start_key: Any, ready: Any, following: Any, order: tuple[int, int]
) -> None:
    start(patient, start_key)
    with patient.socket() as one, patient.socket() as two, patient.socket() as other, patient.socket() as unnamed:
        ready(other, {"client": "another", "socket": 1})
        ready(unnamed)
        for number in order:
            ready(one if number == 1 else two, {"client": "c", "socket": number})
        replaced = following(one)
        assert (replaced.code, replaced.reason) == (4509, "replaced by a later socket of the same client")
        assert [following(socket).code for socket in (two, other, unnamed)] == [1000] * 3


def test_a_clients_close_is_answered(patient: Any, start_key: Any, ready: Any, following: Any) -> None:
    start(patient, start_key, MANY)
    with patient.socket() as socket:
        ready(socket)
        following(socket, lambda frame: frame["seq"] == 2)
        began = time.monotonic()
        socket.close(1001)
        assert time.monotonic() - began < 5  # the client itself would wait for ten seconds
        assert socket.protocol.close_rcvd is not None


def test_too_many_watchers(patient: Any, start_key: Any) -> None:
    start(patient, start_key, MANY)
    sockets = [patient.socket() for _ in range(64)]
    for socket in sockets:
        socket.__enter__()
    refused = patient.refusal(f"/ws/progress?jobId={patient.job}", additional_headers=patient.auth)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    for socket in sockets:
        socket.__exit__(None, None, None)
    with patient.socket() as socket:
        assert socket.response.status_code == 101


# --- what the platform does ----------------------------------------------------------------------------------------


@pytest.fixture
def changed(workerd: Any, tmp_path: Path) -> Any:
    """Serve the example with an addition to its Durable Object."""

    def serve(addition: str, **variables: Any) -> Any:
        example = EXAMPLES / "cloudflare" / "src" / "worker.js"
        main = tmp_path / "changed.js"
        main.write_text(
            f'import worker, {{ Job as Plain }} from "{example}";\n'
            f"export class Job extends Plain {{ {addition} }}\n"
            "export default worker;\n"
        )
        return workerd(main=main, **variables)

    return serve


def test_a_socket_outlives_its_objects_eviction(
    changed: Any, client_of: Any, start_key: Any, ready: Any, following: Any
) -> None:
    addition = "constructor(...given) { super(...given); console.log('an object is made'); }"
    backend = changed(addition, SLICE_PAUSE_MS=600_000)
    with client_of(backend.url) as client:
        start(client, start_key)
        with client.socket(ping_interval=0.5, ping_timeout=2) as socket:
            ready(socket)
            socket.recv(timeout=10)  # its acknowledgement
            time.sleep(13)  # workerd evicts after 10 s
            assert client.cancel() == "accepted"
            seen = following(socket)
        assert backend.log().count("an object is made") == 2
    assert (seen.code, [event["type"] for event in seen.events]) == (1000, ["job_canceled"])


def test_a_slice_that_fails_is_undone_and_done_again(changed: Any, client_of: Any, start_key: Any) -> None:
    addition = """
        write(job, ...given) {
            if (job.seq === 7 && !this.failed) {
                this.failed = true;
                throw new Error("a bad moment");
            }
            super.write(job, ...given);
        }
    """
    backend = changed(addition)
    with client_of(backend.url) as client:
        start(client, start_key)
        seen = client.follow()
        assert seen.seqs == list(range(1, ROWS + 3))
        assert seen.events == backend.events(client.job)
        assert [book["title"] for book in seen.events[-1]["payload"]["books"]] == [f"Book {n}" for n in range(ROWS)]
        assert seen.events[8]["timestamp"] - seen.events[6]["timestamp"] > 1000  # the platform's own wait


def test_an_alarm_that_comes_after_a_cancel_removes_nothing(
    changed: Any, client_of: Any, start_key: Any, eventually: Any
) -> None:
    addition = """
        async alarm(attempt) {
            if (this.record.seq === 1) {
                console.log("the alarm is here");
                await scheduler.wait(1000);
            }
            await super.alarm(attempt);
            console.log("the alarm is over", this.record.seq);
        }
    """
    backend = changed(addition)
    with client_of(backend.url) as client:
        start(client, start_key)
        eventually(lambda: "the alarm is here" in backend.log())
        assert client.cancel() == "accepted"
        eventually(lambda: "the alarm is over 2" in backend.log())
        assert client.state()["status"] == "canceled"


def test_a_lost_alarm_is_set_again(changed: Any, client_of: Any, start_key: Any, eventually: Any) -> None:
    backend = changed("schedule() { if (this.record.seq !== 7) super.schedule(); }")
    with client_of(backend.url) as client:
        start(client, start_key)
        eventually(lambda: len(backend.events(client.job)) == 7)
        time.sleep(0.5)
        assert len(backend.events(client.job)) == 7
        assert client.follow().seqs == list(range(1, ROWS + 3))
