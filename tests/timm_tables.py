"""The tables of docs/from-timm.md, from `launch/timm_flags.py`: `python -m tests.timm_tables` writes them anew."""

from collections.abc import Iterator
from typing import Any, Final

from launch.timm_flags import ABSENT, FLAGS, Flag
from tests.running import ROOT

PAGE: Final = ROOT / "docs" / "from-timm.md"


def cell(value: Any) -> str:
    """Return a default as it stands in a table."""
    if value is ABSENT:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in (None, ""):
        return "none"
    return " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in listed(value))


def listed(value: Any) -> list[Any]:
    """Return a value as a list of values."""
    return value if isinstance(value, list) else [value]


def rows(flags: list[Flag], last: str) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| flag | `main.py` | `train.py` | {last} |"
    yield "|---|---|---|---|"
    for flag in flags:
        spelled = ", ".join(f"`{name}`" for name in dict.fromkeys((f"--{flag.name}", *flag.others)))
        said = ", ".join(f"`{name}`" for name in flag.fields.split(", ")) if flag.fields else reason(flag)
        yield f"| {spelled} | {cell(flag.deit)} | {cell(flag.timm)} | {said} |"


def reason(flag: Flag) -> str:
    """Return why a flag has no field, and the value that is the same here."""
    return flag.why if flag.same is ABSENT else f"{flag.why} (the same here: {cell(flag.same)})"


def filled(page: str) -> str:
    """Return the page with its tables as the flags are."""
    for which, flags, last in (
        ("with", [flag for flag in FLAGS if flag.fields], "fields"),
        ("without", [flag for flag in FLAGS if flag.why], "why, or where else"),
    ):
        head = f"<!-- flags {which} fields -->\n"
        before, _, rest = page.partition(head)
        table = "\n".join(["", *rows(flags, last), "", ""])
        page = f"{before}{head}{table}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(PAGE)
