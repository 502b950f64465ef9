"""Many runs: what it takes to plan, skip and table a sweep, and to list finished run folders.

    python -m benchmarks.sweeps                    1,000 planned runs, 10,000 finished folders, 1,000 compared
    python -m benchmarks.sweeps --planned 200 --finished 1000

The finished folders are made by this script, with the files of a real run and made-up figures; no student is trained.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from cotmi.runs.run_files import write_predictions

COMMAND = [sys.executable, "-c", "from cotmi.cli import main; main()"]


def sweep_text(runs: int) -> str:
    "A sweep file over methods, seeds and learning rates."
    seeds = -(-runs // 20)
    return (f"experiment: demo\nparameters: {{demo_size: 120}}\ngrid:\n  method: [dss, mi]\n"
            f"  learning_rate: {[round(1e-3 * k, 4) for k in range(1, 11)]}\n  seed: {[*range(seeds)]}\n")


def finish(folder: Path, values: dict, place: int) -> None:
    "Write the files of a complete run, with a history of a hundred lines."
    folder.mkdir(parents=True)
    write = lambda name, value: (folder / name).write_text(json.dumps(value)) # noqa: E731
    write("config.json", {"values": values, "sources": dict.fromkeys(values, "default")})
    write("environment.json", {"started": "2026-01-01T10:00:00+00:00", "device": "cpu"})
    write("data_report.json", {})
    accuracy = 0.5 + place % 100 / 250
    write("metrics.json", {"status": "complete", "train/steps": 1000, "train/seconds": 60.0,
                           "train/examples_per_second": 900.0, "valid/accuracy": accuracy, "test/accuracy": accuracy,
                           "test/accuracy_low": accuracy - 0.04, "test/accuracy_high": accuracy + 0.04,
                           "test/majority_accuracy": 0.08, "ended": "2026-01-01T10:02:00+00:00"})
    row = {"loss": 1.0, "examples_per_second": 900.0}
    (folder / "history.jsonl").write_text("".join(json.dumps({"step": 10 * k, "seconds": 0.6 * k, **row}) + "\n"
                                                  for k in range(1, 101)))
    for name in ("predictions.parquet", "features.safetensors", "mi.json", "notebook.ipynb"):
        (folder / name).touch()
    (folder / "student").mkdir()


def answer(folder: Path, place: int, questions: int = 1200) -> None:
    "Write answers to a test set as a run has them, right as often as its metrics say, in no order but the seed's."
    draw = np.random.default_rng(place)
    right = draw.random(questions) < 0.5 + place % 100 / 250
    words = [f"Question {number} of a story of some thirty words " * 3 for number in range(questions)]
    write_predictions(folder / "predictions.parquet", pd.DataFrame({
        "id": [f"test-{number}" for number in range(questions)], "input": words, "gold_label": "7",
        "predicted_label": np.where(right, "7", "8"), "correct": right, "confidence": draw.random(questions),
        "rationale": words, "generated_rationale": words, "rationale_rouge_l": draw.random(questions)}))


def timed(place: Path, *words: object) -> float:
    "Seconds that a command takes, its start included."
    start = time.perf_counter()
    done = subprocess.run([*COMMAND, *map(str, words)], cwd=place, capture_output=True, text=True,
                          env={**os.environ, "COTMI_PATHS_OUTPUTS": str(place / "outputs")})
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr[-2000:]
    return seconds


def measure(place: Path, runs: int, finished: int, answered: bool) -> dict[str, float]:
    "Seconds of each command over a sweep of which some runs are finished; compared where they have answers."
    from cotmi.runs.sweep import plan_sweep
    from cotmi.runs.sweep_file import read_sweep

    file = place / f"sweep-{runs}.yaml"
    file.write_text(sweep_text(runs))
    planned = plan_sweep(read_sweep(file), place / "outputs")
    for number, run in enumerate(planned[:finished]):
        if not run.folder.exists():
            finish(run.folder, run.config.to_dict(), number)
        if answered:
            answer(run.folder, number)
    took = {"--dry-run": timed(place, "sweep", file, "--dry-run"), "--status": timed(place, "sweep", file, "--status"),
            "plan": timed(place, "plan", file), "list": timed(place, "list")}
    if finished >= len(planned): # nothing is due: skipped, and the table shown
        took["sweep"] = timed(place, "sweep", file)
    if answered:
        took["compare"] = timed(place, "compare", "outputs")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planned", type=int, default=1000)
    parser.add_argument("--finished", type=int, default=10_000)
    given = parser.parse_args()
    print("| runs | finished | command | seconds |\n|---|---|---|---|")
    cases = [(given.planned, 0), (given.planned, given.planned), (given.finished // 2, given.finished // 2),
             (given.finished, given.finished)]
    for runs, finished in cases:
        with tempfile.TemporaryDirectory() as folder:
            if not finished:
                Path(folder, "outputs").mkdir()
                finish(Path(folder, "outputs", "demo", "other"), {"dataset": "demo", "student": "x"}, 0)
            for command, seconds in measure(Path(folder), runs, finished, finished == given.planned).items():
                print(f"| {runs:,} | {finished:,} | {command} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
