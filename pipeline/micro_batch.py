"""The micro-batch: how many images of a process pass through the model at a time.

A pass takes any number of the images that a process hosts in a step, of one virtual rank or of several: it is hosting,
and changes no view and no number but for the order in which floats are summed. With `--micro-batch auto` it holds a
virtual rank's images on a CPU, and as many as fit on an accelerator, worked out from its kind and not from what is
free: a run that goes on passes alike. Networks with batch norm take a virtual rank at a time: it is what they normalise
over.

A pass that does not fit after all is halved, and the step done again from its start, on all processes alike. The run's
folder keeps that for the next start of the same hosting.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline import devices
from pipeline.errors import TrainingError
from pipeline.folder import RunFolder
from pipeline.job import Job
from pipeline.memory import pass_bytes, state_bytes
from pipeline.update.engine import Replicated
from shards.files import read_json, write_json

T = TypeVar("T")
FILLED: Final = 0.8  # of a device's memory, by what can be worked out
SETTLING: Final = 4  # steps until memory is what it will be: moments come with the first, and the allocator's cache


class MicroBatch:
    """How many images pass at a time in this process, found at the start of a session and halved where they must be."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        self.images = len(job.virtual_ranks) * job.recipe.rank_batch  # of this process in a step
        self._folder, self._main = job.folder, job.hosting.main
        self._processes = job.hosting.processes
        self._hosting = hosting_said(job, accelerator.device)
        self._divisible = not job.batch_norm
        most = kept(job.folder).get(self._hosting) or most_images(job, memory_of(accelerator.device))
        # engines that exchange weights in every pass take as many passes on every process
        self.most = min(gather_object([most])) if self._processes > 1 else most
        self._unsettled = SETTLING

    @property
    def size(self) -> int:
        """Images of a pass; a step's last one may have fewer."""
        return even_size(self.images, self.most)

    @property
    def count(self) -> int:
        """Passes of this process in a step."""
        return -(-self.images // self.size)

    def asks(self, engine: Replicated) -> bool:
        """Whether gradients wait until all processes have said that their passes fit, for an exchange of its own.

        Until memory has settled. What is exchanged already cannot be taken back.
        """
        return self._unsettled > 0 and self._processes > 1 and engine.passes_alone and self._divisible

    def fitted(self, step: int, passes: Callable[[], T], engine: Replicated, say: Callable[[int, str], None]) -> T:
        """Return what a step's passes give, done again with halves until they fit; `say` is told of it.

        Raises TrainingError where no step can be done again: the next start passes fewer images then.
        """
        while True:
            asks, done, full = self.asks(engine), None, ""
            try:
                done = passes()
            except torch.OutOfMemoryError as error:
                full = str(error).partition("\n")[0]  # alone: the error holds on to the pass's tensors
            sizes = {self.size: full} if full else {}
            if asks:
                sizes = {size: said for size, said in gather_object([(self.size, full)]) if said}
            if done is not None and not sizes:
                self._unsettled = max(0, self._unsettled - 1)
                if asks:
                    engine.exchange_accumulated()
                return done
            self._halve(step, sizes, again=asks or (self._processes == 1 and engine.passes_alone))
            engine.forget()
            torch.accelerator.empty_cache()
            say(step, f"a pass of {min(sizes)} images does not fit into memory: {self.most} at a time from here on")

    def _halve(self, step: int, sizes: dict[int, str], *, again: bool) -> None:
        """Pass half as many images from here on; or raise, and from the next start on."""
        size, full = min(sizes.items())
        failed = f"step {step}: a pass of {size} images does not fit into the memory of the device ({full})."
        if size == 1 or not self._divisible:
            why = "It cannot be halved" + (": batch norm is over a virtual rank's images." if size > 1 else ".")
            raise TrainingError(f"{failed} {why} Usual remedies: --compute.activation-checkpointing, --precision bf16.")
        self.most, self._unsettled = size // 2, SETTLING
        if self._main or not again:
            write_json(self._folder.micro_batch, {**kept(self._folder), self._hosting: self.most})
        if not again:
            raise TrainingError(
                f"{failed} From the next start on {self.most} pass at a time: start the same command again to go on "
                f"from the newest checkpoint."
            )


def most_images(job: Job, memory: int | None) -> int:
    """Return the most images of a pass that a device of so many bytes takes; None where it has none of its own."""
    recipe = job.recipe
    if recipe.micro_batch != "auto":
        return recipe.micro_batch
    if memory is None or job.batch_norm:
        return recipe.rank_batch
    image, beside = pass_bytes(recipe, job.hosting.precision)
    return max(1, int(FILLED * memory - beside - sum(state_bytes(job).values())) // image)


def even_size(images: int, most: int) -> int:
    """Return the images of a pass, at most so many: of few passes, all of one size where that takes no twice as many.

    A compiled model is compiled for every size.
    """
    fewest = -(-images // min(most, images))
    passes = next((passes for passes in range(fewest, 2 * fewest) if images % passes == 0), fewest)
    return -(-images // passes)


def memory_of(device: torch.device) -> int | None:
    """Return the bytes that a device has of its own, None where it computes in the machine's."""
    return None if device.type in devices.SHARED_MEMORY else devices.memory(device)[1]


def hosting_said(job: Job, device: torch.device) -> str:
    """Return what the size of a pass depends on beside the run, in words."""
    recipe, hosting = job.recipe, job.hosting
    memory = memory_of(device)
    name = device.type if memory is None else f"{device.type} of {memory:,} bytes"
    beside = ", activation checkpointing" if recipe.compute.activation_checkpointing else ""
    asked = f"--micro-batch {recipe.micro_batch}"
    return f"{hosting.processes} x {name}; {hosting.engine}, {hosting.precision}{beside}; {asked}"


def kept(folder: RunFolder) -> dict[str, int]:
    """Return what a run's folder keeps of passes that did not fit: the most images, by hosting."""
    try:
        return read_json(folder.micro_batch, dict[str, int])
    except FileNotFoundError:
        return {}
