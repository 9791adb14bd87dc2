"""Check that the project's English does not get more archaic: `python tests/words.py [--files]`, part of `make lint`.

It counts old-fashioned turns of phrase in code and docs. The models of the field, counted the same way, per 100,000
words: aioquic 102, trio 42, structlog 30, websockets 23, anyio 22, httpx 16. A low count is a hint, not the aim: a
sentence without these words can still be hard to read.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: The highest allowed count per 100,000 words. Lower it whenever the count falls.
LIMIT = 22

ROOT = Path(__file__).parents[1]
FOLDERS = ("towline", "transport", "statemachine", "storage", "docs", "examples")
PHRASES = (
    "told",
    "tell",
    "tells",
    "telling",
    "whoever",
    "whatever",
    "nobody",
    "somebody",
    "anew",
    "lawful",
    "handed on",
    "hand on",
    "hands on",
    "of its own",
    "beside",
    "nor",
    "for ever",
    "begun",
    "what comes of",
    "is to be had",
    "come about",
    "mend",
    "in vain",
    "who has",
    "whoever has",
    "as ever",
    "hold back",
    "held back",
    "take up",
    "takes up",
    "taken up",
)
# A method such as `file.tell()` is code. A phrase may continue on the next line, in a comment too.
PHRASE = re.compile(r"(?<!\.)\b(" + "|".join(PHRASES).replace(" ", r"[\s#]+") + r")\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z']+")


def main(arguments: list[str]) -> int:
    paths = [path for name in FOLDERS for kind in ("*.py", "*.md") for path in sorted((ROOT / name).rglob(kind))]
    words = found = 0
    for path in [*paths, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        here = len(PHRASE.findall(text))
        words, found = words + len(WORD.findall(text)), found + here
        if here and "--files" in arguments:
            sys.stdout.write(f"{here:4} {path.relative_to(ROOT)}\n")
    count = round(found * 100_000 / words)
    sys.stdout.write(f"{found} old-fashioned phrases in {words} words: {count} per 100,000, at most {LIMIT}\n")
    if count > LIMIT:
        sys.stdout.write("write the new text in plain English; `python tests/words.py --files` lists the files\n")
    return int(count > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
