"""Networks that timm lacks, for timm alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pipeline.config import Model
from pipeline.model.build import build_model, timm_arguments
from tests.running import ENVIRONMENT

LOADING = """
import sys, timm
import pipeline.model.nets
for folder in sys.argv[1:]:
    timm.create_model(f"local-dir:{folder}", pretrained=True)
print(sorted(name for name in sys.modules if name.split(".")[0] in ("pipeline", "shards", "launch")))
"""


@pytest.mark.dist
def test_timm_loads_our_networks_once_they_are_imported(tmp_path: Path) -> None:
    names = ("vitc_1gf", "vitp_1gf", "vit_small_plain", "vit_small_plain_mlp_head", "vit_pytorch_tiny")
    models = [Model(name=name, img_size=32, depth=1) for name in names]
    for model in (*models, Model(name="resnet20_cifar", img_size=32)):
        (tmp_path / model.name).mkdir()
        save_file(build_model(model, 3, seed=0).state_dict(), tmp_path / model.name / "model.safetensors")
        config = {"architecture": model.name, "num_classes": 3, "model_args": timm_arguments(model)}
        (tmp_path / model.name / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"num_classes": 3}}))
    ran = subprocess.run(
        [sys.executable, "-c", LOADING, *map(str, tmp_path.iterdir())], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    nets = [
        f"pipeline.model.nets{module}" for module in ("", ".cifar_resnet", ".vit_plain", ".vit_pytorch", ".vit_stem")
    ]
    assert ran.stdout.strip() == str(["pipeline", "pipeline.model", *nets])  # and nothing that trains
