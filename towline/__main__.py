"""`python -m towline` is the command line."""

from .cli import main

main()
