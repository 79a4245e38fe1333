"""Batch norm over virtual ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from pipeline.config import Distill, Model
from pipeline.model.batch_norm import BatchNorms
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import PROGRAMS, run, train_here
from tests.tiny import HERE


def test_batch_norm_moves_by_the_mean_over_virtual_ranks() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2)).train()
    batches = torch.randn(3, 4, 2, 5, 5)
    norms = BatchNorms(net)
    with norms.over_virtual_ranks(Accelerator(cpu=True), 3, 3):
        for turn, batch in enumerate(batches):
            norms.take_turn(turn)
            net(batch)
    means = batches.mean((1, 3, 4)).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, 0.1 * means)
    torch.testing.assert_close(net[0].running_var, 0.9 + 0.1 * variances)
    assert (int(net[0].num_batches_tracked), net[0].momentum) == (1, 0.1)


@pytest.mark.dist
def test_a_cnn_trains_alike_on_one_process_and_on_two(dataset: Dataset, tmp_path: Path) -> None:
    for processes in (1, 2):
        arguments = ("--data", dataset.folder, "--output", tmp_path / str(processes), "--max-steps", 2)
        run(PROGRAMS / "cnn.py", *arguments, processes=processes)
    one, two = (load_file(tmp_path / str(processes) / "model.safetensors") for processes in (1, 2))
    assert one["bn1.num_batches_tracked"] == two["bn1.num_batches_tracked"] == 2
    assert max((one[name].float() - two[name].float()).abs().max().item() for name in one) < 1e-4
    taught_by_it = replace(HERE, distill=Distill(teacher=f"local-dir:{tmp_path / '1'}", token=False))
    train_here(dataset, tmp_path / "student", taught_by_it, max_steps=1)


def test_batch_norm_and_micro_batches_do_not_go_together(dataset: Dataset, tmp_path: Path) -> None:
    cnn = replace(HERE, model=Model(name="resnet20_cifar", img_size=16), micro_batch=2)
    with pytest.raises(BadRequest, match="has batch norm"):
        train_here(dataset, tmp_path, cnn)
