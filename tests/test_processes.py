"""Several processes that train one student: the same numbers as one, files written once, and how they end."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers_processes as trainings
import pytest
import torch
from safetensors.torch import load_file
from test_train import assert_same_weights, student_weights

from cotmi.core import RunFile, read_json, read_json_lines
from cotmi.data.loading import load_data
from cotmi.runs.run_folder import Run, list_runs
from cotmi.training.papers_term import GRADIENT_SHARE, TERM_FIGURES
from cotmi.training.run_config import RunConfig
from cotmi.training.trainer import train

TOOLS = Path(sys.executable).parent
HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COTMI_EVALUATE_EMBEDDING_MODEL": "",
               "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What two processes wrote, by one launch for all trainings."
    folder = tmp_path_factory.mktemp("two")
    how = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command = [str(TOOLS / "accelerate"), "launch", *how, str(HERE / "helpers_processes.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def learnt(name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    "The weights and averages that a gradient or a batch sets, by name."
    kept = {key: value for key, value in weights.items() if value.is_floating_point() and not value.isnan().any()}
    if name == "infonce": # adding the same to a row of scores changes nothing: AdamW takes steps of rounding there
        del kept["objective.critic.v_tower.2.bias"]
        for key in ("objective.critic.z_tower.2.weight", "objective.critic.z_tower.2.bias"):
            kept[key] = kept[key][1:]
    return {key: value for key, value in kept.items() if value.norm() > 0}


@pytest.mark.parametrize("name", trainings.TRAININGS)
def test_twenty_steps_are_those_of_one_process(two, tmp_path, name):
    "Losses, gradient norms and weights to 1e-5, with a last batch of one row that one process can only look on."
    rows, weights = trainings.train_rows(name, tmp_path)
    found = read_json(two / f"{name}.json", ValueError)
    assert len(found) == len(rows) == 20
    for mine, theirs in zip(rows, found, strict=True):
        loose = {key for key in mine if key in (*TERM_FIGURES, GRADIENT_SHARE)} # ratios: the mean over processes
        assert {k: theirs[k] for k in theirs if k not in loose} == pytest.approx(
            {k: mine[k] for k in mine if k not in loose}, rel=1e-5, abs=1e-6)
        assert {k: theirs[k] for k in loose} == pytest.approx({k: mine[k] for k in loose}, rel=0.2)
    expected, weights = learnt(name, weights), learnt(name, load_file(two / f"{name}.safetensors"))
    assert weights.keys() == expected.keys()
    assert_same_weights(weights.items(), expected)


@pytest.mark.parametrize("objective, rows", [("infonce", 7), ("infonce", 1), ("js", 5)])
def test_a_bound_sees_the_pairs_of_all_processes(two, objective, rows):
    "The gradient of critic, bottleneck and student is that of one process with the whole batch, and so is the bound."
    gradients, parts = trainings.whole_gradient(objective, rows)
    found = load_file(two / f"{objective}{rows}.safetensors")
    assert set(found) == set(gradients)
    for name, value in gradients.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert read_json(two / f"{objective}{rows}.json", ValueError) == pytest.approx(parts, rel=1e-5, abs=1e-6)
    assert (rows == 1) == all(value.norm() == 0 for name, value in gradients.items() if name.startswith("objective."))


def test_the_ceiling_is_that_of_the_whole_batch(two):
    "Features that tell every pair apart give the logarithm of all rows, not of a process's own."
    found = read_json(two / "ceilings.json", ValueError)
    assert found == pytest.approx({rows: math.log(int(rows)) for rows in ("2", "5", "8")}, abs=1e-6)


def test_a_run_leaves_what_one_process_leaves(two, tmp_path):
    "Patience ends it at the same step; each file is written once, each row of valid answered once."
    data = load_data("demo", demo_size=130)
    result = train(RunConfig(**trainings.RUN), data, tmp_path, progress=False)
    assert result.steps < 12, "patience is to end this training"
    rows, found = (read_json_lines(folder / RunFile.HISTORY) for folder in (tmp_path, two / "run"))
    assert [row["step"] for row in found if "loss" in row] == list(range(1, result.steps + 1))
    for mine, theirs in zip(rows, found, strict=True):
        same = {name for name in mine if name not in ("seconds", "examples_per_second")}
        assert {name: theirs[name] for name in same} == pytest.approx({name: mine[name] for name in same}, rel=1e-4)
    assert_same_weights(student_weights(two / "run").items(), student_weights(tmp_path).items(), 3e-5) # 1.28e-5 by AMX
    assert {path.name for path in (two / "run").iterdir()} == {path.name for path in tmp_path.iterdir()}
    summary = read_json(two / "run" / RunFile.TRAINING, ValueError)
    assert (summary["steps"], summary["best_step"]) == (result.steps, result.best_step)


def test_a_training_of_two_goes_on_in_one(two, tmp_path):
    "The batches are those of one process, so the checkpoint fits any number of them."
    data, config = load_data("demo", demo_size=130), RunConfig(**trainings.INTERRUPTED)
    assert read_json_lines(two / "interrupted" / RunFile.HISTORY)[-1]["step"] == 4, "it is cut off in the fifth step"
    whole = train(config, data, tmp_path, progress=False)
    resumed = train(config, data, two / "interrupted", progress=False)
    assert (resumed.steps, resumed.best_step) == (6, whole.best_step)
    assert_same_weights(student_weights(two / "interrupted").items(), student_weights(tmp_path).items())


SHORT = {"max_steps": 12, "eval_steps": 4, "logging_steps": 1, "demo_size": 120, "batch_size": 15,
         "estimate_mi": "false", "method": "dss", "generation_max_length": 8}
OPTIONS = [word for name, value in SHORT.items() for word in ("-p", name, str(value))]


def start(folder: Path, *command: object, **more: str) -> subprocess.Popen:
    "A command in a process group of its own, its output in a file."
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([str(word) for word in command], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True,
                            env={**ENVIRONMENT, "COTMI_PATHS_OUTPUTS": str(folder / "outputs"), **more})


def children(parent: int) -> list[int]:
    "The processes that a process has started."
    return [int(number) for task in Path(f"/proc/{parent}/task").iterdir()
            for number in (task / "children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the processes of a launcher are found in /proc")
def test_a_killed_process_ends_all_and_the_run_goes_on(tmp_path):
    "`cotmi run --processes 2` dies with one of its processes within a minute and says so; torchrun goes on from there."
    process = start(tmp_path, TOOLS / "cotmi", "run", "demo", *OPTIONS, "--processes", "2")
    history, until = tmp_path / "outputs" / "demo", time.monotonic() + 200
    while not list(history.glob("*/checkpoints/checkpoint-4/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    _, other = sorted(children(process.pid))[:2]
    os.kill(other, signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode == 1 and said.count("cotmi: ") == 1 and "Traceback" not in said, said
    assert "Process 2 of 2 was ended by signal SIGKILL" in said and "The same command goes on" in said
    (run,) = list_runs(tmp_path / "outputs")
    assert run.status in ("failed", "stopped") and (run.path / RunFile.CHECKPOINTS).is_dir()
    process = start(tmp_path, TOOLS / "torchrun", "--standalone", "--nproc-per-node=2", "-m", "cotmi.cli", "run",
                    "demo", *OPTIONS)
    told, said = process.communicate(timeout=400)
    assert process.returncode == 0, said[-3000:]
    assert told.count("Run folder: ") == 1, "the first process tells the result, and no other"
    run = Run(run.path)
    assert (run.status, run.problems, run.metrics["train/steps"]) == ("complete", [], 12)
    steps = [row["step"] for row in read_json_lines(run.path / RunFile.HISTORY) if "loss" in row]
    assert steps == list(range(1, 13)), "a line a step, whoever stopped and went on"
    assert len(run.environment["earlier"]) == 1
    assert [path.name for path in run.path.parent.iterdir() if not path.name.endswith(".lock")] == [run.id]
