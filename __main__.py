"""``python -m latelier``."""

from .cli import main

main()
