"""The example pipelines do real work, on a real hub, followed over its sockets."""

import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from towline.server import Hub

EXAMPLES = Path(__file__).parents[2] / "examples"
BOOKS = Path(__file__).parents[2] / "towline" / "cli" / "books.csv"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, serving: Any) -> Iterator[Any]:
    pytest.importorskip("zxingcpp")
    enrichment, scan = load("batch_enrichment"), load("ai_scan")
    hub = Hub(tmp_path_factory.mktemp("hub") / "hub.db")
    catalogue = enrichment.load_catalogue(BOOKS)
    hub.job("batch_enrichment", path="/api/enrich", media_types=("application/json",))(
        enrichment.batch_enrichment(catalogue)
    )
    hub.job("ai_scan", path="/api/scan", media_types=("image/png",))(scan.ai_scan)
    with serving(hub) as client:
        yield client


def run(client: Any, path: str, body: bytes, media_type: str) -> Any:
    assert client.start(body, path, content_type=media_type).status_code == 202
    return client.follow()


def enrich(client: Any, *books: dict[str, str]) -> Any:
    body = json.dumps({"books": books}).encode()
    return run(client, "/api/enrich", body, "application/json").events[-1]["payload"]


def test_hits_and_misses(client: Any) -> None:
    result = enrich(
        client,
        {"title": "les misérables", "author": "Hugo"},
        {"title": "Emma", "author": "Somebody Else"},
        {"title": "No Such Book"},
        {"title": "", "isbn": "12345"},
        {"title": "Война и мир"},
        {"title": "!"},
    )
    assert (result["totalProcessed"], result["successCount"], result["failureCount"]) == (6, 2, 4)
    hit = result["enrichedBooks"][0]
    assert (hit["success"], hit["author"], hit["enriched"]["publicationYear"]) == (True, "Victor Hugo", 1862)
    assert [book.get("error") for book in result["enrichedBooks"]] == [
        None,
        "not in the catalogue",
        "not in the catalogue",
        "not a valid ISBN",
        None,
        "the book has no title and no ISBN",
    ]


def test_by_number(client: Any) -> None:
    number = enrich(client, {"title": "Emma"})["enrichedBooks"][0]["isbn"]
    found = enrich(client, {"title": "whatever", "isbn": f"{number[:3]}-{number[3:]}"})
    assert found["enrichedBooks"][0]["title"] == "Emma"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"books": [1]}', b"\xff"])
def test_a_batch_that_cannot_be_read(client: Any, body: bytes) -> None:
    end = run(client, "/api/enrich", body, "application/json").events[-1]
    assert (end["type"], end["payload"]["code"]) == ("error", "BAD_BATCH")


def shelf(*codes: tuple[str, int, tuple[int, int]]) -> bytes:
    """A photo of a shelf: barcodes, turned and placed on uneven ground."""
    import zxingcpp
    from PIL import Image

    photo = Image.effect_noise((1200, 900), 30).point(lambda shade: 150 + shade // 4)
    for text, angle, place in codes:
        code = zxingcpp.create_barcode(text, zxingcpp.BarcodeFormat.EAN13)
        image = Image.fromarray(code.to_image(scale=3))
        label = Image.new("L", (image.width + 60, image.height + 60), 255)
        label.paste(image, (30, 30))
        photo.paste(label.rotate(angle, expand=True, fillcolor=160), place)
    out = io.BytesIO()
    photo.save(out, "PNG")
    return out.getvalue()


def test_a_photo_of_a_shelf(client: Any) -> None:
    first, second, other = "9780306406157", "9791291007915", "4006381333931"
    photo = shelf((first, 0, (50, 60)), (second, 90, (700, 80)), (other, 4, (100, 550)))
    result = run(client, "/api/scan", photo, "image/png").events[-1]["payload"]
    assert (result["totalDetected"], result["approved"], result["needsReview"]) == (3, 2, 1)
    books = {book.get("isbn"): book for book in result["books"]}
    assert set(books) == {first, second, None}
    assert all(0.5 <= books[number]["confidence"] <= 1 for number in (first, second))
    box = books[first]["boundingBox"]
    assert 50 <= box["x1"] < box["x2"] <= 600
    assert 60 <= box["y1"] < box["y2"] <= 500
    assert books[second]["boundingBox"]["x1"] >= 700


def test_a_photo_without_barcodes(client: Any) -> None:
    seen = run(client, "/api/scan", shelf(), "image/png")
    assert seen.events[-1]["payload"]["books"] == []
    assert len(seen.events) == 7


def test_what_is_no_photo(client: Any) -> None:
    end = run(client, "/api/scan", b"GIF89a nonsense", "image/png").events[-1]
    assert (end["type"], end["payload"]["code"]) == ("error", "BAD_PHOTO")
