"""The command line: every flag with its help is in flags.txt, and a change of one is seen in a diff."""

import ast
import difflib
import inspect
import io
import tokenize
from typing import Any

import pytest

from launch.cli import VERBS
from pipeline import config
from pipeline.config import FIELDS, Recipe
from pipeline.fields import flag
from pipeline.request import OWN_FLAGS
from tests import flags
from tests.flags import COMMAND, FILE, Flag, recipe_flags, verb_flags

OF_A_RECIPE = {item.name.split("|")[0]: item for item in recipe_flags()}
OF_VERBS = {(words, item.name or item.takes): item for words, items in verb_flags().items() for item in items}


def test_the_command_line_is_that_of_the_file() -> None:
    held, found = FILE.read_text().splitlines(), flags.text().splitlines()
    diff = "\n".join(difflib.unified_diff(held, found, "flags.txt", "now", n=0, lineterm=""))
    assert not diff, f"the command line changed:\n{diff}\nIf that is meant, run `{COMMAND}` and say so in CHANGELOG.md."


def test_a_changed_help_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "recipe_flags", lambda: [Flag("--seed", "INT", "of all draws", "0")])
    assert flags.text() != FILE.read_text()


def test_every_field_of_a_recipe_is_a_flag() -> None:
    assert set(OF_A_RECIPE) == {*OWN_FLAGS, *(f"--{flag(name)}" for name in FIELDS)}


def test_every_verb_is_in_the_file() -> None:
    assert {words.split()[0] for words, _ in OF_VERBS} == set(VERBS)


def test_every_flag_of_a_recipe_has_a_help() -> None:
    assert [name for name, item in OF_A_RECIPE.items() if not item.help] == []


def test_every_flag_of_a_verb_has_a_help() -> None:
    assert [f"{words} {name}" for (words, name), item in OF_VERBS.items() if not item.help] == []


def comments() -> dict[str, str]:
    """Return the comment behind each field of the recipe, by flag."""
    source = inspect.getsource(config)
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    found = {}

    def walk(kind: str, prefix: str) -> None:
        for node in classes[kind].body:
            if not isinstance(node, ast.AnnAssign):
                continue
            assert isinstance(node.target, ast.Name)
            name, hint = f"{prefix}{node.target.id}", node.annotation
            if isinstance(hint, ast.Name) and hint.id in classes:
                walk(hint.id, f"{name}.")
            else:
                lines: Any = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found[f"--{flag(name)}"] = " ".join(by_line[line] for line in lines if line in by_line)

    walk(Recipe.__name__, "")
    return found


def test_the_help_of_a_field_is_the_whole_comment_behind_it() -> None:
    behind = comments()
    assert {name: OF_A_RECIPE[name].help for name in behind} == behind
