"""What a table or a picture shows of names that others chose: they control no terminal, and are no markup."""

from rich.text import Text

from shards.errors import harmless


def plain(text: object) -> Text:
    """Return a text for rich as it is: brackets and colons in it mean nothing."""
    return Text(harmless(text))
