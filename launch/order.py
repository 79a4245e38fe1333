"""`vitrail order`: which views a run sees at a step."""

import json
from dataclasses import dataclass
from typing import Final

from launch.verb import Json, RecipeVerb
from pipeline.job import LOOKING, resolve
from shards.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class ShowOrder(RecipeVerb):
    """Print the views of a global batch: virtual rank, slot, sample key, copy.

    Takes the recipe's own fields too: --data, --seed, --batch, ...
    """

    epoch: int = 0  # from 0
    step: int = 0  # within the epoch, from 0
    json: Json = False  # for scripts, instead of a table

    def __call__(self, arguments: list[str]) -> int:
        """Print one line a view, or one JSON list."""
        job = resolve(self.request(arguments), LOOKING)
        steps = job.order.steps_per_epoch
        if not steps:
            raise BadRequest.of("batch", f"--batch {job.recipe.batch} is more than the images of {job.data}.")
        if not 0 <= self.step < steps or self.epoch < 0:
            raise BadRequest.of("step", f"--step {self.step}: an epoch has the steps 0 to {steps - 1} here.")
        views = []
        for rank in range(job.recipe.virtual_ranks):
            of_rank = job.order.views(self.epoch * steps + self.step, rank)
            for slot, (sample, copy) in enumerate(zip(of_rank.samples.tolist(), of_rank.copies.tolist(), strict=True)):
                views.append({"virtual_rank": rank, "slot": slot, "key": job.index.key(sample), "copy": copy})
        if self.json:
            print(json.dumps(views))
        else:
            for view in views:
                print(*view.values(), sep="\t")
        return 0


VERB: Final = ShowOrder
