"""A small sweep of the demo, its reference made in this process, and what a sweep has to leave behind on any engine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotmi.core import RunFile
from cotmi.runs.execution import execute
from cotmi.runs.run_folder import Run
from cotmi.runs.sweep import PlannedRun, plan_sweep
from cotmi.runs.sweep_file import read_sweep

TOOLS = Path(sys.executable).parent
RUNS = int(os.environ.get("COTMI_SWEEP_RUNS", "3")) # of a sweep; 12 show more and take some minutes
MANY = RUNS >= 12 # then every run has a reference, and one is longer than a time limit
PATIENCE = [pytest.mark.timeout(7200)] if MANY else [] # seconds a test; a busy machine takes half an hour
SMALL = ("{max_steps: 120, eval_steps: 20, logging_steps: 20, demo_size: 60, batch_size: 4, generation_max_length: 8, "
         "estimate_mi: false, method: finetune}")


def write_sweep(folder: Path, name: str = "small.yaml", runs: int = RUNS, **more: int) -> Path:
    "A sweep file of runs that differ in their seed."
    path, grid = folder / name, {"seed": [*range(runs)], **{key: [value] for key, value in more.items()}}
    path.write_text(f"experiment: demo\nparameters: {SMALL}\ngrid: {json.dumps(grid)}\n")
    return path


def environment(folder: Path, **more: str) -> dict[str, str]:
    "What a command of a sweep sees."
    return {**os.environ, "COTMI_PATHS_OUTPUTS": str(folder / "outputs"), "COTMI_EVALUATE_EMBEDDING_MODEL": "",
            "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def cotmi(folder: Path, *words: object, seconds: float = 600, **more: str) -> subprocess.CompletedProcess:
    "Run a command in a folder, as a user would."
    return subprocess.run([str(TOOLS / "cotmi"), *map(str, words)], cwd=folder, env=environment(folder, **more),
                          capture_output=True, text=True, timeout=seconds)


def planned(path: Path, out: Path) -> list[PlannedRun]:
    "The runs of a sweep file."
    return plan_sweep(read_sweep(path), out)


def begun(run: PlannedRun) -> bool:
    "Whether a run has something to resume from and has not ended."
    return (any((run.folder / RunFile.CHECKPOINTS).glob("checkpoint-*/trainer_state.json"))
            and Run(run.folder).status == "running")


def wait_until(what: str, ready: Callable[[], object], seconds: float = 400) -> None:
    "Ask until the answer is yes."
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} seconds"
        time.sleep(0.05)


def figures(run: Run) -> dict[str, float]:
    "The results of a run, without what depends on the clock."
    return {name: value for name, value in run.metrics.items()
            if name.startswith(("valid/", "test/")) and isinstance(value, (int, float))}


def check_done_once(runs: list[PlannedRun], reference: Path, resumed: set[Path]) -> None:
    "Every run is whole and equals its reference, and was begun once more where it was cut off, and only there."
    for run in runs:
        made = Run(run.folder)
        assert (made.status, made.problems) == ("complete", []), run.folder
        assert (run.folder / RunFile.NOTEBOOK).is_file() and not (run.folder / RunFile.CHECKPOINTS).exists()
        assert starts(run) == 1 + (run.folder in resumed), run.folder
        if (place := reference / run.folder.parent.name / run.folder.name).is_dir() or MANY:
            check_equal(made, Run(place))


def starts(run: PlannedRun) -> int:
    "How often a run was begun."
    return 1 + len(Run(run.folder).environment.get("earlier", []))


def check_equal(made: Run, by_itself: Run) -> None:
    "The same results, predictions, and each step once."
    assert figures(made) == figures(by_itself) != {}
    pd.testing.assert_frame_equal(made.predictions, by_itself.predictions)
    columns = ["step", "loss", "valid/loss"]
    pd.testing.assert_frame_equal(made.history[columns], by_itself.history[columns])


def make_reference(path: Path, out: Path, count: int) -> None:
    "The first runs of a sweep, made in this process one after the other; of many, all by a sweep on this machine."
    if MANY:
        done = cotmi(path.parent, "sweep", path.name, "--out", out, "--workers", 2, seconds=3000)
        assert done.returncode == 0, done.stderr
        return
    for run in planned(path, out)[:count]:
        execute(run.config, out=out)
