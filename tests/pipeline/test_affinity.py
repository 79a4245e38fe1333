"""Which cores a process is bound to, on made-up machines."""

from pathlib import Path

import pytest

from pipeline.affinity import Affinity, cores_beside, shared_out

TWO_SIDES = [set(range(8))] * 2 + [set(range(8, 16))] * 2  # of four GPUs


@pytest.mark.parametrize(
    ("said", "cores"), [("0-3,8-9\n", {0, 1, 2, 3, 8, 9}), ("5\n", {5}), ("\n", set()), (None, set())]
)
def test_the_cores_beside_a_device_are_those_that_linux_lists(
    said: str | None, cores: set[int], tmp_path: Path
) -> None:
    if said is not None:
        (tmp_path / "0000:1b:00.0").mkdir()
        (tmp_path / "0000:1b:00.0" / "local_cpulist").write_text(said)
    assert cores_beside("0000:1b:00.0", tmp_path) == cores


@pytest.mark.parametrize(("process", "first"), [(0, 0), (1, 0), (2, 8), (3, 8)])
def test_a_process_is_bound_to_the_side_of_its_gpu_and_shares_it(process: int, first: int) -> None:
    bound = tuple(range(first, first + 8))
    assert shared_out(set(range(16)), TWO_SIDES, process, 4) == Affinity(bound, 4)


def test_cores_that_a_job_may_not_use_are_not_taken() -> None:
    allowed = {0, 1, 2, 3, 8, 9, 10, 11}
    assert shared_out(allowed, TWO_SIDES, 2, 4) == Affinity((8, 9, 10, 11), 2)


def test_a_process_whose_side_has_too_few_cores_stays_as_it_is() -> None:
    assert shared_out(set(range(8)), TWO_SIDES, 2, 4) == Affinity((), 2)  # the job got the other side
    assert shared_out(set(range(8)), [set()] * 4, 0, 4) == Affinity((), 2)  # Linux does not say


def test_without_gpus_cores_are_shared_out_equally_and_nobody_is_bound() -> None:
    assert shared_out({0, 1, 2}, [], 0, 2) == Affinity((), 1)
    assert shared_out({0}, [], 1, 2) == Affinity((), 1)
