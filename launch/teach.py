"""`vitrail teach`: a store of teacher outputs, filled beforehand."""

from dataclasses import dataclass
from typing import Final

from launch.verb import RecipeVerb, resolved
from pipeline.job import FILLING
from pipeline.session.fill import fill_store
from shards.errors import Problem, harmless


@dataclass(frozen=True, kw_only=True)
class Teach(RecipeVerb):
    """Store a teacher's outputs for every view of a recipe, without training a student.

    Takes the recipe's own fields too: --data, --distill.store, --distill.weights, --seed, --epochs, ...
    Stop it and start it as you like; what is there stays. As N jobs beside each other: --parts N --part 0, 1, ...
    Several processes: accelerate launch -m launch.cli teach ...

    Example: vitrail teach deit_small_distilled --data DIR --distill.store STORE
    """

    reads = ("--data", "--output")  # whose checkpoint says what its views were normalised by

    part: int = 0  # which of the parts this is, from 0
    parts: int = 1  # jobs that share the work

    def __call__(self, arguments: list[str]) -> int:
        """Ask, store, and say how many outputs were added."""
        request = self.request(arguments)
        distill = request.recipe.distill
        found = []
        if not distill.teacher:
            found.append(Problem("distill.teacher", f"{self.recipe} has no teacher; name one with --distill.teacher."))
        if not distill.store:
            found.append(Problem("distill.store", "--distill.store is missing: name the folder of the outputs."))
        if not 0 <= self.part < self.parts:
            found.append(Problem("part", f"--part {self.part} of --parts {self.parts}: parts are counted from 0."))
        job = resolved(request, FILLING, found=found)
        outputs, left, reasons = fill_store(job, part=self.part, parts=self.parts)
        for reason in reasons:
            print(harmless(f"not usable: {reason}"))
        if left:
            print(f"{left:,} batches have such samples and no outputs here: a student asks its teacher for them.")
        process, processes = job.hosting.process, job.hosting.processes
        by = f" by process {process} of {processes}" if processes > 1 else ""
        print(harmless(f"{distill.store}: {outputs:,} outputs added{by}."))
        return 0


VERB: Final = Teach
