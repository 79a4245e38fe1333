"""What is used of tyro's private interface; apart from library_internals.py, which imports torch, for seconds."""

import os

import tyro


def obey_no_color() -> None:
    """Keep tyro from colours where NO_COLOR is set (no-color.org), which it does not read itself."""
    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False
