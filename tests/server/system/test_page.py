"""The page in a real browser: live over a killed hub, by keyboard, on a phone, with bad text and with 10,000 jobs."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from towline.server import Hub, HubLimits, JobContext, JobFailure, Upload

NODE_MODULES = Path(__file__).parents[3] / ".venv" / "node" / "node_modules"
ROWS = 60
HOSTILE = '<img src=x onerror="document.title=1">'
CSV = b"title,author\n" + "".join(f'"{n} {HOSTILE.replace(chr(34), chr(34) * 2)}",A\n' for n in range(ROWS)).encode()
#: Every count and every state of the link that the page shows, as it shows them.
WATCH = """
window.seen = []; window.links = [];
new MutationObserver(() => {
    const card = document.querySelector(".job");
    if (!card) return;
    seen.push(Number(card.dataset.done));
    links.push(card.querySelector(".link").textContent);
}).observe(document.getElementById("jobs"), {subtree: true, childList: true, attributes: true, characterData: true});
"""
#: Sockets never open, and calls whose path fits `cut` fail.
CUT_OFF = """
window.WebSocket = class { close() {} };
window.cut = /$^/;
const call = window.fetch;
window.fetch = (url, options) => cut.test(url.pathname) ? Promise.reject(new TypeError("cut")) : call(url, options);
"""
COUNT = "document.getElementById('count')?.textContent"
BAD_ITEM = "rows\x00\x1b[31m\u202eevil\u2066\x85" + HOSTILE


async def counting(context: JobContext, upload: Upload) -> None:
    await context.start(100)
    await context.progress(40, item="row 40")
    await anyio.sleep_forever()


async def hostile(context: JobContext, upload: Upload) -> None:
    await context.start(100)
    await context.progress(40, item=BAD_ITEM)
    await anyio.sleep_forever()


async def without_total(context: JobContext, upload: Upload) -> None:
    await context.start(None)
    await context.progress(3, item="page 3")
    await anyio.sleep_forever()


async def failing(context: JobContext, upload: Upload) -> None:
    await context.start(100)
    await context.progress(40)
    raise JobFailure("BAD_ROW", f"row 41 has no ISBN {HOSTILE} \u202e")


async def quick(context: JobContext, upload: Upload) -> dict[str, int]:
    await context.start(1)
    await context.progress(1)
    return {"answer": 42}


def make_hub(folder: Path, **limits: int) -> Hub:
    hub = Hub(folder / "hub.db", limits=HubLimits(**({"starts": 10_000} | limits)))
    for function in (counting, hostile, without_total, failing, quick):
        hub.job(function.__name__, path=f"/start/{function.__name__}")(function)
    return hub


def start(client: Any, name: str) -> str:
    assert client.start(b"x", f"/start/{name}", content_type="application/octet-stream").status_code == 202
    return client.job


def texts(tab: Any, selector: str) -> list[str]:
    """The texts of all elements that can be seen."""
    script = f"[...document.querySelectorAll({json.dumps(selector)})].filter(e => e.checkVisibility())"
    return tab.evaluate(f"{script}.map(e => e.textContent.replaceAll('\\u00a0', ' '))")


def choose(tab: Any, state: str = "", text: str = "") -> None:
    for name, value, event in (("state", state, "change"), ("text", text, "input")):
        tab.evaluate(f"{name} = document.getElementById('{name}'); {name}.value = {json.dumps(value)};")
        tab.evaluate(f"document.getElementById('{name}').dispatchEvent(new Event('{event}'))")


@pytest.mark.timeout(120)
def test_live_progress_over_a_killed_hub(hub_process: Any, open_tab: Any, eventually: Any) -> None:
    hub = hub_process(row_delay=0.05)
    client = hub.start()
    tab = open_tab(f"{client.url}/")
    eventually(lambda: tab.evaluate(COUNT) == "No jobs yet.")
    tab.evaluate(WATCH)
    assert client.start(CSV).status_code == 202
    eventually(lambda: (tab.evaluate("Math.max(0, ...seen)") or 0) >= 10)
    hub.kill()
    eventually(lambda: "reconnecting" in tab.evaluate("links"))
    eventually(lambda: tab.evaluate("document.body.dataset.hub") == "down")
    [notice] = texts(tab, "#notice")
    assert notice.startswith("The hub has not answered since ")
    hub.start()
    eventually(lambda: tab.evaluate("document.querySelector('.job').dataset.state") == "complete")
    eventually(lambda: tab.evaluate("document.body.dataset.hub") is None)
    assert texts(tab, "#notice") == []
    seen = tab.evaluate("seen")
    assert seen == sorted(seen)
    assert seen[-1] == ROWS
    assert tab.evaluate("document.images.length") == 0
    assert tab.evaluate("document.title") == "Jobs"
    assert texts(tab, ".pipeline") == ["csv_import"]
    assert texts(tab, ".word") == ["done"]
    assert tab.errors == []


@pytest.mark.timeout(120)
def test_states_texts_and_filters(tmp_path: Path, serving: Any, open_tab: Any, eventually: Any) -> None:
    with serving(make_hub(tmp_path, running_jobs=2)) as client:
        names = ["failing", "quick", "counting", "without_total", "counting"]
        ids = []
        for name in names:
            ids.append(start(client, name))
            if name in ("failing", "quick"):
                client.follow()
        tab = open_tab(f"{client.url}/")
        eventually(lambda: texts(tab, ".word") == ["waiting", "running", "running", "done", "failed"])
        assert texts(tab, ".pipeline") == names[::-1]  # the newest first
        signs = texts(tab, ".sign")
        borders = tab.evaluate("[...document.querySelectorAll('.job')].map(e => getComputedStyle(e).borderLeftStyle)")
        assert len({*zip(signs, borders, strict=True)}) == 4  # both running ones look alike, all others differ
        for _ in range(2):  # also after a reload
            eventually(lambda: texts(tab, ".message") == [f"row 41 has no ISBN {HOSTILE} \N{REPLACEMENT CHARACTER}"])
            waits, *_, done, failed = texts(tab, ".times")
            assert waits.startswith("created ")
            assert "waits for" in waits
            assert done.startswith("started ")
            assert "took 0 s" in failed or "took 1 s" in failed
            assert texts(tab, ".item") == ["page 3", "row 40"]
            assert texts(tab, ".amount") == ["0", "3", "40 of 100 (40 %)", "1 of 1 (100 %)", "40 of 100 (40 %)"]
            tab.call("Page.reload")
            eventually(lambda: len(texts(tab, ".job")) == 5)
        choose(tab, "failed")
        eventually(lambda: texts(tab, ".pipeline") == ["failing"])
        assert tab.evaluate(COUNT) == "1 of 5 jobs"
        choose(tab, "", "COUNT")
        eventually(lambda: texts(tab, ".pipeline") == ["counting", "counting"])
        choose(tab, "running", ids[3][:8])
        eventually(lambda: texts(tab, ".pipeline") == ["without_total"])
        choose(tab, "running", "no job has this")
        eventually(lambda: tab.evaluate(COUNT) == "0 of 5 jobs")
        choose(tab)
        eventually(lambda: len(texts(tab, ".job")) == 5)
        result = "fetch(document.querySelector('.job[data-state=complete] .result').href).then(answer => answer.json())"
        assert tab.evaluate(result) == {"pipeline": "quick", "answer": 42}
        assert len(texts(tab, ".result")) == 1
        running = "getComputedStyle(document.querySelector('progress:indeterminate')).animationPlayState"
        assert tab.evaluate(running) == "running"
    eventually(lambda: tab.evaluate("document.body.dataset.hub") == "down")
    assert tab.evaluate(running) == "paused"
    assert not any("left" in times for times in texts(tab, ".times"))
    assert tab.errors == []


@pytest.mark.timeout(120)
def test_a_job_is_canceled_by_keyboard(tmp_path: Path, serving: Any, open_tab: Any, eventually: Any) -> None:
    with serving(make_hub(tmp_path)) as client:
        start(client, "counting")
        tab = open_tab(f"{client.url}/")
        eventually(lambda: texts(tab, ".item") == ["row 40"])
        focus = "document.activeElement.className || document.activeElement.id"
        order = []
        for _ in range(3):
            tab.press("Tab")
            order.append(tab.evaluate(focus))
        assert order == ["state", "text", "cancel"]
        tab.press("Enter")
        assert tab.evaluate("document.getElementById('ask').open")
        tab.press("Escape")
        assert not tab.evaluate("document.getElementById('ask').open")
        assert tab.evaluate(focus) == "cancel"
        tab.press("Enter", *"enough", "Tab")
        assert tab.evaluate(focus) == "yes"
        tab.press("Enter")
        eventually(lambda: texts(tab, ".answer") == ["Cancel accepted."])
        eventually(lambda: texts(tab, ".word") == ["canceled"])
        assert texts(tab, ".message") == ["enough"]
        assert texts(tab, ".cancel") == []
        assert tab.errors == []


@pytest.mark.timeout(120)
def test_a_cancel_that_comes_too_late_says_so(tmp_path: Path, serving: Any, open_tab: Any, eventually: Any) -> None:
    gate = tmp_path / "gate"

    async def gated(context: JobContext, upload: Upload) -> dict[str, int]:
        await context.progress(1, item="at the gate")
        while not gate.exists():  # noqa: ASYNC110 - made by the test's thread
            await anyio.sleep(0.01)
        return {}

    hub = make_hub(tmp_path)
    hub.job("gated", path="/start/gated")(gated)
    with serving(hub) as client:
        start(client, "gated")
        # The page's sockets never open and its list stays as it is, so it does not know that the job has ended.
        tab = open_tab(f"{client.url}/", CUT_OFF)
        eventually(lambda: texts(tab, ".item") == ["at the gate"])
        tab.evaluate("window.cut = /jobs$/")
        gate.touch()
        client.follow()
        for answer in ("Too late: the job had ended.", "Not canceled: cut. Try again."):
            tab.evaluate("document.querySelector('.cancel').click()")
            tab.evaluate("document.getElementById('yes').click()")
            eventually(lambda answer=answer: texts(tab, ".answer") == [answer])
            tab.evaluate("window.cut = /./")
        eventually(lambda: tab.evaluate("document.body.dataset.hub") == "down")
        tab.evaluate("window.cut = /$^/")
        eventually(lambda: texts(tab, ".word") == ["done"])  # by the list


@pytest.mark.timeout(120)
def test_control_characters_are_shown_as_what_they_are(
    tmp_path: Path, serving: Any, open_tab: Any, eventually: Any
) -> None:
    with serving(make_hub(tmp_path)) as client:
        start(client, "hostile")
        tab = open_tab(f"{client.url}/")
        shown = f"rows\N{SYMBOL FOR NULL}\N{SYMBOL FOR ESCAPE}[31m�evil��{HOSTILE}"
        eventually(lambda: texts(tab, ".item") == [shown])
        assert tab.evaluate("document.images.length") == 0
        assert tab.errors == []


@pytest.mark.timeout(180)
def test_ten_thousand_jobs(tmp_path: Path, serving: Any, open_tab: Any, eventually: Any) -> None:
    hub = make_hub(tmp_path, jobs_of_owner=20_000)
    with serving(hub) as client:
        job = start(client, "quick")
        client.follow()
    columns = "id, pipeline, owner, epoch, created, seq, status, total, processed, updated, ended, attempts, outcome"
    with closing(sqlite3.connect(tmp_path / "hub.db")) as database, database:
        copy = columns.replace("id,", "printf('%032x', value),", 1).replace("created,", "created - value / 3,")
        numbers = "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 9999)"
        database.execute(f"{numbers} INSERT INTO jobs ({columns}) SELECT {copy} FROM n, jobs WHERE id = '{job}'")
        database.execute("UPDATE jobs SET status = 'failed', outcome = '{\"message\": \"lost\"}' WHERE id LIKE '%270f'")
    with serving(make_hub(tmp_path, jobs_of_owner=20_000)) as client:
        tab = open_tab(f"{client.url}/")
        eventually(lambda: tab.evaluate(COUNT) == "10,000 jobs, the newest 100 are shown")
        assert len(texts(tab, ".job")) == 100
        assert texts(tab, "#more") == ["Show 100 more"]
        tab.evaluate("document.getElementById('more').click()")
        assert len(texts(tab, ".job")) == 200
        assert tab.evaluate("[...document.querySelectorAll('.job')].indexOf(document.activeElement)") == 100
        choose(tab, "failed")  # the oldest of all is found, although it had no card
        eventually(lambda: texts(tab, ".message") == ["lost"])
        choose(tab, "", f"{1234:032x}")
        eventually(lambda: tab.evaluate(COUNT) == "1 of 10,000 jobs")
        choose(tab)
        eventually(lambda: tab.evaluate(COUNT) == "10,000 jobs, the newest 100 are shown")
        start(client, "counting")
        eventually(lambda: texts(tab, ".item") == ["row 40"])
        # A filter over all jobs, drawn: fast enough to type.
        draw = "document.getElementById('text').oninput(); await new Promise(requestAnimationFrame);"
        spent = tab.evaluate(
            f"(async () => {{ const start = performance.now(); {draw} return performance.now() - start }})()"
        )
        assert spent < 1000
        assert tab.errors == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_serious_from_axe_and_no_sideways_scrolling(
    tmp_path: Path, serving: Any, open_tab: Any, eventually: Any, width: int, scheme: str
) -> None:
    axe = NODE_MODULES / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("no axe-core in .venv/node (make test-system)")

    def check() -> None:
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found = tab.evaluate("axe.run().then(found => found.violations)")
        bad = [one for one in found if one["impact"] in ("serious", "critical")]
        assert bad == [], json.dumps([(one["id"], [node["html"] for node in one["nodes"]]) for one in bad], indent=1)

    with serving(make_hub(tmp_path, running_jobs=2)) as client:
        tab = open_tab(f"{client.url}/")
        eventually(lambda: tab.evaluate(COUNT) == "No jobs yet.")
        tab.show_as(width, scheme=scheme)
        tab.evaluate(axe.read_text())
        check()
        for name in ("failing", "quick", "hostile", "without_total", "counting", "counting"):
            start(client, name)
            if name in ("failing", "quick"):
                client.follow()
        client.cancel()
        eventually(lambda: texts(tab, ".word") == ["canceled", "waiting", "running", "running", "done", "failed"])
        check()
        tab.evaluate("document.querySelector('.job[data-state=running] .cancel').click()")
        check()
        tab.evaluate("document.getElementById('no').click()")
    eventually(lambda: tab.evaluate("document.body.dataset.hub") == "down")
    check()
