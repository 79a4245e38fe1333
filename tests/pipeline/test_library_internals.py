"""What we use of libraries beyond their public interfaces: that it is as we think, with the versions installed."""

import ast
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, LayerNorm2d, resample_abs_pos_embed
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from pipeline.library_internals import (
    awaited_worker,
    batch_norms,
    board_errors_raised_once,
    cpu_has_bf16,
    end_workers,
    exchange_over_torch_alone,
    frame_of,
    has_returned,
    kill_workers,
    link_optimizer_state,
    vgg_names,
    vit_names,
    workers_of,
)
from tests.running import TIMEOUT

ROOT = Path(__file__).parents[2]
OURS = ("shards", "pipeline", "recipes", "launch")
NO_LIBRARY = {*OURS, *sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("text", "returned"),
    [("", True), ("1 + 1", True), ("if seen:\n    1", True), ("raise SystemExit(0)", False), ("1 / 0", False)],
)
def test_a_frame_that_is_over_says_whether_it_came_to_its_end(text: str, returned: bool) -> None:
    module, seen = ModuleType("script"), []
    vars(module)["seen"], vars(module)["look"] = seen, lambda: seen.append(frame_of(module))
    with suppress(SystemExit, ZeroDivisionError):
        exec(f"def inner():\n    look()\ninner()\n{text}", vars(module))
    (frame,) = seen
    assert frame.f_code.co_name == "<module>"
    assert has_returned(frame) == returned
    assert frame_of(module) is None


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_the_workers_of_a_loader_are_ended() -> None:
    batches = iter(DataLoader(torch.arange(1000), batch_size=None, num_workers=2))  # type: ignore[arg-type]
    next(batches)
    workers = [psutil.Process(worker.pid) for worker in batches._workers]
    assert [worker.is_running() for worker in workers] == [True, True]
    end_workers(batches)
    assert psutil.wait_procs(workers, timeout=TIMEOUT)[1] == []


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_the_worker_whose_batch_is_next_is_known_and_workers_that_are_blocked_are_killed() -> None:
    batches = iter(DataLoader(torch.arange(3), batch_size=None, num_workers=2))  # type: ignore[arg-type]
    workers = workers_of(batches)
    assert [worker.is_alive() for worker in workers] == [True, True]
    awaited = [awaited_worker(batches)]
    for _ in range(3):
        next(batches)
        awaited.append(awaited_worker(batches))
    assert awaited == [0, 1, 0, None]
    for worker in workers:
        os.kill(worker.pid or 0, signal.SIGSTOP)
    kill_workers(batches)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, -signal.SIGKILL]
    end_workers(batches)


def write_on(board: SummaryWriter) -> None:
    for step in range(100):
        board.add_scalar("loss", 1.0, step)
        board.flush()


def test_an_error_of_tensorboards_thread_is_raised_where_the_run_writes_and_printed_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with board_errors_raised_once():
        board = SummaryWriter(tmp_path / "board")
        shutil.rmtree(tmp_path / "board")
        with pytest.raises(FileNotFoundError):
            write_on(board)
    assert capfd.readouterr().err == ""


def test_iterators_without_workers_are_left_alone() -> None:
    batches = iter(DataLoader(torch.arange(3), batch_size=None))  # type: ignore[arg-type]
    next(batches)
    assert workers_of(batches) == []
    end_workers(batches)
    assert next(batches) == 1
    end_workers(iter([]))


def test_whether_the_processor_computes_in_bf16_is_what_the_kernel_says() -> None:
    says = cpu_has_bf16()
    assert isinstance(says, bool)
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert says == ("avx512_bf16" in flags)


def test_batch_norms_of_all_kinds_are_found_and_no_other_norms() -> None:
    wanted = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2), BatchNormAct2d(2)]
    others = [nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), LayerNorm2d(2)]
    net = nn.Sequential(others[0], nn.Sequential(*wanted[:3], *others[1:]), *wanted[3:])
    assert batch_norms(net) == wanted
    for norm in wanted:
        assert {"running_mean", "running_var", "num_batches_tracked", "momentum"} <= set(dir(norm))


def vit(size: int) -> Any:
    options = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    return timm.create_model("deit_tiny_patch16_224", img_size=size, **options)


def test_position_embeddings_of_a_vit_are_resized_to_the_grid_and_the_rest_is_kept() -> None:
    small, large = vit(32), vit(48)
    tensors = small.state_dict()
    renamed = vit_names(tensors, large)
    large.load_state_dict(renamed)
    assert renamed["pos_embed"].shape == (1, 1 + 36, 16)
    torch.testing.assert_close(renamed["pos_embed"], resample_abs_pos_embed(tensors["pos_embed"], [6, 6]))
    assert torch.equal(renamed["pos_embed"][:, 0], tensors["pos_embed"][:, 0])
    assert all(torch.equal(renamed[name], value) for name, value in tensors.items() if name != "pos_embed")


def test_the_weights_of_a_vit_that_lie_in_a_dictionary_named_model_are_found() -> None:
    net = vit(32)
    renamed = vit_names({"model": net.state_dict()}, net)  # type: ignore[dict-item]  as DeiT publishes them
    assert renamed.keys() == net.state_dict().keys()


def test_the_weights_of_torchvisions_vgg_get_timms_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.vgg11_bn(), timm.create_model("vgg11_bn")
    renamed = vgg_names(theirs.state_dict())
    expected = {name: value.shape for name, value in ours.state_dict().items()}
    assert {name: value.shape for name, value in renamed.items()} == expected
    assert theirs.state_dict().keys() != renamed.keys()


def test_the_layer_scale_of_deit_iii_gets_timms_name() -> None:
    assert vit_names({"blocks.0.gamma_2": torch.ones(16)}, vit(32)).keys() == {"blocks.0.ls2.gamma"}


class Mapping:
    """What DeepSpeed knows of the place of a parameter in a flat one; notes what it is linked with."""

    def __init__(self) -> None:
        self.linked: list[Any] = []

    def set_optim_state_fragment(self, flat: Any, state: Any) -> None:
        self.linked.append((flat, state))


@pytest.mark.filterwarnings("default")  # of all that DeepSpeed imports
def test_deepspeed_compiles_no_exchange_of_its_own() -> None:
    theirs = pytest.importorskip("deepspeed.comm.torch")
    exchange_over_torch_alone()
    assert theirs.build_shm_op() is None


@pytest.mark.filterwarnings("default")  # of all that DeepSpeed imports
def test_every_group_of_deepspeeds_optimizer_is_linked_with_its_state_each_time() -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2").DeepSpeedZeroOptimizer
    mappings = [Mapping(), Mapping()]
    groups = [[SimpleNamespace(_hp_mapping=mapping)] for mapping in mappings]
    flats = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))]

    class Optimizer:
        """As much of DeepSpeed's as links, with two parameter groups that it takes for linked."""

        _lazy_init_hp_params_optimizer_state = zero._lazy_init_hp_params_optimizer_state
        _hp_optimizer_states_linked = True
        bit16_groups = groups
        single_partition_of_fp32_groups = flats
        optimizer = SimpleNamespace(param_groups=[{}, {}], state={flats[0]: "first", flats[1]: "second"})

    optimizer = Optimizer()
    for times in (1, 2):
        link_optimizer_state(optimizer)
        assert [len(mapping.linked) for mapping in mappings] == [times, times]
    assert [mapping.linked[0][1] for mapping in mappings] == ["first", "second"]
    assert mappings[1].linked[0][0] is flats[1]


def private_names(path: Path) -> list[str]:
    """Return the private names of libraries that a module imports, or reaches through what it imports."""
    imported, found = set(), []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots = {alias: alias.name.partition(".")[0] for alias in node.names}
            imported |= {alias.asname or root for alias, root in roots.items() if root not in NO_LIBRARY}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] not in NO_LIBRARY:
            imported |= {alias.asname or alias.name for alias in node.names}
            found += [alias.name for alias in node.names if is_private(alias.name)]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root: ast.AST = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in imported:
                found.append(node.attr)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_other_module_uses_private_names_of_libraries() -> None:
    modules = [path for package in OURS for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 40
    users = {str(path.relative_to(ROOT)): names for path in modules if (names := private_names(path))}
    assert sorted(users) == ["pipeline/library_internals.py", "pipeline/tyro_internals.py"], users
