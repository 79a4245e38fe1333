"""README.md of an exported model: the model card that the hub shows, written of what a run knows of itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import EvalResult, ModelCardData

from launch.trained import Trained
from pipeline.config import FIELDS, LOCAL_DIR
from pipeline.folder import Beginning, MetricsLine
from pipeline.job import Job
from pipeline.model.build import is_ours
from pipeline.session.provenance import git_commit, versions
from shards.errors import harmless
from shards.files import read_json

LIBRARIES: Final = {"timm": "timm", "onnx": "onnx", "torch": "pytorch"}
PLACES: Final = {name for name, field in FIELDS.items() if field.place}
IMPORT_TIMM: Final = "import timm\n"
IMPORT_OURS: Final = (
    f"import pipeline.model.nets  # of Vitrail (pip install vitrail): timm lacks this network\n{IMPORT_TIMM}"
)
USES: Final = {
    "timm": """\
```python
import timm

net = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:OWNER/NAME
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=net))
logits = net(transform(image)[None])
names = net.pretrained_cfg["label_names"]
```""",
    "onnx": """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": images})  # float32 [B, 3, S, S], normalised as config.json says
```""",
    "torch": """\
```python
import torch

net = torch.export.load("model.pt2").module()
logits = net(images)  # float32 [B, 3, S, S], normalised as config.json says
```""",
}


def model_card(name: str, trained: Trained, job: Job, about: Mapping[str, str], formats: Sequence[str]) -> str:
    """Return the card of a model that lies in the named formats; `about` says which weights, and of two heads more."""
    recipe = job.recipe
    model = recipe.model
    scores = last_scores(trained)
    began = read_json(trained.run.recipe, Beginning) if trained.run else Beginning(recipe=asdict(job.recipe))
    fingerprints = began.get("fingerprints", job.fingerprints)
    data = without_folders(job.data)
    head = ModelCardData(
        library_name=LIBRARIES[formats[0]],
        pipeline_tag="image-classification",
        tags=["image-classification", "vitrail", *formats],
        model_name=name,
        eval_results=[
            EvalResult("image-classification", "image", data, "accuracy", line["top1"],
                       dataset_split=line.get("split"), metric_name=f"top-1, {line['weights']} weights")
            for line in scores
        ]
        or None,
    )  # fmt: skip
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {code(name)}",
        f"An image classifier, {'trained' if trained.run else 'exported'} by Vitrail: {code(model.name)}, "
        f"{job.parameter_count:,} parameters, "
        f"{recipe.data.classes} classes, {model.img_size} px.",
        "## Weights\n\n"
        + table(
            {
                "weights": without_folders(about["weights"]),
                "sha256": about["weights_sha256"],
                **({"heads": about["fusion"]} if about["fusion"] else {}),
                "input": f"RGB, {model.img_size} px, centre crop of {recipe.eval.crop_ratio:g}, bicubic",
                "mean": " ".join(f"{value:g}" for value in model.mean or ()),
                "standard deviation": " ".join(f"{value:g}" for value in model.std or ()),
            }
        ),
        "## How to use it\n\n" + "\n\n".join(use(form, model.name) for form in formats),
        "## Metrics\n\n" + metrics(scores),
        "## Data\n\n" + table({"data": data, **{name: str(value) for name, value in fingerprints.items()}}),
        *([f"## Recipe\n\n```json\n{json.dumps(public(began['recipe']), indent=2)}\n```"] if trained.run else []),
        "## Provenance\n\n" + table(provenance(began)),
    ]
    return harmless("\n\n".join(parts) + "\n")


def use(form: str, name: str) -> str:
    """Return how a model is used that lies in a format."""
    return USES[form].replace(IMPORT_TIMM, IMPORT_OURS) if form == "timm" and is_ours(name) else USES[form]


def public(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a recipe as it was begun, without the folders of the machine that it was begun on."""
    shown: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            shown[name] = public(value, f"{prefix}{name}.")
        elif prefix + name in PLACES:
            shown[name] = without_folders(value)
        else:
            shown[name] = value
    return shown


def without_folders(place: str) -> str:
    """Return what a file or folder of this machine is called: where it lies is nobody else's concern.

    What lies behind a URL stays, without a password or a signature.
    """
    if "://" in place:
        url = urlsplit(place)
        return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment=""))
    mark = LOCAL_DIR if place.startswith(LOCAL_DIR) else ""
    return mark + Path(place.removeprefix(mark)).name


def last_scores(trained: Trained) -> list[MetricsLine]:
    """Return a run's last evaluation up to the step that its weights are of, a line for each of its weights."""
    logged = trained.run.logged("eval") if trained.run else []
    lines = [line for line in logged if trained.step is None or line["step"] <= trained.step]
    return [line for line in lines if line["step"] == lines[-1]["step"] and "top1" in line and "weights" in line]


def metrics(scores: Sequence[MetricsLine]) -> str:
    """Return the table of a run's last evaluation."""
    if not scores:
        return "None were measured by the run."
    rows = [f"| {line.get('split')} | {line['weights']} | {line['top1']:.2%} | {line['step']} |" for line in scores]
    return "\n".join(["| split | weights | top-1 | step |", "|---|---|---|---|", *rows])


def provenance(began: Beginning) -> dict[str, str]:
    """Return what made a run, where it says it, and what exported it."""
    here = {"exported by": listed(versions()), "exported at commit": git_commit() or "none"}
    if "versions" not in began:
        return here
    return {"trained by": listed(began["versions"]), "trained at commit": began.get("git_commit") or "none", **here}


def listed(numbers: Mapping[str, str]) -> str:
    """Return the versions of libraries in a line."""
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def table(rows: Mapping[str, str]) -> str:
    """Return a table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {code(value)} |" for name, value in rows.items())])


def code(text: str) -> str:
    """Return a text that a person chose as it is, and as no markup."""
    kept = " ".join(text.replace("|", "\\|").split())
    ticks = "``" if "`" in kept else "`"
    return f"{ticks} {kept} {ticks}" if "`" in kept else f"`{kept}`"
