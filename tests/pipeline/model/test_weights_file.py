"""Files of weights: what they are taken for, and that nothing in them is executed."""

import argparse
import collections
import gzip
import json
import os
import pickle
import random
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.config import Distill
from pipeline.model.build import build_model, check_start
from pipeline.model.weights_file import IN_FOLDERS, NoWeights, file_of, read_file
from pipeline.teacher.teacher import check_teacher
from shards.errors import BadRequest
from tests.tiny import TINY

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3)}


def refusal(path: Path) -> str:
    with pytest.raises(NoWeights) as error:
        read_file(path)
    return str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=1e-3, output=Path("runs"), best=np.float32(0.7)),
        np.float64(71.2),
        np.arange(3),
        np.dtype("f4"),
        collections.defaultdict(list, {"loss": [1.0]}),
        collections.OrderedDict(a=1),
        {"set": {1, 2}, "tuple": (1, None, True), "bytes": b"x", "torch": torch.__version__},
        torch.device("cpu"),
    ],
)
def test_what_trainers_put_beside_the_weights_does_not_keep_them_from_being_read(
    beside: Any, zipped: bool, tmp_path: Path
) -> None:
    held = {"model": WEIGHTS, "beside": beside}
    torch.save(held, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_file(tmp_path / "w.pth")["model"]["head.weight"], WEIGHTS["head.weight"])


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [
        ("omegaconf.dictconfig", "DictConfig", object),
        ("mmengine.logging.history_buffer", "HistoryBuffer", object),
        ("lightning_fabric.utilities.data", "AttributeDict", dict),
    ],
)
def test_classes_of_packages_beside_the_weights_are_neither_imported_nor_made(
    module: str, name: str, base: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = types.ModuleType(module)
    kind = type(name, (base,), {"__module__": module})
    setattr(made, name, kind)
    names = [module.rsplit(".", up)[0] for up in range(module.count(".") + 1)]
    for part in names:
        monkeypatch.setitem(sys.modules, part, made)
    beside = kind()
    if base is dict:
        beside["lr"] = 0.1
    else:
        beside.content = [1, 2]
    torch.save({"model": WEIGHTS, "config": beside}, tmp_path / "w.ckpt")
    for part in names:
        monkeypatch.delitem(sys.modules, part)
    package = tmp_path / module.partition(".")[0]
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_file(tmp_path / "w.ckpt")["model"].keys() == WEIGHTS.keys()
    assert not (tmp_path / "imported").exists()


class Evil:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def evils(owned: Path) -> list[Evil]:
    """Return what would leave a file behind if anything of it ran."""
    code = f"open({str(owned)!r}, 'w')"
    return [
        Evil(Path.touch, owned),
        Evil(os.system, f"touch {owned}"),
        Evil(exec, code),
        Evil(eval, code),
        Evil(getattr(__import__("subprocess"), "getoutput"), f"touch {owned}"),  # noqa: B009
        Evil(os.mkdir, str(owned)),
    ]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("zipped", [True, False, None])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: {"state_dict": evil},
        lambda evil: {"state_dict": WEIGHTS, "args": argparse.Namespace(evil=evil)},
        lambda evil: {"state_dict": WEIGHTS | {"_extra_state": evil}},
    ],
)
def test_nothing_in_a_file_is_executed(
    number: int, zipped: bool | None, wrap: Callable[[Evil], Any], tmp_path: Path
) -> None:
    owned, path = tmp_path / "owned", tmp_path / "evil.pth"
    held = wrap(evils(owned)[number])
    if zipped is None:
        path.write_bytes(
            pickle.dumps(held if not isinstance(held, dict) else {"evil": held.get("args", 0)}, protocol=2)
        )
    else:
        torch.save(held, path, _use_new_zipfile_serialization=zipped)
    try:
        assert "weights_only" not in refusal(path)
    finally:
        assert not owned.exists()


def test_no_way_in_executes_anything(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    for folder, name in (("file", "evil.th"), ("hub", "pytorch_model.bin"), ("named", "model.safetensors")):
        (tmp_path / folder).mkdir()
        torch.save({"state_dict": Evil(Path.touch, owned)}, tmp_path / folder / name)
        for path in (tmp_path / folder / name, tmp_path / folder):
            if path.is_dir() and folder == "file":
                continue
            with pytest.raises(BadRequest, match="holds an object of"):
                check_start(replace(TINY, model=replace(TINY.model, weights=str(path))))
            with pytest.raises(BadRequest, match="holds an object of"):
                check_teacher(replace(TINY, distill=Distill(teacher="resnet20_cifar", weights=str(path))))
    assert not owned.exists()


def test_a_whole_model_is_refused_with_the_line_that_saves_its_weights(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet20_cifar"), tmp_path / "whole.pth")
    message = refusal(tmp_path / "whole.pth")
    assert "holds an object of pipeline.model.nets.cifar_resnet." in message
    assert "torch.save(net.state_dict(), 'weights.pth')" in message


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x" * 100)


def compressed(path: Path) -> None:
    torch.save(WEIGHTS, path.with_name("stored"))
    with (
        zipfile.ZipFile(path.with_name("stored")) as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for name in stored.namelist():
            file.writestr(name, stored.read(name))


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(__file__, "weights.pth")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 22878656\n"),
            "a Git LFS pointer, not the file itself; `git lfs pull`",
        ),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>Sign in</html>"), "a web page, not weights"),
        (lambda path: path.write_text('<?xml version="1.0"?><Error>AccessDenied</Error>'), "a web page, not weights"),
        (lambda path: path.write_text('{"weight_map": {}}'), "JSON, not weights"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600)), "an HDF5 file (Keras)"),
        (lambda path: path.write_bytes(gzip.compress(bytes(900))), "a gzip archive; unpack it"),
        (tar, "a tar archive; unpack it"),
        (lambda path: np.savez(path.with_suffix(".npz"), kernel=np.zeros(3)) or path.with_suffix(".npz").rename(path),
         "arrays of numpy (.npz"),
        (lambda path: archive(path, "a.jpg"), "a zip archive, and none of torch.save"),
        (lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)), "a TorchScript archive; net = torch"),
        (compressed, "compressed afterwards; unpack it"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(900)), "cut off or damaged"),
        (lambda path: path.write_bytes(bytes(900)), "neither safetensors nor a state dict of torch.save"),
        (lambda path: path.write_text("weights"), "neither safetensors nor a state dict of torch.save"),
        (lambda path: os.mkfifo(path), "not a regular file; a pipe or a device is not read"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file; a pipe or a device is not read"),
        (lambda path: path.mkdir(), "a folder without model.safetensors or pytorch_model.bin"),
        (lambda path: None, "no such file"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_something_else_is_called_by_what_it_is(
    write: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    write(tmp_path / "weights.pth")
    message = refusal(tmp_path / "weights.pth")
    assert words in message
    assert message.endswith(".")
    with pytest.raises(BadRequest, match=r"--model\.weights .*/weights\.pth: "):
        build_model(replace(TINY.model, weights=str(tmp_path / "weights.pth")), 4, seed=0)


def test_a_file_that_is_cut_off_or_altered_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    path, draw = tmp_path / "w.pth", random.Random(0)
    torch.save(WEIGHTS, tmp_path / "zip")
    torch.save(WEIGHTS, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, tmp_path / "safe")
    for kind in ("zip", "legacy", "safe"):
        whole = (tmp_path / kind).read_bytes()
        for _ in range(100):
            path.write_bytes(whole[: draw.randrange(1, len(whole) - 1)])
            refusal(path)
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] = draw.randrange(256)
            path.write_bytes(changed)
            try:
                read_file(path)
            except NoWeights as error:
                assert "weights_only" not in str(error)  # noqa: PT017


def test_kinds_are_told_by_their_bytes_and_not_by_their_names(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.pth")
    torch.save(WEIGHTS, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert torch.equal(read_file(tmp_path / name)["head.weight"], WEIGHTS["head.weight"])


@pytest.mark.parametrize("length", [0x7B, 0x3C20, 0x8B1F])
def test_the_length_of_a_header_is_not_taken_for_the_sign_of_another_kind(length: int, tmp_path: Path) -> None:
    header = json.dumps({"head.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}})
    content = WEIGHTS["head.weight"].numpy().tobytes()
    (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + header.ljust(length).encode() + content)
    assert torch.equal(read_file(tmp_path / "w")["head.weight"], WEIGHTS["head.weight"])


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_a_folder_stands_for_the_file_in_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert file_of(str(tmp_path)) == tmp_path / name
    assert file_of(str(tmp_path / name)) == tmp_path / name
