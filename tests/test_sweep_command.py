"""Sweeps from the command line: crashes, budgets, searches, groups, thousands of runs. No student is trained."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cotmi.core import RunFile, write_json
from cotmi.runs import run_process
from cotmi.runs.engines import run_sweep
from cotmi.runs.experiments import check_parameters, experiment_parameters, find_experiment, planned_config
from cotmi.runs.local_engine import EngineOptions
from cotmi.runs.progress import progress_table
from cotmi.runs.run_folder import Run, start_run
from cotmi.runs.run_process import TRIES, as_job, carry_out
from cotmi.runs.sweep import plan_sweep
from cotmi.runs.sweep_file import read_sweep

BEGIN = "experiment: demo\nparameters: {demo_size: 60}\n"


def sweep_of(folder: Path, text: str):
    path = folder / "sweep.yaml"
    path.write_text(BEGIN + text)
    return path, plan_sweep(read_sweep(path), folder / "outputs")


@pytest.fixture
def child(monkeypatch):
    "What stands for the process of a run: begins it, and ends it as the test says."
    calls = []

    def run_once(job, force, threads, gpu):
        calls.append(job)
        given = [tuple(word.split("=", 1)) for word in job.words if "=" in word]
        defaults = experiment_parameters(find_experiment("demo"))
        config = planned_config(defaults, check_parameters(given, defaults))
        run = start_run(config, Path(job.folder).parent.parent, force)
        return run_once.end(run, config, len(calls))

    run_once.end = lambda run, config, number: finish(run, config)
    run_once.calls = calls
    monkeypatch.setattr(run_process, "run_once", run_once)
    return run_once


def finish(run, config, **figures):
    "A complete run whose valid accuracy is highest at beta 0.3, and whose test accuracy is highest at beta 1."
    valid = 1 - abs(config.beta - 0.3)
    (run.path / RunFile.HISTORY).write_text(json.dumps({"step": 10, "valid/accuracy": valid, "valid/loss": 1.0}) + "\n")
    run.finish({"test/accuracy": config.beta, "valid/accuracy": valid, "train/best_step": 10, **figures})
    return 0, ""


def test_a_crash_is_tried_once_more_and_then_told(tmp_path, child):
    _, (run,) = sweep_of(tmp_path, "grid: {seed: [0]}")

    def crash(opened, config, number):
        opened.fail("out of memory")
        return 1, "out of memory"

    child.end = crash
    assert carry_out(as_job(run, tmp_path / "outputs")) == "out of memory" and len(child.calls) == TRIES == 2
    child.end = lambda opened, config, number: crash(opened, config, number) if number == 3 else finish(opened, config)
    assert carry_out(as_job(run, tmp_path / "outputs")) is None and len(child.calls) == 4
    assert carry_out(as_job(run, tmp_path / "outputs")) is None and len(child.calls) == 4 # whole: nothing to do


def test_what_somebody_stopped_is_not_tried_again(tmp_path, child):
    _, (run,) = sweep_of(tmp_path, "grid: {seed: [0]}")

    def stop(opened, config, number):
        opened.fail(KeyboardInterrupt())
        return 1, "Interrupted."

    child.end = stop
    assert carry_out(as_job(run, tmp_path / "outputs")) == "Interrupted." and len(child.calls) == 1


def test_a_forced_run_is_made_anew_once(tmp_path, child):
    _, (run,) = sweep_of(tmp_path, "grid: {seed: [0]}")
    assert carry_out(as_job(run, tmp_path / "outputs")) is None
    write_json(run.folder / RunFile.ENVIRONMENT, {"started": "2020-01-01T00:00:00+00:00"})
    job = as_job(run, tmp_path / "outputs", force=True)
    assert carry_out(job) is None and carry_out(job) is None and len(child.calls) == 2


def test_a_lock_that_another_process_holds_is_waited_for(tmp_path, child):
    _, (run,) = sweep_of(tmp_path, "grid: {seed: [0]}")
    code = ("import sys, time; from pathlib import Path; from cotmi.runs.run_folder import start_run;"
            "from cotmi.training.run_config import RunConfig; import json;"
            f"r = start_run(RunConfig(**json.loads(sys.argv[1])), {str(tmp_path / 'outputs')!r});"
            "print('open', flush=True); time.sleep(3); r.finish({'test/accuracy': 0.5})")
    other = subprocess.Popen([sys.executable, "-c", code, json.dumps(run.config.to_dict())], stdout=subprocess.PIPE,
                             text=True)
    assert other.stdout is not None and other.stdout.readline() == "open\n"
    assert carry_out(as_job(run, tmp_path / "outputs")) is None and not child.calls
    assert other.wait(10) == 0 and Run(run.folder).metrics["test/accuracy"] == 0.5


def test_a_run_ends_with_the_process_that_started_it(tmp_path):
    child = ("import os, sys, time; from pathlib import Path; from cotmi.runs.run_process import end_with\n"
             "end_with(int(sys.argv[1]), 0.1); Path(sys.argv[2]).touch()\nwhile True: time.sleep(0.1)")
    starter = (f"import os, subprocess, sys, time\nwords = [sys.executable, '-c', {child!r}, str(os.getpid()), "
               f"{str(tmp_path / 'begun')!r}]\nsubprocess.Popen(words)\nwhile True: time.sleep(1)")
    parent = subprocess.Popen([sys.executable, "-c", starter], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.05)
    parent.kill()
    _, said = parent.communicate(timeout=30) # ends when the last process that holds the pipe has ended
    assert "KeyboardInterrupt" in said


def test_max_hours_ends_a_sweep_before_its_next_run(tmp_path, child):
    path, runs = sweep_of(tmp_path, "grid: {seed: [0, 1, 2]}\nmax_hours: 1")

    def hour(opened, config, number):
        long_ago = "2020-01-01T00:00:00+00:00"
        write_json(opened.path / RunFile.ENVIRONMENT, {"started": long_ago})
        return finish(opened, config)

    child.end = hour
    budget = run_process.write_budget(tmp_path / "budget.json", runs, 1)
    jobs = [as_job(run, tmp_path / "outputs", budget=budget) for run in runs]
    failed = run_sweep(jobs, EngineOptions(tmp_path))
    assert len(child.calls) == 1 and len(failed) == 2
    assert all("max_hours" in message for message in failed.values())


@pytest.mark.parametrize("by", ["random", "optuna"])
def test_a_search_looks_at_valid_and_goes_on(command, tmp_path, child, by):
    pytest.importorskip("optuna")
    path = tmp_path / "sweep.yaml"
    text = f"{BEGIN}search: {{by: {by}, trials: TRIALS, ranges: {{beta: {{low: 0, high: 1.0}}}}}}\n"
    path.write_text(text.replace("TRIALS", "4"))
    assert command("sweep", path)[0] == 0 and len(child.calls) == 4
    path.write_text(text.replace("TRIALS", "7"))
    code, out, _ = command("sweep", path, "--workers", "2")
    betas = sorted(Run(Path(job.folder)).config["beta"] for job in child.calls)
    assert code == 0 and len(child.calls) == len(set(betas)) == 7 # what was answered counts
    nearest = min(betas, key=lambda beta: abs(beta - 0.3))
    assert "Best by valid/accuracy" in out and f"beta {nearest}" in out and nearest != max(betas)
    assert "7 runs: 7 complete" in command("sweep", path, "--status")[1]


def test_a_comparison_calls_groups_by_their_names(command, tmp_path, child):
    path = tmp_path / "sweep.yaml"
    path.write_text(BEGIN + "grid: {seed: [0, 1], beta: [0.1, 0.9]}\n"
                    "groups: {weak: {beta: 0.1}, strong: {beta: 0.9}}\n")
    code, out, _ = command("sweep", path)
    assert code == 0 and out.count("weak") == out.count("strong") == 2
    code, out, err = command("compare", path)
    assert code == 0 and "weak" in out and "strong" in out and "beta=" not in out, out + err


def test_a_thousand_runs_are_planned_and_listed_in_seconds(tmp_path):
    path, runs = sweep_of(tmp_path, f"grid: {{seed: {[*range(1000)]}}}")
    start = time.process_time()
    assert len(plan_sweep(read_sweep(path), tmp_path / "outputs")) == 1000
    assert list(progress_table(runs).status.unique()) == ["due"]
    assert time.process_time() - start < 10
    assert os.listdir(tmp_path) == ["sweep.yaml"]
