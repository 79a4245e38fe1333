"""The tables of docs/recipes.md, from the recipes and their comments: `python -m tests.recipe_tables` writes them anew.

The comment beside a field says where its value is from: a source, `ours: why`, or `not stated: why`. Without one it is
the comment above the field, then that of its group, and at last the one above the recipe, which begins with "Unless a
field says otherwise".
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Final, NamedTuple

from pipeline.config import FIELDS
from pipeline.fields import flatten
from tests.running import ROOT

PAGE: Final = ROOT / "docs" / "recipes.md"
TABLE: Final = re.compile(r"(?<=<!-- table: )([^|>]*?)(?: but for (\w+))?( -->\n).*?(?=<!-- end -->)", re.DOTALL)
OTHERWISE: Final = "Unless a field says otherwise"
Sources = Mapping[str, str]  # where each field of a recipe is from, by dotted name


class Comments(NamedTuple):
    """The comments of a file by line: those behind code, and those alone."""

    behind: Mapping[int, str]
    alone: Mapping[int, str]

    def of(self, node: ast.keyword | ast.Assign) -> str:
        """Return what is said behind a value, else right above it; empty if nothing is."""
        for line in (node.value.end_lineno, node.lineno):
            if line in self.behind:
                return self.behind[line]
        above: list[str] = []
        line = node.lineno - 1
        while line in self.alone:
            above.insert(0, self.alone[line])
            line -= 1
        return " ".join(above).removeprefix(OTHERWISE).lstrip(":, ").removesuffix(".")


@cache
def sources(name: str) -> Sources:
    """Return where each field is from that a recipe sets, or a recipe that it is a `replace` of."""
    text = (ROOT / "recipes" / f"{name}.py").read_text()
    body, comments = ast.parse(text).body, _comments(text)
    bases = {
        str(alias.asname): sources(node.module.rpartition(".")[2])
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("recipes.")
        for alias in node.names
    }
    (recipe,) = (node for node in body if isinstance(node, ast.Assign))
    assert isinstance(recipe.value, ast.Call)
    return _of_call(recipe.value, "", comments.of(recipe), comments, bases)


def _of_call(
    call: ast.Call, prefix: str, said: str, comments: Comments, bases: Mapping[str, Sources]
) -> dict[str, str]:
    """Return the sources of the fields behind a prefix that `replace(base, ...)` or a group's class gives a value."""
    found: dict[str, str] = {}
    for base in call.args:
        of = base.value if isinstance(base, ast.Attribute) else base
        assert isinstance(of, ast.Name), "recipes are replaced, and groups of recipes"
        found |= {field: source for field, source in bases[of.id].items() if field.startswith(prefix)}
    for keyword in call.keywords:
        field, own = f"{prefix}{keyword.arg}", comments.of(keyword) or said
        inner = f"{field}."
        match keyword.value:
            case ast.Call():
                if not keyword.value.args:  # a group anew: what it had is at its default, for the same reason
                    found |= {other: own for other in found if other.startswith(inner)}
                found |= _of_call(keyword.value, inner, own, comments, bases)
            case ast.Attribute(value=ast.Name(id=base)):  # a group of another recipe as it is
                found |= {other: own for other in bases[base] if other.startswith(inner)}
            case _:
                found[field] = own
    return found


def _comments(text: str) -> Comments:
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            (alone if token.line.strip() == token.string else behind)[token.start[0]] = token.string.lstrip("# ")
    return Comments(behind, alone)


class Family(NamedTuple):
    """A table of the page: its recipes, and the one that they are as where the table has no row."""

    names: Sequence[str]
    base: str = ""

    def fields(self) -> list[str]:
        """Return the fields of its rows: those that one of its recipes sets, and not as the base does."""
        return [field for field in FIELDS if field != "name" and any(self._has(name, field) for name in self.names)]

    def _has(self, name: str, field: str) -> bool:
        said, its = sources(name).get(field), sources(self.base).get(field) if self.base else None
        return said is not None and (said, value(name, field)) != (its, value(self.base, field) if its else None)

    def table(self) -> str:
        """Return the table, a row a field and a column a recipe."""
        rows = [["field", *self.names, "from"], ["---"] * (len(self.names) + 2)]
        for field in self.fields():
            values = [cell(value(name, field)) for name in self.names]
            rows.append([f"`{field}`", *values, self._origins(field)])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def _origins(self, field: str) -> str:
        """Return the sources of a field, each once; where they differ, with the recipes that they are of."""
        by_source: dict[str, list[str]] = {}
        for name in self.names:
            if source := sources(name).get(field):
                marked = re.sub(r"^(ours|not stated)\b", r"**\1**", source).replace("|", r"\|")
                by_source.setdefault(marked, []).append(name)
        if list(by_source.values()) == [list(self.names)]:
            return next(iter(by_source))
        return "<br>".join(f"{', '.join(names)}: {source}" for source, names in by_source.items())


def value(name: str, field: str) -> Any:
    """Return the value of a recipe's field; of tuples a list."""
    return flatten(import_module(f"recipes.{name}").RECIPE)[field]


def cell(value: Any) -> str:
    """Return a value as it stands in a table."""
    if value is None or isinstance(value, bool):
        return {None: "its own", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return " ".join(map(cell, value)) or "none"
    if isinstance(value, str):
        return value or "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def families(page: str) -> list[Family]:
    """Return the tables of the page."""
    return [Family(names.split(), base) for names, base, _ in TABLE.findall(page)]


def filled(page: str) -> str:
    """Return the page with its tables as the recipes have them."""
    tables = iter(families(page))
    return TABLE.sub(lambda found: f"{found[0].partition(found[3])[0]}{found[3]}\n{next(tables).table()}\n", page)


def unsourced(names: Iterable[str]) -> list[str]:
    """Return the fields of recipes that no comment gives a source."""
    return [f"recipes/{name}.py: {field}" for name in names for field, source in sources(name).items()
            if not source and field != "name"]  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(PAGE)
