"""What is known of each field, and what follows from it: every field is classified, every number has a range."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from pipeline.config import FIELDS, LOCAL_DIR, Distill, Recipe, cost_fields, identity, view_fields
from pipeline.fields import AT_LEAST_1, FREE, POSITIVE, RUN, VIEW, Field, OnlyWith, Range, Role, facts, flag, flatten
from pipeline.rules import recipe_problems
from shards.errors import Problem
from tests.tiny import TINY


def annotations(recipe: type = Recipe, prefix: str = "") -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yield name, type and metadata of every field, read by the test's own eyes."""
    for name, hint in get_type_hints(recipe, include_extras=True).items():
        if is_dataclass(hint):
            yield from annotations(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif get_origin(hint) is Annotated:
            kind, *metadata = get_args(hint)
            yield prefix + name, kind, tuple(metadata)
        else:
            yield prefix + name, hint, ()


KINDS = {name: kind for name, kind, _ in annotations()}
METADATA = {name: metadata for name, _, metadata in annotations()}


def parts(kind: Any) -> list[Any]:
    """Return the types that a type is made of: of a union, of a tuple, or itself."""
    if get_origin(kind) is Literal:
        return [Literal]
    return [part for inner in get_args(kind) for part in parts(inner)] or [kind]


NUMERIC = [name for name, kind in KINDS.items() if {int, float} & set(parts(kind))]
FLOATS = [name for name, kind in KINDS.items() if float in parts(kind)]


def length(name: str) -> int:
    """Return how many numbers a field holds; 0 where it is one number and no tuple."""
    tuples = [kind for kind in (KINDS[name], *get_args(KINDS[name])) if get_origin(kind) is tuple]
    return len([kind for kind in get_args(tuples[0]) if kind is not Ellipsis]) if tuples else 0


def changed(name: str, value: Any, recipe: Any = TINY) -> Any:
    """Return a recipe with another value of a field."""
    first, _, rest = name.partition(".")
    return replace(recipe, **{first: changed(rest, value, getattr(recipe, first)) if rest else value})


def complaints(recipe: Recipe, name: str) -> list[Problem]:
    return [problem for problem in recipe_problems(recipe) if problem.field == name]


def test_the_fields_are_those_of_the_recipe() -> None:
    assert list(FIELDS) == list(KINDS) == list(flatten(TINY))


@pytest.mark.parametrize("name", KINDS)
def test_a_field_has_exactly_one_role(name: str) -> None:
    roles = [mark for mark in METADATA[name] if isinstance(mark, Role)]
    assert len(roles) == 1
    assert FIELDS[name].role is roles[0]


def test_a_field_without_a_role_or_with_two_is_not_taken() -> None:
    class Unclassified:
        depth: int

    class Both:
        depth: Annotated[int, VIEW, RUN]

    for wrong in (Unclassified, Both):
        with pytest.raises(ValueError, match="values to unpack"):
            facts(dataclass(wrong))


@pytest.mark.parametrize("name", NUMERIC)
def test_a_number_has_a_range(name: str) -> None:
    assert isinstance(FIELDS[name].range, Range)
    assert sum(isinstance(mark, Range) for mark in METADATA[name]) == 1


def test_what_is_no_number_has_no_range() -> None:
    assert [name for name, field in FIELDS.items() if field.range] == NUMERIC


@pytest.mark.parametrize("field", [field for field in FIELDS.values() if field.only_with], ids=lambda field: field.name)
def test_a_condition_names_a_field_and_values_that_it_can_have(field: Field) -> None:
    for condition in field.only_with:
        assert condition.field in FIELDS
        choices = get_args(KINDS[condition.field]) if parts(KINDS[condition.field]) == [Literal] else None
        assert choices is None or set(condition.values) < set(choices)


def outside(its: Range, number: type) -> list[float]:
    """Return numbers just outside a range, and far outside."""
    found: list[float] = []
    step = 1 if number is int else 0.001
    if its.low > -math.inf:
        found += [its.low if its.excluded else its.low - step, its.low - 8]
    if its.high < math.inf:
        found += [its.high + step, its.high + 8]
    return found


def wrong_values() -> Iterator[Any]:
    for name in NUMERIC:
        its = FIELDS[name].range
        assert its
        wrong = outside(its, float if name in FLOATS else int)
        if name in FLOATS:
            wrong += [math.nan, math.inf, -math.inf]
        for number in wrong:
            yield pytest.param(name, number, id=f"{name} {number:g}")


@pytest.mark.parametrize(("name", "number"), list(wrong_values()))
def test_a_number_outside_its_range_is_refused_with_its_flag(name: str, number: float) -> None:
    its = FIELDS[name].range
    count = length(name)
    held = flatten(TINY)[name]
    usual = held if isinstance(held, list) and held else [0.5] * count
    values = [tuple(number if i == place else usual[i] for i in range(count)) for place in range(count)] or [number]
    for value in values:
        sentences = [str(problem) for problem in complaints(changed(name, value), name)]
        said = " ".join(str(part) for part in value) if count else str(value)
        assert f"--{flag(name)} is {said}; it must {its}." in sentences


@pytest.mark.parametrize("name", [name for name in NUMERIC if FIELDS[name].range.ascending])
def test_a_pair_that_falls_is_refused_with_its_flag(name: str) -> None:
    (problem,) = complaints(changed(name, (0.9, 0.3)), name)
    assert problem.sentence == f"--{flag(name)} is 0.9 0.3; it must not fall from the first to the second."
    assert complaints(changed(name, (0.3, 0.3)), name) == []


@pytest.mark.parametrize("name", NUMERIC)
def test_the_ends_of_a_range_belong_to_it_and_so_does_what_stands_for_something_else(name: str) -> None:
    its = FIELDS[name].range
    assert its
    for number in (its.low, its.high):
        if math.isfinite(number) and not (its.excluded and number == its.low):
            assert its.complaint(number) == ""
    for other in (None, "auto", True, False):
        assert its.complaint(other) == ""


@pytest.mark.parametrize(
    ("its", "says"),
    [
        (Range(), "be finite"),
        (POSITIVE, "be more than 0"),
        (Range(0), "not be negative"),
        (AT_LEAST_1, "be at least 1"),
        (Range(2, excluded=True), "be more than 2"),
        (Range(0, 10), "lie between 0 and 10"),
        (Range(0, 1, excluded=True), "lie between 0 (not itself) and 1"),
    ],
)
def test_a_range_says_what_a_number_must_be(its: Range, says: str) -> None:
    assert str(its) == says


def another_value(name: str) -> Any:
    """Return a value of a field that is not its default."""
    kind, default = KINDS[name], FIELDS[name].default
    found = parts(kind)
    if found == [Literal]:
        return next(choice for choice in get_args(kind) if choice != default)
    if bool in found:
        return not default
    if count := length(name):
        return tuple(0.2 + 0.1 * place for place in range(count))
    if float in found:
        return 0.25
    return (2 if default == 3 else 3) if int in found else "something"


def unmet() -> Iterator[Any]:
    """Yield each condition of each field, with a recipe that meets all of them but this one."""
    for name, field in FIELDS.items():
        for number, condition in enumerate(field.only_with):
            recipe = changed(name, another_value(name))
            for other in field.only_with:
                recipe = changed(other.field, other.values[0] if other.values else "something", recipe)
            met = recipe
            if condition.values:
                choices = get_args(KINDS[condition.field]) or ("full",)
                recipe = changed(condition.field, next(c for c in choices if c not in condition.values), recipe)
            else:
                recipe = changed(condition.field, "", recipe)
            yield pytest.param(name, condition, met, recipe, id=f"{name} {number}")


@pytest.mark.parametrize(("name", "condition", "met", "recipe"), list(unmet()))
def test_a_value_that_nothing_would_read_is_refused_with_both_flags(
    name: str, condition: OnlyWith, met: Recipe, recipe: Recipe
) -> None:
    (problem,) = complaints(recipe, name)
    last = flag(name.rpartition(".")[2])
    assert last in problem.sentence
    assert f"--{flag(condition.field)}" in problem.sentence
    assert not any(f"--{flag(condition.field)}" in str(problem) for problem in complaints(met, name))


def test_two_settings_that_ignore_each_other_are_refused() -> None:
    recipe = replace(TINY, augment=replace(TINY.augment, policy="auto"))
    assert [str(problem) for problem in recipe_problems(recipe)] == [
        "--augment.rand-ops 2 is for --augment.policy rand or --augment.policy rand_tf, not for auto: "
        "take --augment.rand-ops 0."
    ]


def test_a_policy_of_no_operations_is_refused() -> None:
    recipe = replace(TINY, augment=replace(TINY.augment, policy="rand_tf", rand_ops=0))
    assert [str(problem) for problem in recipe_problems(recipe)] == [
        "--augment.policy rand_tf: how many operations a view, --augment.rand-ops? 0 is none."
    ]


def test_lists_of_fields_are_derived_from_their_roles() -> None:
    by_role = {role: {name for name, field in FIELDS.items() if field.role is role} for role in Role}
    assert set(identity(TINY)) == by_role[VIEW] | by_role[RUN]
    assert set(view_fields(TINY)) == by_role[VIEW]
    assert set(cost_fields(TINY)) == {name for name, field in FIELDS.items() if field.cost}


@pytest.mark.parametrize(
    ("name", "role", "cost"),
    [
        ("name", FREE, False),
        ("data.images", FREE, False),
        ("eval.batch", FREE, False),
        ("eval.crop_ratio", FREE, False),
        ("data.workers", FREE, False),
        ("data.max_bad", FREE, False),
        ("model.weights", FREE, False),  # compared by their hash
        ("distill.weights", FREE, False),
        ("precision", FREE, True),
        ("micro_batch", FREE, True),
        ("finetune.cache", FREE, False),
        ("compute.compile", FREE, True),
        ("model.pretrained", RUN, False),
        ("model.depth", RUN, True),
        ("optim.lr", RUN, False),
        ("optim.name", RUN, True),
        ("epochs", RUN, False),
        ("augment.erase", VIEW, False),
        ("augment.rand_ops", VIEW, True),
        ("mix.mixup_alpha", VIEW, False),
        ("model.img_size", VIEW, True),
        ("data.repeats", VIEW, True),
        ("batch", VIEW, False),
        ("virtual_ranks", VIEW, False),
        ("seed", VIEW, False),
    ],
)
def test_a_field_decides_what_it_decides(name: str, role: Role, cost: bool) -> None:
    assert (FIELDS[name].role, FIELDS[name].cost) == (role, cost)
    assert (name in identity(TINY)) == (role is not FREE)
    assert (name in view_fields(TINY)) == (role is VIEW)
    assert (name in cost_fields(TINY)) == cost


def test_a_recipe_comes_back_from_json_with_the_same_identity() -> None:
    assert identity(json.loads(json.dumps(asdict(TINY)))) == identity(TINY)


def test_a_field_that_is_not_known_is_part_of_the_identity_of_a_recipe_from_json() -> None:
    recipe = asdict(TINY)
    recipe["augment"]["swirl"] = 3
    assert identity(recipe) == {**identity(TINY), "augment.swirl": 3}


def test_a_teacher_may_lie_in_another_folder() -> None:
    here, there = (replace(TINY, distill=Distill(teacher=f"{LOCAL_DIR}{folder}")) for folder in ("here", "there"))
    assert identity(here) == identity(there)
    assert identity(here) != identity(replace(TINY, distill=Distill(teacher="resnet20_cifar")))


def test_every_group_of_the_recipe_is_frozen() -> None:
    for item in fields(TINY):
        part = getattr(TINY, item.name)
        if is_dataclass(part):
            with pytest.raises(AttributeError):
                setattr(part, fields(part)[0].name, None)  # type: ignore[arg-type]
