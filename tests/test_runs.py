"""The run folder: what is written, what is refused, and that reading survives whatever it finds."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from cotmi.core import RunError, RunFile, write_json
from cotmi.data.loading import load_data
from cotmi.runs.results import results_table
from cotmi.runs.run_files import RUN_FILES
from cotmi.runs.run_folder import Run, list_runs, mark_failed, open_run, run_folder, runs_table, start_run
from cotmi.training.run_config import RunConfig


def make_config(**values) -> RunConfig:
    return RunConfig.resolve({"dataset": "demo", "student": "builtin:tiny", "method": "dss", **values})


@pytest.fixture(scope="module")
def report():
    return load_data("demo", demo_size=60).report


def test_what_a_start_writes(tmp_path, report):
    config = make_config(seed=3)
    run = start_run(config, tmp_path, report=report)
    assert run.path == run_folder(config, tmp_path, report) and run.path.parent == tmp_path / "demo"
    assert run.status == "running" and not run.problems
    assert run.config == json.loads(json.dumps(config.to_dict()))
    assert run.config_sources["seed"] == "given" and set(run.config_sources) == set(run.config)
    assert run.report.to_dict() == report.to_dict()
    assert run.environment["versions"]["torch"] and run.environment["command"]
    assert run.title == "demo · dss · builtin:tiny · seed 3"
    run.finish({"test/accuracy": 1.0})


def test_different_configurations_never_share_a_folder(tmp_path):
    base = make_config()
    others = [make_config(**change) for change in (
        {"seed": 1}, {"beta": 0.2}, {"method": "mi"}, {"method": "mi", "objective": "paper-code"},
        {"student": "builtin:mini"}, {"max_steps": 5}, {"demo_steps": 3}, {"paper_protocol": True})]
    folders = {run_folder(c, tmp_path) for c in [base, *others]}
    assert len(folders) == len(others) + 1
    assert run_folder(make_config(), tmp_path) == run_folder(base, tmp_path)


def test_complete_run_is_not_overwritten(tmp_path):
    config = make_config()
    start_run(config, tmp_path).finish({"test/accuracy": 0.5})
    with pytest.raises(RunError, match=r"(?s)already holds the complete run.*--force"):
        start_run(config, tmp_path)
    assert run_folder(config, tmp_path).exists()
    assert Run(run_folder(config, tmp_path)).metrics["test/accuracy"] == 0.5


def test_forced_run_replaces_only_when_it_is_complete(tmp_path):
    config = make_config()
    old = start_run(config, tmp_path)
    (old.path / "mark").write_text("old")
    old.finish({"test/accuracy": 0.5})
    with pytest.raises(ValueError), start_run(config, tmp_path, force=True) as run:
        assert not (run.path / "mark").exists()
        raise ValueError("no luck")
    assert (run.status, run.metrics["error"]) == ("failed", "ValueError: no luck")
    aside = [p for p in run.path.parent.iterdir() if (p / "mark").exists()]
    assert len(aside) == 1 and aside[0].name.startswith(".")
    assert [r.path for r in list_runs(tmp_path)] == [run.path]
    start_run(config, tmp_path, force=True).fail("again")
    assert (aside[0] / "mark").exists(), "a second forced run must not lose the complete one either"
    start_run(config, tmp_path).finish({})
    assert not aside[0].exists() and Run(run.path).status == "complete"


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    folder = run_folder(make_config(), tmp_path)
    folder.mkdir(parents=True)
    (folder / "letters.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(RunError, match="is in the way"):
            start_run(make_config(), tmp_path, force=force)
    assert [p.name for p in folder.iterdir()] == ["letters.txt"]


def test_interruption_is_no_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), start_run(make_config(), tmp_path) as run:
        raise KeyboardInterrupt
    assert run.status == "stopped" and "resumes it" in run.problems[-1]
    assert start_run(make_config(), tmp_path).environment["earlier"][0]["started"]


def test_resuming_on_other_data_is_refused(tmp_path, report):
    run = start_run(make_config(), tmp_path, report=report)
    (run.path / "checkpoints").mkdir()
    run.fail("power cut")
    start_run(make_config(), tmp_path, report=report).fail("again")
    with pytest.raises(RunError, match="begun with other data"):
        fewer = {**report.splits, "train": replace(report.splits["train"], used=1)}
        start_run(make_config(), tmp_path, report=replace(report, splits=fewer))
    start_run(make_config(), tmp_path, report=report).finish({})  # the refusal let the lock go


WRITER = """
import json, sys, time
from cotmi.runs.run_folder import start_run
from cotmi.training.run_config import RunConfig
run = start_run(RunConfig(**json.loads(sys.argv[2])), sys.argv[1])
print("writing", flush=True)
time.sleep(60)
"""


def test_two_processes_never_write_one_run(tmp_path):
    config = make_config()
    words = [sys.executable, "-c", WRITER, str(tmp_path), json.dumps(config.to_dict())]
    writer = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"writing\n"
        with pytest.raises(RunError, match="another process"):
            start_run(config, tmp_path, force=True)
        with pytest.raises(RunError, match="another process"):
            open_run(run_folder(config, tmp_path))
        assert Run(run_folder(config, tmp_path)).status == "running"
    finally:
        writer.kill()
        writer.wait()
    run = Run(run_folder(config, tmp_path))
    assert run.status == "stopped", "a killed process leaves a stopped run"
    start_run(config, tmp_path).finish({})
    assert run.refresh() and run.status == "complete"


def test_the_last_word_of_a_dead_process(tmp_path):
    run = start_run(make_config(), tmp_path)
    mark_failed(run.path, "killed") # it is alive: nothing is written
    assert Run(run.path).status == "running"
    run.close()
    mark_failed(run.path, "killed")
    assert (Run(run.path).status, Run(run.path).metrics["error"]) == ("failed", "killed")
    start_run(make_config(), tmp_path).finish({})
    mark_failed(run.path, "killed") # it has ended
    assert Run(run.path).status == "complete"


def test_the_route_is_on_record(tmp_path):
    config = make_config(vocabulary_pass="plain")
    run = start_run(config, tmp_path)
    run.record_route("plain: another version", config)
    before = run.environment
    assert before["route"] == {"student": "plain: another version", "loss": "plain"} and before["versions"]
    run.fail("power cut")
    run = start_run(config, tmp_path)
    assert "route" not in run.environment and run.environment["earlier"] == [before] # of this start it is not known yet
    run.finish({})


@pytest.fixture
def whole(tmp_path, report):
    "A complete run, every file in place."
    run = start_run(make_config(), tmp_path, report=report)
    rows = [{"step": s, "loss": 1 / s, "lr": 0.1} for s in (1, 2)] + [{"step": 2, "valid/accuracy": 0.5}]
    (run.path / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pd.DataFrame({"id": ["a", "b"], "input": "x", "gold_label": "1", "teacher_label": "1",
                  "predicted_label": ["1", "2"],
                  "correct": [True, False], "teacher_correct": True, "confidence": 0.5, "rationale": "r",
                  "generated_rationale": "g"}).to_parquet(run.path / "predictions.parquet")
    z = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"z": z, "v": z + 1}, run.path / "features.safetensors",
              metadata={"ids": '["a", "b"]', "dimension_names": '["p", "q", "r"]', "features": "vocab"})
    write_json(run.path / "mi.json", {"estimates": [], "correlation": {}})
    (run.path / "student").mkdir()
    return run.finish({"test/accuracy": 0.5, "test/accuracy_low": 0.1, "test/accuracy_high": 0.9,
                       "test/majority_accuracy": 0.4, "test/teacher_accuracy": 1.0, "train/steps": 2})


def test_whole_run_is_read_without_complaint(whole):
    run = Run(whole.path)
    assert list(run.history.step) == [1, 2, 2] and run.history["valid/accuracy"].notna().sum() == 1
    assert len(run.predictions) == 2
    assert run.features["kind"] == "vocab" and run.features["names"] == ["p", "q", "r"]
    assert run.features["z"].shape == (2, 3) and run.features["v"][1, 2] == 6
    assert run.mi == {"estimates": [], "correlation": {}}
    assert run.report.name == "demo"
    assert (run.status, run.problems) == ("complete", [])
    assert list(results_table(run)["accuracy"]) == ["0.500", "0.400", "1.000"]
    assert runs_table([run]).loc[0, "accuracy"] == 0.5


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("harm", ["missing", "empty", "half", "foreign"])
def test_reading_survives_every_harm(whole, name, harm):
    path = whole.path / name
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "foreign": b'["\xff\x00", 3'}[harm])
    run = Run(whole.path)
    values = (run.config, run.environment, run.report, run.metrics, run.mi)
    assert all(value is None or isinstance(value, (dict, type(whole.report))) for value in values)
    assert "step" in run.history and isinstance(run.predictions, pd.DataFrame)
    assert len(run.features["z"]) == len(run.features["v"]) == len(run.features["ids"])
    assert run.title and repr(run) and len(runs_table(list_runs(whole.path.parent))) == 1
    if (name, harm) not in (("history.jsonl", "empty"), ("history.jsonl", "half"), ("history.jsonl", "foreign")):
        assert any(name in problem for problem in run.problems), run.problems # a history may end at any byte


def test_history_is_followed_while_it_grows(tmp_path):
    run = start_run(make_config(), tmp_path)
    reader, seen = Run(run.path), []

    def write():
        with (run.path / "history.jsonl").open("w") as file:
            for step in range(1, 41):
                line = json.dumps({"step": step, "loss": 1.0}) + "\n"
                for part in (line[:7], line[7:]): # cut where it hurts
                    file.write(part)
                    file.flush()
                    time.sleep(0.002)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        reader.refresh()
        seen.append(list(reader.history.step))
        assert not any("history" in p for p in reader.problems)
    thread.join()
    reader.refresh()
    assert all(steps == list(range(1, len(steps) + 1)) for steps in seen)
    assert len(reader.history) == 40 and len({len(s) for s in seen}) > 3
    run.finish({})


def test_one_state_between_refreshes(whole):
    reader = Run(whole.path)
    before = reader.metrics
    write_json(whole.path / "metrics.json", {"status": "failed"})
    assert reader.metrics is before and reader.status == "complete"
    assert reader.refresh() and reader.status == "failed"


def test_listing_passes_over_what_is_no_run(whole, tmp_path):
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "config.json", {"model_type": "t5"})
    (tmp_path / ".hidden").mkdir()
    write_json(tmp_path / ".hidden" / "metrics.json", {"status": "complete"})
    (tmp_path / "demo" / "half").mkdir()
    (tmp_path / "demo" / "half" / "config.json").write_text('{"values": {"method": "mi"')
    (tmp_path / "demo" / "half" / "history.jsonl").write_text("")
    write_json(whole.path / "student" / "config.json", {"model_type": "t5"})
    found = list_runs(tmp_path)
    assert {r.id for r in found} == {whole.id, "half"}
    assert {r.status for r in found} == {"complete", "unknown"}
    assert [r.id for r in list_runs(whole.path)] == [whole.id]
    with pytest.raises(RunError, match="no folder"):
        list_runs(tmp_path / "gone")


def test_only_an_open_run_is_written(whole):
    with pytest.raises(RunError, match="open for reading"):
        Run(whole.path).write(RunFile.METRICS, {})
    with pytest.raises(RunError, match="open for reading"):
        Run(whole.path).finish({})
    with pytest.raises(RunError, match="holds no student"):
        Run(whole.path).load_student()


def test_other_processes_of_one_training_join(tmp_path, monkeypatch):
    config = make_config()
    run = start_run(config, tmp_path)
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1") # as torchrun sets it
        joined = start_run(config, tmp_path)
        assert joined.path == run.path
        joined.finish({"test/accuracy": 0.0})
        joined.fail("nothing of mine")
    assert Run(run.path).metrics == {"status": "running"}
    run.finish({"test/accuracy": 1.0})
    assert Run(run.path).metrics["test/accuracy"] == 1.0
