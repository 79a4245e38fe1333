"""Checkpoints: complete, atomic, hashed, without pickle.

A checkpoint is a folder `step-NNNNNNNN` of safetensors files, by parameter name, and `state.json` with the step,
the recipe, the fingerprints of data, views and weights, and a hash of every file. It is written under another name and
renamed. It holds no random state and no loader state: the step says all (`pipeline/randomness.py`, `data/order.py`).
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.fingerprints import file_sha256, json_sha256
from pipeline.folder import gone
from shards.errors import DamagedFile
from shards.files import atomic_write, read_json, sync_folder, write_json

FORMAT_VERSION: Final = 3  # 1 knew nothing of what makes a view, nor of starting weights; 2 of the names of classes

STATE: Final = "state.json"  # what a checkpoint says beside its tensors
MODEL: Final = "model.safetensors"  # the weights

Tensors = Mapping[str, Tensor]
WriteFile = Callable[[dict[str, Tensor], Path], None]


class State(TypedDict):
    """state.json of a checkpoint of any version."""

    format_version: int
    sha256: str  # of the rest


class ThisState(State):
    """state.json of this version."""

    step: int
    files: dict[str, str]  # name and hash of each
    identity: dict[str, Any]


class Snapshot(NamedTuple):
    """What a checkpoint holds."""

    step: int  # finished steps
    state: dict[str, Any]  # recipe, fingerprints, wall_seconds, losses, skipped_steps, trained, best
    tensors: dict[str, dict[str, Tensor]]  # model, optimizer, and each average


class OtherFormat(CheckpointError):
    """A checkpoint was saved by a version of Vitrail whose checkpoints this one does not read."""


def save(
    root: Path,
    step: int,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensors],
    keep: int,
    spare: int = 0,
    best: int | None = None,
    write_file: WriteFile = save_file,
) -> Path:
    """Write the checkpoint of `step` under `root`, remove all but the newest `keep`, and return its folder.

    The newest of a multiple of `spare` steps is kept too, and that of `best` steps. Raises CheckpointError where it
    cannot be written, to a full disk for instance, and FileNotFoundError where the folder is gone; those before it stay
    whole.
    """
    final = folder_of(root, step)
    temporary = root / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    root.mkdir(exist_ok=True)  # and not what it lies in: a run's folder that is gone stays so
    temporary.mkdir()
    try:
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            write_file({key: value.detach().contiguous() for key, value in group.items()}, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        hashes = {path.name: file_sha256(path) for path in sorted(temporary.glob("*.safetensors"))}
        body = {"format_version": FORMAT_VERSION, "step": step, **state, "files": hashes}
        write_json(temporary / STATE, {**body, "sha256": json_sha256(body)})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        if not temporary.exists():
            raise gone(final) from error
        newest = next(iter(checkpoints(root)), "none")
        raise CheckpointError(
            f"{final}: cannot be written ({error}). Make room or mend the folder, and start the same command again; "
            f"the newest checkpoint is {newest}."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(root)
    _name_newest(root)
    saved = checkpoints(root)  # of which this one is the newest: what lay beyond was left when the run went back
    spared = next((path for path in saved if spare and step_of(path) % spare == 0), None)
    for old in saved[keep:]:
        if old != spared and step_of(old) != best:
            shutil.rmtree(old)
    return final


def on_host(tensors: Iterable[tuple[str, str, Tensor]], groups: Iterable[str], *, keep: bool) -> Mapping[str, Tensors]:
    """Return copies of (group, name, tensor) in the host's memory, by group and name; only read past if not `keep`."""
    copies: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for group, name, tensor in tensors:
        if keep:
            copies[group][name] = tensor.detach().to("cpu", copy=True)
    return copies


class Writer:
    """Writes checkpoints beside the training, one at a time; what it is given must not change afterwards."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(
        self,
        root: Path,
        step: int,
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensors],
        keep: int,
        spare: int = 0,
        best: int | None = None,
    ) -> None:
        """Begin to `save`, when the one before is written.  Raises CheckpointError for that one."""
        self.wait()
        self._writing = self._thread.submit(save, root, step, state, tensors, keep, spare, best, self.write_file)

    def write_file(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Write one file of a checkpoint."""
        save_file(tensors, path)

    def wait(self) -> None:
        """Return when all is written.  Raises CheckpointError where it could not be."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()


def checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders under `root`, newest first."""
    return sorted(root.glob("step-" + "[0-9]" * 8), reverse=True)


def beyond(root: Path, step: int) -> list[Path]:
    """Return the checkpoint folders under `root` of more than `step` finished steps, newest first."""
    return [path for path in checkpoints(root) if step_of(path) > step]


def remove_beyond(root: Path, step: int) -> None:
    """Remove the checkpoints under `root` of more than `step` finished steps: the run has gone back."""
    for path in beyond(root, step):
        shutil.rmtree(path)
    _name_newest(root)


def _name_newest(root: Path) -> None:
    """Have the file `latest` name the newest checkpoint, for people; there is none where that is none."""
    if found := checkpoints(root):
        with atomic_write(root / "latest") as file:
            file.write(f"{found[0].name}\n".encode())
    else:
        (root / "latest").unlink(missing_ok=True)


def folder_of(root: Path, step: int) -> Path:
    """Return the checkpoint folder under `root` of so many finished steps."""
    return root / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the finished steps of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))


def load(path: Path) -> Snapshot:
    """Return a checkpoint, on the CPU.  Raises CheckpointError if a byte of it is not as it was written."""
    try:
        body: dict[str, Any] = {**read_json(path / STATE, State)}
        if body.pop("sha256") != json_sha256(body):
            raise CheckpointError(f"{path / STATE}: torn or altered (its hash differs).")
        if body["format_version"] != FORMAT_VERSION:
            raise OtherFormat(
                f"{path}: saved by another version of Vitrail (format {body['format_version']}; this one reads "
                f"{FORMAT_VERSION}). Go on with the version that began the run, or name another --output."
            )
        body = {**read_json(path / STATE, ThisState)}
        tensors = {}
        for name, expected in body["files"].items():
            if Path(name).name != name or file_sha256(path / name) != expected:
                raise CheckpointError(f"{path / name}: torn or altered (its hash differs).")
            tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    except DamagedFile as error:
        raise CheckpointError(str(error)) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    return Snapshot(body["step"], body, tensors)


def load_newest(
    root: Path, say: Callable[[str], None], wanted: Callable[[int], bool] = lambda step: True
) -> Snapshot | None:
    """Return the newest whole checkpoint of a wanted step under `root`, None if there is none.

    A torn one is passed over aloud. Raises CheckpointError if there are checkpoints and none is whole.
    """
    found = [path for path in checkpoints(root) if wanted(step_of(path))]
    for path in found:
        try:
            return load(path)
        except OtherFormat:
            raise
        except CheckpointError as error:
            say(f"{error} Taking the checkpoint before it.")
    if found:
        raise CheckpointError(f"{root}: none of the {len(found)} checkpoints is whole. To start anew, remove {root}.")
    return None
