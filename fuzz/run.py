"""`python fuzz/run.py TARGET [libFuzzer options]`: one target, guided by coverage of our parsers and their engines."""

import importlib
import sys

import atheris

if __name__ == "__main__":
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["towline.transport", "h11", "wsproto"]):
        target = importlib.import_module(name)
    atheris.Setup(sys.argv, target.check)
    atheris.Fuzz()
