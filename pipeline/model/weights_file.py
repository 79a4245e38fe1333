"""Files of weights, as people have them: what a path names, what kind of file it is, and what lies in it.

Nothing of a file is executed, and nothing that it names is imported. Where it is something else than weights, its
reader says what, and how it becomes a file that is taken.
"""

import os
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from shards.errors import DamagedFile
from shards.files import open_regular

IN_FOLDERS: Final = (  # how a run, a checkpoint, Accelerate, a hub and open_clip name the file in a folder
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)

SIGNS: Final = (  # how files begin that are often taken for weights, and what they are
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; `git lfs pull` in its repository fetches it"),
    (b"<", "a web page, not weights; open the address in a browser, and download the file itself"),
    (b"{", "JSON, not weights; the file of weights lies beside it, or is what it speaks of"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras); save the weights with PyTorch"),
    (b"\x1f\x8b", "a gzip archive; unpack it and name the file in it"),
)
TAR: Final = (257, b"ustar")  # position and bytes
HEAD: Final = 512  # bytes that tell a kind

ZIP: Final = b"PK\x03\x04"  # of torch.save
PICKLE: Final = b"\x80"  # of its older form

STATE_DICT: Final = "torch.save(net.state_dict(), 'weights.pth')"
SAVE_ONE: Final = f"Save them where the model is at hand: {STATE_DICT}."


class NoWeights(ValueError):
    """A file holds no weights that can be taken; the message says what it is, and what to do."""


class _Ignored:
    """Stands for an object beside the weights: takes whatever it is made of, and does nothing with it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Plain:
    """Stands for a dictionary of another kind: what is made of it is a plain one, which takes items."""

    def __new__(cls, *_: Any) -> Any:
        return {}


# What trainers put beside the weights. Their classes are not imported and not called: ours stand for them.
BESIDE: Final = {
    **dict.fromkeys(
        (
            "argparse.Namespace",
            *(f"pathlib{part}.{name}" for part in ("", "._local") for name in ("Path", "PosixPath", "WindowsPath")),
            *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
            "numpy.ndarray",
            "numpy.dtype",
            *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "set")),
            "torch.torch_version.TorchVersion",
            "typing.Any",
            *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
            *(f"omegaconf.base.{name}" for name in ("Metadata", "ContainerMetadata")),
            "mmengine.logging.history_buffer.HistoryBuffer",
        ),
        _Ignored,
    ),
    **dict.fromkeys(
        (
            "collections.defaultdict",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
        ),
        _Plain,
    ),
}


def file_of(path: str) -> Path:
    """Return the file of weights that a path names: the file itself, or the one in a folder that has one."""
    named = Path(path)
    return next((named / name for name in IN_FOLDERS if (named / name).is_file()), named)


def read_file(path: Path) -> Any:
    """Return what a file of safetensors or torch.save holds, tensors on the CPU; what lies beside them may be empty.

    Raises NoWeights for anything else.
    """
    if path.is_dir():
        raise NoWeights(
            f"a folder without {' or '.join(IN_FOLDERS[:2])}; name the file. A run that is not finished has one in "
            f"each of its checkpoints/step-NNNNNNNN."
        )
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
            begins = head[8:9] == b"{"  # as safetensors do, after the length of their header, which may be any bytes
            if not begins or int.from_bytes(head[:8], "little") > os.fstat(file.fileno()).st_size - 8:
                _refuse_others(head)
            if begins:
                return load_file(path)
            file.seek(0)
            if head.startswith(ZIP):
                _refuse_other_zips(file)
            elif not head.startswith(PICKLE):
                raise NoWeights(f"neither safetensors nor a state dict of torch.save. {SAVE_ONE}")
            return _unpickled(file)
    except FileNotFoundError as error:
        raise NoWeights("no such file.") from error
    except DamagedFile as error:
        raise NoWeights(f"{error.reason}; a pipe or a device is not read.") from error
    except SafetensorError as error:
        raise NoWeights(f"safetensors that are cut off or damaged ({error}); download or copy it again.") from error
    except OSError as error:
        raise NoWeights(f"cannot be read ({error}).") from error


def _refuse_others(head: bytes) -> None:
    if not head:
        raise NoWeights("empty; download or copy it again.")
    for sign, kind in SIGNS:
        if head.lstrip().startswith(sign):
            raise NoWeights(f"{kind}.")
    position, sign = TAR
    if head.startswith(sign, position):
        raise NoWeights("a tar archive; unpack it and name the file in it.")


def _unpickled(file: BinaryIO) -> Any:
    try:
        with (
            torch.serialization.safe_globals([(stand_in, name) for name, stand_in in BESIDE.items()]),
            warnings.catch_warnings(action="ignore"),  # of pickles of other versions
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            raise NoWeights(
                f"holds an object of {name[1]}, which only running code of the file could make: it is not read. "
                f"Weights alone are. {SAVE_ONE}"
            ) from error
        raise NoWeights(f"a pickle, but no state dict of torch.save, or a damaged one. {SAVE_ONE}") from error
    except Exception as error:  # bytes of any kind may raise anything in torch's reader, and none of it is ours
        raise NoWeights("cut off or damaged; download or copy it again.") from error


def _refuse_other_zips(file: BinaryIO) -> None:
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise NoWeights(f"cut off or damaged ({error}); download or copy it again.") from error
    file.seek(0)
    names = [entry.filename for entry in entries]
    if any(name.endswith(".npy") for name in names):
        raise NoWeights(
            f"arrays of numpy (.npz, as JAX models are published); timm reads them: net.load_pretrained('FILE'), "
            f"then {STATE_DICT}."
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise NoWeights(f"a TorchScript archive; net = torch.jit.load('FILE'), then {STATE_DICT}.")
    if not any(name.endswith("data.pkl") for name in names):
        raise NoWeights("a zip archive, and none of torch.save; unpack it and name the file in it.")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # a few bytes may become more than memory
        raise NoWeights("a file of torch.save that was compressed afterwards; unpack it and pack it with zip -0 -r.")
