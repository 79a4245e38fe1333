"""`vitrail order`: which views a run sees at a step."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from launch.verb import Json, RecipeVerb
from pipeline.data.order import Order, order_of
from pipeline.job import ORDERING, resolve
from pipeline.request import Request
from pipeline.rules import recipe_problems
from shards.errors import BadRequest, Problem, harmless

SIMULATED: Final = "shards=1e6,samples=1e10,ranks=16384"  # what may be made up


class Simulation(NamedTuple):
    """Data that is made up: shards of equal size, and how many virtual ranks there are, 0 for the recipe's."""

    shards: int
    samples: int
    ranks: int = 0


@dataclass(frozen=True, kw_only=True)
class ShowOrder(RecipeVerb):
    """Print the views of a global batch: virtual rank, slot, sample key, copy.

    Takes the recipe's own fields too: --data, --seed, --batch, ...

    Example: vitrail order deit_small --data DIR --epoch 3 --step 100
    """

    epoch: int = 0  # from 0
    step: int = 0  # within the epoch, from 0
    rank: int | None = None  # this virtual rank alone
    simulate: str = ""  # instead of --data, made-up shards: shards=1e6,samples=1e10,ranks=16384; a key is shard/place
    json: Json = False  # for scripts, instead of a table

    def __call__(self, arguments: list[str]) -> int:
        """Print one line a view, or one JSON list."""
        request = self.request(arguments)
        order, key = simulated(request, self.simulate) if self.simulate else of_data(request)
        steps = order.steps_per_epoch
        if not steps:
            raise BadRequest.of(
                "batch", f"--batch {order.batch} is more than the {order.num_samples} images there are."
            )
        if not 0 <= self.step < steps or self.epoch < 0:
            raise BadRequest.of("step", f"--step {self.step}: an epoch has the steps 0 to {steps - 1} here.")
        if self.rank is not None and not 0 <= self.rank < order.virtual_ranks:
            ranks = order.virtual_ranks
            raise BadRequest.of("rank", f"--rank {self.rank}: the virtual ranks are 0 to {ranks - 1} here.")
        shown = range(order.virtual_ranks) if self.rank is None else (self.rank,)
        views = (view for rank in shown for view in views_of(order, self.epoch * steps + self.step, rank, key))
        if self.json:
            print(json.dumps(list(views)))
        else:
            for view in views:
                print(*map(harmless, view.values()), sep="\t")
        return 0


def views_of(order: Order, step: int, rank: int, key: Callable[[int], str]) -> Iterator[dict[str, Any]]:
    """Yield the views of a virtual rank at a step, as they are printed."""
    views = order.views(step, rank)
    for slot, (sample, copy) in enumerate(zip(views.samples.tolist(), views.copies.tolist(), strict=True)):
        yield {"virtual_rank": rank, "slot": slot, "key": key(sample), "copy": copy}


def of_data(request: Request) -> tuple[Order, Callable[[int], str]]:
    """Return the order of a request, and what the samples of its data are called."""
    job = resolve(request, ORDERING)
    return job.order, job.index.called


def simulated(request: Request, said: str) -> tuple[Order, Callable[[int], str]]:
    """Return the order of a request on made-up shards, and the places of samples in them.

    Virtual ranks that are made up have as many images a step as the recipe's.
    """
    simulation = read_simulation(said)
    recipe = request.recipe
    if simulation.ranks:
        recipe = replace(recipe, virtual_ranks=simulation.ranks, batch=simulation.ranks * recipe.rank_batch)
    found = [*request.unknown, *recipe_problems(recipe)]
    if recipe.data.balance:
        found.append(Problem("data.balance", "--data.balance goes by labels, which made-up shards do not have."))
    if request.data:
        found.append(Problem("data", "--simulate makes up the data; leave --data out."))
    if found:
        raise BadRequest(found)
    size, rest = divmod(simulation.samples, simulation.shards)
    sizes = (size + 1,) * rest + (size,) * (simulation.shards - rest)
    starts = np.cumsum((0, *sizes))

    def place(sample: int) -> str:
        shard = int(np.searchsorted(starts, sample, side="right")) - 1
        return f"{shard}/{sample - starts[shard]}"

    return order_of(recipe, sizes), place


def read_simulation(said: str) -> Simulation:
    """Return what a text like SIMULATED says.  Raises BadRequest where it does not."""
    try:
        numbers = {name: float(number) for name, _, number in (part.partition("=") for part in said.split(","))}
        simulation = Simulation(**{name: int(number) for name, number in numbers.items()})
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest.of("simulate", f"--simulate {said}: cannot be read; write it as {SIMULATED}.") from error
    if not 1 <= simulation.shards <= simulation.samples or simulation.ranks < 0:
        raise BadRequest.of("simulate", f"--simulate {said}: a shard has one sample at least, as in {SIMULATED}.")
    return simulation


VERB: Final = ShowOrder
