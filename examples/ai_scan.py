"""A hub whose jobs read the book barcodes in a photo, with a real decoder.

    pip install "zxing-cpp>=3" pillow
    python examples/ai_scan.py
    curl -H 'content-type: image/jpeg' --data-binary @shelf.jpg http://127.0.0.1:8470/api/scan

The job reads the photo several times: whole, smaller, blurred and rotated. The confidence in a barcode is the share of
readings that agree on it. Decoding blocks, so it runs in worker threads.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import zxingcpp
from PIL import Image, ImageFilter, UnidentifiedImageError
from stdnum import isbn

from towline.server import AiScanResult, BoundingBox, Hub, JobContext, JobFailure, ScannedBook, Upload, serve

MOST_PIXELS = 50_000_000
APPROVED = 0.5

# Each reading: a function that changes the photo, and the factor by which it shrinks it.
READINGS: dict[str, tuple[float, Callable[[Image.Image], Image.Image]]] = {
    "whole": (1, lambda photo: photo),
    "smaller": (0.75, lambda photo: photo.resize((photo.width * 3 // 4, photo.height * 3 // 4))),
    "half": (0.5, lambda photo: photo.resize((photo.width // 2, photo.height // 2))),
    "blurred": (1, lambda photo: photo.filter(ImageFilter.GaussianBlur(1))),
    "sharpened": (1, lambda photo: photo.filter(ImageFilter.SHARPEN)),
}


def open_photo(path: Path) -> Image.Image:
    """Open a photo in greyscale. Raises `JobFailure` if the file is not a photo or is too large."""
    try:
        photo = Image.open(path)
        if photo.width * photo.height > MOST_PIXELS:
            raise JobFailure("BAD_PHOTO", f"the photo is too large: send one of at most {MOST_PIXELS} pixels")
        return photo.convert("L")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise JobFailure("BAD_PHOTO", "the upload is not a readable photo") from error


def read_once(photo: Image.Image, name: str) -> dict[str, BoundingBox]:
    """Read the photo once: a dict from a barcode's text to its corners, in pixels of the whole photo."""
    scale, change = READINGS[name]
    found: dict[str, BoundingBox] = {}
    for barcode in zxingcpp.read_barcodes(change(photo), formats=zxingcpp.BarcodeFormat.EAN13):
        place = barcode.position
        corners = (place.top_left, place.top_right, place.bottom_right, place.bottom_left)
        across, down = [corner.x / scale for corner in corners], [corner.y / scale for corner in corners]
        found[barcode.text] = BoundingBox(x1=min(across), y1=min(down), x2=max(across), y2=max(down))
    return found


async def ai_scan(context: JobContext, upload: Upload) -> AiScanResult:
    photo = await anyio.to_thread.run_sync(open_photo, upload.path)
    await context.start(len(READINGS))
    boxes: dict[str, BoundingBox] = {}
    readings: defaultdict[str, int] = defaultdict(int)
    for done, name in enumerate(READINGS, start=1):
        for text, box in (await anyio.to_thread.run_sync(read_once, photo, name)).items():
            boxes.setdefault(text, box)
            readings[text] += 1
        await context.progress(done, item=name, status="reading barcodes")
    books = []
    for text, count in readings.items():
        confidence = count / len(READINGS)
        valid = isbn.is_valid(text)
        books.append(
            ScannedBook(
                isbn=text if valid else None,
                title=None if valid else f"barcode {text}",
                confidence=confidence,
                bounding_box=boxes[text],
                enrichment_status="approved" if valid and confidence >= APPROVED else "needs_review",
            )
        )
    approved = sum(book.enrichment_status == "approved" for book in books)
    return AiScanResult(total_detected=len(books), approved=approved, needs_review=len(books) - approved, books=books)


def main() -> None:
    hub = Hub("towline-hub.db")
    hub.job("ai_scan", path="/api/scan", media_types=("image/jpeg", "image/png"))(ai_scan)
    serve(hub=hub)


if __name__ == "__main__":
    main()
