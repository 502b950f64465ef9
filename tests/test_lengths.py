"""Lengths: settled from the data, recorded, the same ever after; what is cut all the same is counted and said."""

import json
import logging
import random

import pytest
from datasets import DatasetDict

from cotmi import RunConfig
from cotmi.core import ConfigError, RunFile
from cotmi.data.loading import load_data
from cotmi.evaluation.evaluator import evaluate_student
from cotmi.runs.evaluating import evaluate
from cotmi.runs.execution import execute
from cotmi.runs.run_folder import Run, start_run
from cotmi.students.lengths import generation_limit
from cotmi.students.loading import load_student
from cotmi.training.run_config import stored_config
from cotmi.training.run_lengths import recorded_lengths, run_lengths, settle_lengths
from cotmi.training.trainer import training_texts

SMALL = dict(student="builtin:tiny", batch_size=16, learning_rate=3e-3, estimate_mi=False, logging_steps=50)
THINGS = ("lamp", "kettle", "ladder", "drum", "anchor", "candle")


@pytest.fixture(autouse=True)
def no_embedder(monkeypatch):
    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")


def long_rows(count: int, seed: int, words: int = 66) -> list[dict]:
    "Questions whose rationale says `words` words before those that decide."
    walk = [first + second for first in ("ba", "de", "fi", "go", "hu", "ka", "le", "mi")
            for second in ("lan", "ren", "tis", "dor", "nul", "pas", "ket", "vim", "som")][:words]
    draw, rows = random.Random(seed), []
    for i in range(count):
        thing, fits = draw.choice(THINGS), draw.random() < 0.5
        rows.append({"id": f"{seed}-{i}", "question": f"Does the {thing} fit the {'wide' if fits else 'slim'} box ?",
                     "label": "yes" if fits else "no",
                     "rationale": " ".join([*walk, f"the box is {'wide' if fits else 'slim'} ."])})
    return rows


@pytest.fixture(scope="module")
def long_data(tmp_path_factory):
    "A data set of one's own with rationales of over 70 words."
    folder = tmp_path_factory.mktemp("long")
    for split, count, seed in (("train", 128, 0), ("valid", 20, 1), ("test", 30, 2)):
        lines = [json.dumps(row) for row in long_rows(count, seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return load_data(str(folder), columns={"input": "question"})


def stored(run: Run) -> dict:
    return json.loads((run.path / RunFile.CONFIG).read_text())


def test_a_long_rationale_costs_no_label(long_data, tmp_path):
    "A single-task student writes its label behind a rationale of 71 words and is right by default."
    config = RunConfig(dataset="long", method="single_task", max_steps=60, eval_steps=60,
                       **SMALL | {"batch_size": 8, "learning_rate": 1e-2})
    run = execute(config, long_data, tmp_path)
    assert run.metrics["test/accuracy"] == 1.0 and run.metrics["valid/accuracy"] == 1.0
    assert run.metrics["test/labels_cut"] == 0 and run.metrics["train/labels_cut"] == 0
    record = stored(run)
    assert record["values"]["label_max_length"] > 71 and record["values"]["rationale_max_length"] is None
    assert record["sources"]["label_max_length"].startswith("data (")
    assert run.report.lengths["train"]["labels"]["cut"] == 0 and "rationales" not in run.report.lengths["train"]
    # Evaluated anew it has the same limits, and at the length of old, said so, it has no label at all.
    assert evaluate(run, data=long_data, folder=tmp_path / "again", progress=False)["test/accuracy"] == 1.0
    short = stored_config({**run.config, "label_max_length": None, "generation_max_length": 64})
    figures = evaluate(run, data=long_data, config=short, folder=tmp_path / "short", progress=False)
    assert figures["test/accuracy"] == 0 and figures["test/labels_cut"] == 1 and figures["test/rationales_cut"] == 1


def test_every_cut_is_counted_and_said(long_data, tmp_path, caplog):
    config = RunConfig(dataset="long", method="dss", max_steps=2, max_input_length=6, max_target_length=40,
                       rationale_max_length=1, label_max_length=1, **SMALL)
    with caplog.at_level(logging.WARNING):
        run = execute(config, long_data, tmp_path)
    metrics, told = run.metrics, [record.getMessage() for record in caplog.records]
    assert metrics["train/inputs_cut"] == metrics["train/rationales_cut"] == metrics["test/inputs_cut"] == 1
    assert metrics["train/labels_cut"] == 0 and metrics["test/labels_cut"] == metrics["test/rationales_cut"] == 1
    predictions = run.predictions
    assert predictions.label_cut.all() and predictions.rationale_cut.all() and predictions.input_cut.all()
    counts = run.report.lengths["valid"]["rationales"]
    assert counts["cut"] == counts["rows"] == 20 and counts["longest"] > counts["limit"] == 40
    for what, parameter in (("128 train inputs", "max_input_length"), ("128 train rationales", "max_target_length"),
                            ("20 valid rationales", "max_target_length"),
                            ("30 test rationales", "rationale_max_length"),
                            ("30 answers to test", "label_max_length"), ("30 test inputs", "max_input_length")):
        lines = [line for line in told if what in line]
        assert len(lines) == 1 and parameter in lines[0] and "100.0 %" in lines[0] and "\n" not in lines[0], told
    assert not any("train labels" in line for line in told)


def test_nothing_is_cut_on_the_demo(demo_data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = execute(RunConfig(method="dss", demo_size=240, max_steps=1, **SMALL), demo_data, tmp_path)
    assert [run.metrics[f"train/{what}_cut"] for what in ("inputs", "labels", "rationales")] == [0, 0, 0]
    assert not [r for r in caplog.records if "train" in r.getMessage() or "valid" in r.getMessage()]
    values = stored(run)["values"]
    assert values["label_max_length"] < values["rationale_max_length"] < 64


@pytest.mark.parametrize("method", ["finetune", "single_task", "dss", "mi"])
@pytest.mark.parametrize("given", [{}, {"generation_max_length": 12}, {"label_max_length": 3}, {"paper_protocol": True},
                                   {"max_target_length": 30}, {"rationale_max_length": 9}])
def test_settled_lengths(demo_data, method, given):
    "What is given stays; what is not is settled once; the run's id is that of what was asked for."
    student = load_student("builtin:tiny", training_texts(demo_data))
    asked = RunConfig(method=method, student="builtin:tiny", **given)
    config = settle_lengths(asked, demo_data, student)
    assert config.run_id == asked.run_id and config.asked() == asked.to_dict()
    assert all(getattr(config, name) == value for name, value in given.items())
    assert settle_lengths(config, demo_data._replace(examples=DatasetDict()), student) == config
    lengths = run_lengths(config)
    if "paper_protocol" in given:
        assert (lengths.input, lengths.target, lengths.label, lengths.rationale) == (1024, 256, 64, 64)
    assert lengths.label <= lengths.target and lengths.rationale <= lengths.target or given.get("max_target_length")
    assert lengths.label < 64 or method == "single_task" or "paper_protocol" in given


def test_an_older_run_keeps_its_lengths():
    "A config.json from before labels and rationales had lengths of their own."
    old = {"method": "dss", "max_input_length": 1024, "max_target_length": 256, "generation_max_length": 64}
    lengths = run_lengths(stored_config(old))
    assert (lengths.input, lengths.target, lengths.label, lengths.rationale) == (1024, 256, 64, 64)


def test_a_resumed_run_takes_what_is_on_record(demo_data, tmp_path):
    config = RunConfig(method="dss", demo_size=240, max_steps=1, **SMALL)
    run = execute(config, demo_data, tmp_path)
    record = stored(run)
    report = json.loads((run.path / RunFile.DATA_REPORT).read_text())
    record["values"]["label_max_length"] = 23 # as another release might have settled it
    (run.path / RunFile.CONFIG).write_text(json.dumps(record))
    (run.path / RunFile.METRICS).write_text(json.dumps({"status": "stopped"}))
    again = start_run(config, tmp_path, report=demo_data.report)
    again.close()
    assert again.path == run.path and recorded_lengths(config, run.path).label_max_length == 23
    assert stored(again) == record and json.loads((run.path / RunFile.DATA_REPORT).read_text()) == report


def test_evaluation_on_part_of_the_data_takes_the_recorded_lengths(demo_data, tmp_path):
    run = execute(RunConfig(method="dss", demo_size=240, max_steps=1, **SMALL), demo_data, tmp_path)
    part = demo_data._replace(examples=DatasetDict({split: rows.select(range(5))
                                                    for split, rows in demo_data.examples.items()}))
    student, config = run.load_student(), stored_config(run.config)
    assert settle_lengths(config, part, student) == config
    assert evaluate_student(student, part, config, progress=False).figures["test/examples"] == 5


def test_a_student_with_few_positions(demo_data):
    student = load_student("builtin:tiny", training_texts(demo_data))
    student.model.config.max_position_embeddings = 100
    config = settle_lengths(RunConfig(student="builtin:tiny"), demo_data, student)
    assert (config.max_input_length, config.max_target_length) == (100, 100)
    with pytest.raises(ConfigError, match="max_target_length is 200, .* set at most 100"):
        settle_lengths(RunConfig(max_target_length=200), demo_data, student)


@pytest.mark.parametrize("counts, limit", [([1], 8), ([6], 8), ([7], 16), ([100] * 10, 128), ([3] * 998 + [90] * 2, 8),
                                           ([3] * 300 + [9] * 3, 16), ([2000], 512)])
def test_generation_limit(counts, limit):
    import numpy as np

    got, source = generation_limit(np.array(counts))
    assert got == limit and source.startswith("data (") and f"{max(counts)} tokens" in source
