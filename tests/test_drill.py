"""Interrupted runs end like runs that nobody touched: the drill, small, and each of its reasons by itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import StopAt, student_weights, tiny_run
from transformers import EarlyStoppingCallback, TrainerCallback

from cotmi.core import RunError, RunFile, TrainingError, read_json, read_json_lines
from cotmi.runs.execution import evaluate_trained, execute
from cotmi.runs.run_folder import Run, is_whole, lacks_notebook, run_folder, start_run, unfinished_notebook
from cotmi.training import step as step_module
from cotmi.training import trainer as trainer_module
from cotmi.training.trainer import train

ROOT = Path(__file__).resolve().parents[1]


def test_the_drill_in_small():
    "Kills at random moments and at random writes, of two methods; `make drill` is the whole."
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "drill.py"), "--kills", "3", "--writes", "4",
                           "--notebooks", "0", "--cases", "dss", "mi infonce"], capture_output=True, text=True,
                          timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "0 files left over" in done.stdout


class StopAfter(TrainerCallback):
    "A stop button, pressed in a step."
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def timeless(folder: Path) -> list[dict]:
    "The history without what a clock told."
    rows = read_json_lines(folder / RunFile.HISTORY)
    return [{k: v for k, v in row.items() if k not in ("seconds", "examples_per_second")} for row in rows]


def assert_same_training(one: Path, two: Path):
    "The same student, history and summary, but for the clock."
    weights = student_weights(one)
    assert all(torch.equal(value, student_weights(two)[name]) for name, value in weights.items())
    assert timeless(one) == timeless(two)
    told = [read_json(folder / RunFile.TRAINING) for folder in (one, two)]
    for summary in told:
        del summary["seconds"], summary["examples_per_second"]
    assert told[0] == told[1]
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())


FLAT = {"method": "dss", "max_steps": 30, "eval_steps": 2, "logging_steps": 3, "learning_rate": 1e-6, "patience": 3,
        "max_valid_examples": 6} # accuracy stays where it is


@pytest.fixture(scope="module")
def flat(demo_data, tmp_path_factory):
    "A training that patience ends."
    folder = tmp_path_factory.mktemp("flat")
    result = train(tiny_run(**FLAT), demo_data, folder, progress=False)
    assert (result.steps, result.stopped) == (8, False)
    return folder


@pytest.mark.parametrize("steps", [(5,), (3, 5, 7)])
def test_patience_goes_on_counting(tmp_path, demo_data, flat, steps):
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            train(tiny_run(**FLAT), demo_data, tmp_path, [StopAt(step)], progress=False)
    train(tiny_run(**FLAT), demo_data, tmp_path, progress=False)
    assert_same_training(flat, tmp_path)


def test_a_stop_button_leaves_no_trace_in_a_run_that_goes_on(tmp_path, demo_data, flat):
    "The evaluation that the stop brought counts for the stopped student, and no more when the run goes on."
    stopped = train(tiny_run(**FLAT), demo_data, tmp_path, [StopAfter(5)], progress=False)
    assert stopped.stopped and [row["step"] for row in timeless(tmp_path) if "valid/accuracy" in row] == [2, 4, 5]
    train(tiny_run(**FLAT), demo_data, tmp_path, progress=False)
    assert_same_training(flat, tmp_path)


@pytest.mark.parametrize("cut", ["_write_student", "_write_result", "student.rename", "rmtree"])
def test_the_finish_goes_on_wherever_it_was_cut(tmp_path, demo_data, flat, monkeypatch, cut):
    "No step is trained again, whichever write of the end was the last."
    def fall(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if cut == "student.rename":
            patched.setattr(Path, "rename", fall)
        elif cut == "rmtree":
            whole = trainer_module.shutil.rmtree
            patched.setattr(trainer_module.shutil, "rmtree", lambda path, **options: fall() if Path(path).name ==
                            RunFile.CHECKPOINTS else whole(path, **options))
        else:
            patched.setattr(trainer_module, cut, fall)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_run(**FLAT), demo_data, tmp_path, progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(step_module, "step_losses", fall)
        train(tiny_run(**FLAT), demo_data, tmp_path, progress=False)
    assert_same_training(flat, tmp_path)


def test_patience_of_the_trainers_kind_goes_on_counting(tmp_path, demo_data):
    "A callback that somebody passed has its count restored too."
    config = tiny_run(**{**FLAT, "patience": None})
    whole = train(config, demo_data, tmp_path / "whole", [EarlyStoppingCallback(3)], progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, demo_data, tmp_path / "cut", [EarlyStoppingCallback(3), StopAt(5)], progress=False)
    resumed = train(config, demo_data, tmp_path / "cut", [EarlyStoppingCallback(3)], progress=False)
    assert (whole.steps, whole.stopped) == (resumed.steps, resumed.stopped) == (8, False)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_a_moved_run_keeps_its_best_checkpoint(tmp_path, demo_data, flat):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(**FLAT), demo_data, tmp_path / "here", [StopAt(5)], progress=False)
    (tmp_path / "here").rename(tmp_path / "there")
    train(tiny_run(**FLAT), demo_data, tmp_path / "there", progress=False)
    assert_same_training(flat, tmp_path / "there")


def test_what_a_dead_start_left_is_cleared_and_nothing_else(tmp_path, demo_data, flat):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(**FLAT), demo_data, tmp_path, [StopAt(5)], progress=False)
    (tmp_path / "checkpoints" / "checkpoint-6").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": 6, "x": {}')
    (tmp_path / ".student").mkdir()
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    train(tiny_run(**FLAT), demo_data, tmp_path, progress=False)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    (tmp_path / "notes.txt").unlink()
    assert_same_training(flat, tmp_path)


def quick(**values):
    "A run that is trained and evaluated in a second."
    return tiny_run(**{"method": "finetune", "max_steps": 2, "eval_steps": 2, "estimate_mi": False,
                       "max_valid_examples": 4, "max_test_examples": 4, "demo_size": 60, **values})


def test_a_start_clears_beside_and_inside_its_folder(tmp_path, demo_data):
    config = quick()
    folder = run_folder(config, tmp_path)
    (folder / ".cotmi-abc").mkdir(parents=True)
    (folder / ".cotmi-abc" / "config.json").write_text("{")
    unfinished_notebook(folder).write_text("{}")
    others = folder.parent / ".other-run.ipynb"
    others.write_text("{}")
    run = start_run(config, tmp_path)
    run.close()
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []
    assert not unfinished_notebook(folder).exists() and others.exists()


def test_a_complete_run_is_taken_up_for_its_notebook_only(tmp_path, demo_data, monkeypatch):
    "Killed in its last section, a run has all but its notebook: the same command brings it and makes nothing again."
    config = quick()
    run = execute(config, demo_data, tmp_path)
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    assert lacks_notebook(run) and not is_whole(run)
    with pytest.raises(RunError, match="already holds the complete run"):
        start_run(config, tmp_path, report=demo_data.report)
    monkeypatch.setenv("COTMI_NOTEBOOK", str(run.path / RunFile.NOTEBOOK))
    again = start_run(config, tmp_path, report=demo_data.report)
    result = train(config, demo_data, again.path, progress=False)
    assert evaluate_trained(again, result, demo_data, config).status == "complete" and not again.is_open
    assert before == {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    (run.path / RunFile.NOTEBOOK).write_text("{}")
    assert is_whole(Run(run.path))
    with pytest.raises(RunError, match="already holds the complete run"):
        start_run(config, tmp_path, report=demo_data.report)


# -- which checkpoint is kept ------------------------------------------------------------------------------------------
def test_of_equal_checkpoints_the_one_with_the_lower_loss_is_kept(flat):
    evaluations = [row for row in read_json_lines(flat / RunFile.HISTORY) if "valid/accuracy" in row]
    assert len({row["valid/accuracy"] for row in evaluations}) == 1
    lowest = min(evaluations, key=lambda row: row["valid/loss"])
    assert read_json(flat / RunFile.TRAINING)["best_step"] == lowest["step"] == 8


@pytest.mark.parametrize(("select_by", "figure", "best"), [("loss", "valid/loss", min), ("rationale",
                         "valid/rationale_rouge_l", max)])
@pytest.mark.parametrize("method", ["dss", "single_task"])
def test_a_selection_picks_by_its_figure(tmp_path, demo_data, select_by, figure, best, method):
    config = tiny_run(method=method, select_by=select_by, max_steps=8, eval_steps=2, learning_rate=1e-2,
                      max_valid_examples=6)
    result = train(config, demo_data, tmp_path, progress=False)
    evaluations = [row for row in read_json_lines(tmp_path / RunFile.HISTORY) if "valid/accuracy" in row]
    figures = [row[figure] for row in evaluations]
    assert len(figures) == 4 and result.best_step in [row["step"] for row in evaluations
                                                      if row[figure] == best(figures)]


# -- numbers that are none ---------------------------------------------------------------------------------------------
class Break(TrainerCallback):
    "Make a weight, or a loss, NaN in a step."
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            next(model.parameters()).data.fill_(float("nan"))


@pytest.mark.parametrize(("logging_steps", "step"), [(1, 5), (3, 5), (20, 6)])
def test_a_loss_that_is_no_number_ends_a_run_with_a_reason(tmp_path, demo_data, logging_steps, step):
    "By the next line of the log, or before the next checkpoint, whichever comes first."
    config = quick(max_steps=20, eval_steps=4, logging_steps=logging_steps)
    with pytest.raises(TrainingError) as told:
        execute(config, demo_data, tmp_path, callbacks=[Break(5)])
    said, run = str(told.value), Run(run_folder(config, tmp_path, demo_data.report))
    assert len(said) <= 400 and "\n" not in said and "learning_rate" in said and "checkpoint-4 is kept" in said
    assert f"at step {min(8, -(-6 // logging_steps) * logging_steps)}" in said
    assert (run.status, run.metrics["error"]) == ("failed", said)
    kept = [p.name for p in (run.path / "checkpoints").iterdir()]
    assert kept == ["checkpoint-4"]
    weights = load_file(run.path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert all(row["loss"] is not None for row in read_json_lines(run.path / RunFile.HISTORY) if "loss" in row)


def test_a_learning_rate_without_bounds_is_found(tmp_path, demo_data):
    config = quick(method="dss", max_steps=40, eval_steps=20, logging_steps=5, learning_rate=1e9, max_grad_norm=1e9)
    with pytest.raises(TrainingError, match="learning_rate below 1e\\+09"):
        train(config, demo_data, tmp_path, progress=False)


def test_old_checkpoints_are_gone_on_from(tmp_path, demo_data):
    "A checkpoint of an earlier version has no sums of the log, and no loss of valid."
    config = tiny_run(**FLAT)
    with pytest.raises(KeyboardInterrupt):
        train(config, demo_data, tmp_path, [StopAt(5)], progress=False)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        (checkpoint / "terms.json").unlink()
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        for row in state["log_history"]:
            row.pop("eval_valid_loss", None)
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    assert train(config, demo_data, tmp_path, progress=False).steps == 8
