"""The memory that a process needs of its device, in bytes, worked out and not tried."""

from dataclasses import replace
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipeline.config import EngineName, Precision, Recipe
from pipeline.job import Job
from pipeline.model.build import build_student
from pipeline.model.student import Student
from pipeline.update.optimizer import numbers_kept

FLOAT: Final = 4
IMAGES: Final = 3  # copies of a pass's images: of the virtual rank's batch, of the pass, in the layout of the model
LOSSES: Final = 6  # numbers of a class's size, of an image: targets, logits, their softmax, the gradients of these
SHARING: Final[dict[str, tuple[EngineName, ...]]] = {  # the engines whose processes hold a part of it each
    "weights": ("zero3", "fsdp2"),
    "gradients": ("zero2", "zero3"),  # FSDP2 holds whole ones up to a step's last pass
    "moments": ("zero1", "zero2", "zero3", "fsdp2"),
    "ema": ("zero3", "fsdp2"),
}


def state_bytes(job: Job) -> dict[str, int]:
    """Return what a process holds from step to step, by part."""
    recipe, hosting = job.recipe, job.hosting
    weights, gradients = FLOAT * job.parameter_count, FLOAT * job.trained_parameters
    whole = {
        "weights": weights,
        "gradients": gradients,
        "moments": round(gradients * numbers_kept(recipe.optim)),
        "ema": weights * len(recipe.ema.decays),
    }
    return {
        part: -(-size // hosting.processes) if hosting.engine in SHARING[part] else size for part, size in whole.items()
    }


def pass_bytes(recipe: Recipe, precision: Precision) -> tuple[int, int]:
    """Return what a pass takes: for each of its images, and beside them."""
    kept, beside = activations(recipe, precision)
    size, classes = recipe.model.img_size, recipe.data.classes
    return kept + FLOAT * (IMAGES * 3 * size * size + LOSSES * classes), beside


@cache  # a plan asks for each kind of GPU
def activations(recipe: Recipe, precision: Precision) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps for the backward pass, measured: of an image, and beside the images.

    Beside them are the weights in bf16.
    """
    student = Student(build_student(recipe, start=False)).train()
    bf16 = precision == "bf16"
    two, four = (kept_bytes(student, recipe.model.img_size, images, bf16=bf16) for images in (2, 4))
    image, beside = (four - two) // 2, 2 * two - four
    if recipe.compute.activation_checkpointing:  # in the backward pass a block at a time keeps what it else would
        keeping = replace(recipe, compute=replace(recipe.compute, activation_checkpointing=False))
        blocks = len(list(student.net.get_submodule("blocks").children()))
        image += activations(keeping, precision)[0] // blocks
    return image, beside


def kept_bytes(student: Student, size: int, images: int, *, bf16: bool) -> int:
    """Return the bytes that a forward pass of some images keeps."""
    own = {tensor.untyped_storage().data_ptr() for tensor in student.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks: Any = saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = student(torch.zeros(images, 3, size, size), torch.zeros(images, dtype=torch.int64))
    del logits  # which held them until here
    return sum(kept.values())
