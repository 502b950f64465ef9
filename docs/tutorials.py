#!/usr/bin/env python
"""Run the tutorials and keep what they show.

    python docs/tutorials.py [NAME …]    run them (all if none is named) and save the outputs in the notebooks

The runs that they make go to a folder of their own, which is deleted at the end.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "nbs" / "tutorials"
SECONDS = 1200 # the most that a cell may take


def run_tutorial(path: Path, outputs: Path, changes: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """The executed notebook, with some of its text exchanged for other text; it works in an empty folder, and its runs
    go to `outputs`."""
    from nbclient import NotebookClient

    book = nbformat.read(path, 4)
    for old, new in (changes or {}).items():
        if not any(old in cell.source for cell in book.cells):
            raise ValueError(f"{path.name} does not say {old!r}.")
        for cell in book.cells:
            cell.source = cell.source.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        changed = {"COTMI_PATHS_OUTPUTS": str(outputs), "PLOTLY_RENDERER": "plotly_mimetype", "OMP_NUM_THREADS": "1",
                   "PYDEVD_DISABLE_FILE_VALIDATION": "1", "HF_HUB_OFFLINE": "1",
                   "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        NotebookClient(book, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}).execute(
            env=os.environ | changed)
    return book


def tidy(book: nbformat.NotebookNode, *places: Path) -> nbformat.NotebookNode:
    "Without what changes from run to run or from machine to machine: times, progress, widgets, places."
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        kept: list = []
        for output in cell.outputs:
            if output.output_type == "stream":
                for place in places:
                    output.text = output.text.replace(str(place), "outputs")
                if output.name == "stderr":
                    continue
                if kept and kept[-1].output_type == "stream": # one that came in two pieces
                    kept[-1].text += output.text
                    continue
            elif "data" in output:
                if any("widget" in kind for kind in output.data): # a progress bar, or controls that need a kernel
                    continue
                output.metadata = {}
                for kind, text in output.data.items():
                    if isinstance(text, str):
                        for place in places:
                            text = text.replace(str(place), "outputs")
                        output.data[kind] = text
                if "execution_count" in output:
                    output.execution_count = None
            kept.append(output)
        cell.outputs = kept
    book.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return book


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as outputs:
        for path in sorted(TUTORIALS.glob("*.ipynb")):
            if names and path.stem not in names:
                continue
            start = time.time()
            book = tidy(run_tutorial(path, Path(outputs)), Path(outputs))
            nbformat.write(book, path)
            print(f"{path.stem:<28} {time.time() - start:5.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
