"""What trackers keep of a run: the same numbers as its folder, its name, its parameters, and one run for all starts."""

import math
import struct
from pathlib import Path

import pytest
from test_train import StopAt, tiny_run

from cotmi.core import is_installed, read_json_lines
from cotmi.runs.execution import execute
from cotmi.runs.run_folder import run_folder

VALUES = {"method": "dss", "max_steps": 6, "eval_steps": 2, "logging_steps": 1, "estimate_mi": False,
          "max_valid_examples": 4, "max_test_examples": 6}


@pytest.fixture(autouse=True)
def nobody_elses(monkeypatch):
    "No tracker of the environment, and no network."
    for name in ("TENSORBOARD_LOGGING_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")


def interrupted(config, data, out):
    "A run that was cut off between two checkpoints and taken up again."
    with pytest.raises(KeyboardInterrupt):
        execute(config, data, out, callbacks=[StopAt(5)])
    return execute(config, data, out)


def losses(run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_json_lines(run.path / "history.jsonl") if "loss" in row}


def figures(run) -> dict[str, float]:
    "The figures of test with their intervals, as the run folder has them."
    return {name: value for name, value in run.metrics.items() if name.startswith("test/") and isinstance(value, float)}


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    return read


def scalars(read, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read.Scalars(name)]


@pytest.mark.skipif(not is_installed("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_reads_what_the_history_holds(tmp_path, demo_data, monkeypatch):
    run = interrupted(tiny_run(report_to="tensorboard", **VALUES), demo_data, tmp_path / "here")
    read = events(run.path / "tracking" / "tensorboard")
    steps = scalars(read, "train/loss")
    assert [step for step, _ in steps] == list(losses(run)) == [1, 2, 3, 4, 5, 6] # each once
    assert dict(steps) == pytest.approx(losses(run))
    assert [step for step, _ in scalars(read, "eval/valid_accuracy")] == [2, 4, 6]
    assert {"test/accuracy", "test/accuracy_low", "test/accuracy_high"} <= figures(run).keys()
    for name, value in figures(run).items():
        assert scalars(read, name) == [(6, pytest.approx(value))], name
    texts = {name: read.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
             for name in ("run", "config")}
    assert texts["run"] == run.id and '"config/learning_rate": 0.003' in texts["config"]

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "all"))
    other = execute(tiny_run(report_to="tensorboard", **{**VALUES, "max_steps": 2}), demo_data, tmp_path / "there")
    assert not (other.path / "tracking").exists()
    assert [step for step, _ in scalars(events(tmp_path / "all" / other.id), "train/loss")] == [1, 2]


@pytest.mark.skipif(not is_installed("mlflow"), reason="mlflow is not installed")
@pytest.mark.parametrize("place", ["of the run", "of the environment"])
def test_an_mlflow_store_holds_one_run_for_all_starts(tmp_path, demo_data, monkeypatch, place):
    import mlflow

    if place == "of the environment": # a plain file store, which newer versions have to be asked for
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = interrupted(tiny_run(report_to="mlflow", **VALUES), demo_data, tmp_path)
    own = run.path / "tracking" / "mlflow.db"
    assert own.is_file() == (place == "of the run")
    client = mlflow.MlflowClient(f"sqlite:///{own}" if own.is_file() else (tmp_path / "store").as_uri())
    (kept,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert (kept.info.run_name, kept.info.status) == (run.id, "FINISHED")
    assert kept.data.params["config/learning_rate"] == "0.003" and kept.data.params["config/method"] == "dss"
    seen = {metric.step: metric.value for metric in client.get_metric_history(kept.info.run_id, "loss")}
    assert seen == pytest.approx(losses(run))
    assert {name: kept.data.metrics[name] for name in figures(run)} == pytest.approx(figures(run))
    if place == "of the run":
        assert not mlflow.is_tracking_uri_set(), "the next run has a store of its own"


def wandb_records(path: Path):
    "The records of an offline run: a log of LevelDB's format behind a header of seven bytes."
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4:at + 7]) # whole, first, middle, last
        part = (part if kind in (3, 4) else b"") + data[at + 7:at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield part


@pytest.mark.skipif(not is_installed("wandb"), reason="wandb is not installed")
def test_wandb_offline_holds_one_run_for_all_starts(tmp_path, demo_data):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    run = interrupted(tiny_run(report_to="wandb", **VALUES), demo_data, tmp_path)
    assert wandb.run is None
    ids, names, config, logged, summary = set(), set(), {}, {}, {}
    for path in sorted((run.path / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(path):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id), names.add(record.run.display_name)
                config |= {item.key: item.value_json for item in record.run.config.update}
            if record.HasField("history"):
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if "train/loss" in row:
                    logged[int(row["train/global_step"])] = float(row["train/loss"])
            if record.HasField("summary"):
                summary |= {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
    assert len(ids) == 1 and names == {run.id}
    assert config["config/learning_rate"] == "0.003"
    assert logged == pytest.approx(losses(run))
    assert {name: float(summary[name]) for name in figures(run)} == pytest.approx(figures(run))


def test_what_a_tracker_raises_costs_no_run_its_results(tmp_path, demo_data, monkeypatch):
    from dataclasses import replace

    from cotmi.training import trackers

    def away(*_):
        raise ConnectionError("no route to the server")

    broken = replace(trackers.TRACKERS["tensorboard"], report=away)
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", broken)
    config = tiny_run(report_to="tensorboard", **{**VALUES, "max_steps": 2})
    with pytest.warns(UserWarning, match="did not take the results"):
        run = execute(config, demo_data, tmp_path)
    assert run.status == "complete" and math.isfinite(run.metrics["test/accuracy"])
    assert run_folder(config, tmp_path, demo_data.report) == run.path
