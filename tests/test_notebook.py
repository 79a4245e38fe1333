"""docs/first_steps.ipynb, run as it is, in a kernel of its own; small, as on any machine without a GPU."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.running import ENVIRONMENT, ROOT, TIMEOUT


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Jupyter's own
def test_the_notebook_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # that of `!vitrail`
    notebook = nbformat.read(ROOT / "docs" / "first_steps.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "60/60 samples" in said or "360/360 samples" in said, said
    assert (tmp_path / "report.html").exists()
    assert notebook.cells[-1].outputs[-1]["data"]["text/plain"] == "['0', '1', '2', '3', '4']", notebook.cells[-1]
