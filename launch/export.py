"""`vitrail export`: a trained model as timm and the hub, ONNX or torch.export have it, compared with what it was.

The folder that is written holds config.json (names of the classes, input), README.md (a model card) and the weights or
the program, which is loaded again and must give the same logits on images of the data.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import timm
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save_file
from torch import Tensor, nn

from launch.card import model_card
from launch.trained import Trained, TrainedVerb, numbers_of, refuse_many, with_names
from launch.verb import resolved
from pipeline.config import Recipe
from pipeline.data.batch import EvaluationBatches
from pipeline.data.device import normalize
from pipeline.fingerprints import weights_sha256
from pipeline.folder import SessionLine
from pipeline.job import EVALUATING, Job
from pipeline.model import torchvision_nets
from pipeline.model.build import build_student
from pipeline.model.hub import timm_config
from pipeline.model.student import fuse, heads
from shards.errors import Problem, VitrailError, harmless
from shards.files import atomic_write, read_json_lines, write_json

Format = Literal["timm", "onnx", "torch"]
FILES: Final[Mapping[Format, str]] = {"timm": "model.safetensors", "onnx": "model.onnx", "torch": "model.pt2"}
PART: Final = "part-"  # begins the name of the folder within, where files lie until they are compared; a kill leaves it
BESIDE: Final = ("config.json", "README.md", "model.onnx.data")
COMPARED: Final = 8  # images
TOLERANCE: Final = 1e-3  # of the largest logit: other kernels round otherwise
LARGEST_ONNX: Final = 1_500_000_000  # bytes of weights in one file, which may have 2 GB; more lie beside it


class Exported(nn.Module):
    """A model with one output: logits [B, C] for normalised images [B, 3, S, S], of two heads the fused ones."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.net = net
        self.fusion = recipe.distill.fusion

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, fused where there are two heads."""
        return fuse(heads(self.net, images), self.fusion)


@dataclass(frozen=True, kw_only=True)
class Export(TrainedVerb):
    """Write a trained model as timm (and the hub), ONNX or torch.export have it, and compare it on real images.

    Takes the recipe's own fields too: --data (else the run's), ...

    Example: vitrail export RUN --to onnx --output model
    """

    to: Format  # timm: a folder for timm.create_model; onnx: model.onnx; torch: model.pt2
    output: Path  # folder to write; several formats of a model may share it
    push: str = ""  # OWNER/NAME on the hub to upload the folder to

    def __call__(self, arguments: list[str]) -> int:
        """Write, load again, compare, and push where that is asked for."""
        trained, request = self.asked(arguments)
        request = replace(request, data=request.data or data_of(trained))
        job = resolved(request, EVALUATING, found=self._problems(trained))
        refuse_many(job, "export")
        assert job.dataset
        numbers, _ = numbers_of(job.dataset.classes, trained)
        trained = trained if trained.classes else with_names(trained, job.dataset.classes, numbers)
        net = build_student(job.recipe).eval()
        model = Exported(net, job.recipe).eval()
        images, split = real_images(job)
        config = timm_config(job.recipe, trained.classes, getattr(net, "num_features", None))
        self.output.mkdir(parents=True, exist_ok=True)
        file = self.output / FILES[self.to]
        with torch.inference_mode():
            expected = model(images)
        with TemporaryDirectory(prefix=PART, dir=self.output) as part:
            EXPORTERS[self.to](model, Path(part, file.name), config)
            write_json(Path(part, "config.json"), config)
            difference = compared(LOADERS[self.to](Path(part, file.name)), images, expected, file)
            for made in Path(part).iterdir():
                made.replace(self.output / made.name)
        fusion = said_of_fusion(self.to, job.recipe)
        about = {"weights": trained.weights, "weights_sha256": weights_sha256(net.state_dict()), "fusion": fusion}
        with atomic_write(self.output / "README.md") as readme:
            readme.write(model_card(self.output.name, trained, job, about, self._formats()).encode())
        print(harmless(f"{file}: {trained.weights} of {job.recipe.model.name}, {len(trained.classes)} class names"))
        if fusion:
            print(fusion)
        print(harmless(f"loaded again: logits of {len(images)} images of {job.data}, {split}, differ by at most "
                       f"{difference:.2g} (the largest is {expected.abs().max().item():.3g})"))  # fmt: skip
        if self.push:
            print(harmless(pushed(self.output, self.push)))
        return 0

    def _formats(self) -> list[str]:
        return [name for name, file in FILES.items() if (self.output / file).exists()]

    def _problems(self, trained: Trained) -> list[Problem]:
        """Return what is wrong with the verb's own options, for the model."""
        recipe = trained.recipe
        found = list(folder_problems(self.output))
        if self.to == "timm" and recipe.model.name.startswith(torchvision_nets.PREFIX):
            found.append(Problem("to", f"--to timm: {recipe.model.name} is torchvision's; take --to onnx or torch."))
        if self.to == "timm" and has_two_heads(recipe) and recipe.distill.fusion == "paper":
            found.append(
                Problem(
                    "to",
                    "--to timm: timm means the logits of the two heads, and this model is evaluated by the mean of "
                    "their probabilities. To export it so: --distill.fusion code. To keep it: --to onnx or torch.",
                )
            )
        if self.to == "onnx":
            try:
                import onnxruntime  # noqa: F401
                import onnxscript  # noqa: F401
            except ImportError as error:
                found.append(Problem("to", f"--to onnx needs more ({error}): pip install 'vitrail[export]'"))
        if self.push:
            try:
                validate_repo_id(self.push)
            except HFValidationError as error:
                found.append(Problem("push", f"--push {self.push}: {error}"))
            else:
                if "/" not in self.push:
                    found.append(Problem("push", f"--push {self.push}: write it as OWNER/NAME."))
        return found


VERB: Final = Export


def folder_problems(folder: Path) -> list[Problem]:
    """Return what is wrong with a folder to export to: what lies in it and is no export's."""
    if folder.exists() and not folder.is_dir():
        return [Problem("output", f"--output {folder}: a file; name a folder.")]
    ours = {*FILES.values(), *BESIDE}
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if strange := [name for name in names if name not in ours and not name.startswith(PART)]:
        return [
            Problem("output", f"--output {folder}: holds what no export wrote ({strange[0]}); name another folder.")
        ]
    return []


def data_of(trained: Trained) -> str:
    """Return the data that a run's newest session trained on, where it is a run that says it."""
    if not trained.run:
        return ""
    sessions = read_json_lines(trained.run.sessions, SessionLine).good
    return sessions[-1].get("data", "") if sessions else ""


def real_images(job: Job) -> tuple[Tensor, str]:
    """Return images of the data as the model takes them, [B, 3, S, S] on the CPU, and the split that they are of."""
    assert job.dataset
    recipe = replace(job.recipe, eval=replace(job.recipe.eval, batch=COMPARED))
    split = job.dataset.evaluation_split() or next(iter(job.dataset.splits))
    batches = EvaluationBatches(recipe, job.dataset.splits[split])
    with closing(batches.reader):
        images = batches[0].images
    if not len(images):
        raise VitrailError(f"{job.data}: none of the first {COMPARED} images of {split} can be used to compare with.")
    return normalize(images, recipe.model), split


def has_two_heads(recipe: Recipe) -> bool:
    """Return whether a model answers by two heads, each of which was taught."""
    return bool(recipe.distill.teacher) and recipe.distill.token


def said_of_fusion(to: Format, recipe: Recipe) -> str:
    """Return how two heads are fused in what is written, in words; empty for one head."""
    if not has_two_heads(recipe):
        return ""
    what = "the mean of the logits" if recipe.distill.fusion == "code" else "the logarithm of the sum of the softmaxes"
    return f"two heads, fused as in the run: {what}" if to != "timm" else f"two heads, fused by timm: {what}"


def to_timm(model: Exported, file: Path, config: dict[str, Any]) -> None:
    """Write weights as timm and the hub have them."""
    tensors = {name: value.contiguous() for name, value in model.net.state_dict().items()}
    save_file(tensors, file, metadata={"format": "pt"})


def to_onnx(model: Exported, file: Path, config: dict[str, Any]) -> None:
    """Write a program for onnxruntime that takes any number of images; config.json is among its metadata."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model,
        (example(config),),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program, "what dynamo exports is returned"
    program.model.metadata_props["config.json"] = json.dumps(config)
    program.save(file, external_data=sum(value.nbytes for value in model.state_dict().values()) > LARGEST_ONNX)


def to_torch(model: Exported, file: Path, config: dict[str, Any]) -> None:
    """Write a program of torch.export that takes any number of images; config.json is among its files."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example(config),), dynamic_shapes=({0: batch},))
    torch.export.save(program, file, extra_files={"config.json": json.dumps(config)})


def example(config: dict[str, Any]) -> Tensor:
    """Return images of the size that a model takes: two, as of one nothing tells that there can be more."""
    return torch.zeros(2, *config["pretrained_cfg"]["input_size"])


Forward = Callable[[Tensor], Tensor]


def of_timm(file: Path) -> Forward:
    """Return what timm loads of the folder that a file is in."""
    net: nn.Module = timm.create_model(f"local-dir:{file.parent}", pretrained=True)
    return net.eval()


def of_onnx(file: Path) -> Forward:
    """Return what onnxruntime makes of a file, which is asked for one image too."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        parts = [images[:1], images[1:]] if len(images) > 1 else [images]
        return torch.cat([torch.from_numpy(session.run(None, {"images": part.numpy()})[0]) for part in parts])

    return forward


def of_torch(file: Path) -> Forward:
    """Return what torch.export makes of a file."""
    module: nn.Module = torch.export.load(file).module()
    return module


EXPORTERS: Final[Mapping[Format, Callable[[Exported, Path, dict[str, Any]], None]]] = {
    "timm": to_timm,
    "onnx": to_onnx,
    "torch": to_torch,
}
LOADERS: Final[Mapping[Format, Callable[[Path], Forward]]] = {"timm": of_timm, "onnx": of_onnx, "torch": of_torch}


@torch.inference_mode()
def compared(forward: Forward, images: Tensor, expected: Tensor, file: Path) -> float:
    """Return the largest difference of logits.  Raises VitrailError where it is no rounding."""
    difference = (forward(images) - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise VitrailError(
            f"{file}: not written, as its logits would differ from the model's by {difference:.3g}, which is no "
            f"rounding. Please report it, with the model's name."
        )
    return difference


def pushed(folder: Path, name: str) -> str:
    """Upload a folder to the hub and return where it is then.  Raises VitrailError where the hub refuses."""
    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        found = api.upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=f"{PART}*", commit_message="Exported by Vitrail"
        )
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:  # the last one stands for what caused it
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise VitrailError(
            f"--push {name}: the hub did not take it ({said}). Log in with a token that may write: hf auth login. "
            f"{folder} is whole."
        ) from error
    return f"pushed to {found}"
