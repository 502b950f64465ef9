"""The published data: the report must give the figures that were read off the files by other means."""

import os
from pathlib import Path

import numpy as np
import pytest

from cotmi.data.examples import SEGMENT_SEPARATOR
from cotmi.data.loading import DATASETS, load_data

ROOT = os.environ.get("COTMI_PATHS_DATA", "")
pytestmark = pytest.mark.skipif(not ROOT, reason="COTMI_PATHS_DATA is not set: the published data is not at hand")

# dataset, file: rows, teacher correct, teacher label empty
FIGURES = {
    ("svamp", "train"): (800, 588, 13), ("svamp", "test"): (200, 148, 2),
    ("cqa", "train"): (9741, 7234, 3), ("cqa", "test"): (1221, 943, 0),
    ("anli1", "valid"): (1000, 668, 9), ("anli1", "test"): (1000, 656, 10),
    ("esnli", "valid"): (9842, 7201, 4), ("esnli", "test"): (9824, 7171, 0),
}


def needed(name, *splits):
    "Skip unless the files of these splits are there."
    for split in splits:
        path = Path(ROOT) / name / f"{name}_{split}.json"
        if not path.exists():
            pytest.skip(f"{path} is not there")


@pytest.fixture(scope="module")
def loaded():
    "Each dataset as loaded, once."
    found = {}

    def load(name):
        train = "valid" if name in ("anli1", "esnli") else "train"
        needed(name, train, "test")
        if name not in found:
            found[name] = load_data(name, data_root=ROOT, train_split=train)
        return found[name]

    return load


@pytest.mark.parametrize(("name", "split"), FIGURES)
def test_reports_give_the_known_figures(loaded, name, split):
    report = loaded(name).report.files[split]
    assert (report.read, report.teacher_correct, report.teacher_label_empty) == FIGURES[name, split]
    assert report.teacher_accuracy == pytest.approx(FIGURES[name, split][1] / FIGURES[name, split][0])


@pytest.mark.parametrize("name", ["svamp", "cqa", "anli1", "esnli"])
def test_test_is_whole_and_every_row_is_accounted_for(loaded, name):
    data = loaded(name)
    assert len(data.examples["test"]) == DATASETS[name].sizes["test"]
    for part in data.report.splits.values():
        assert part.read == part.used + sum(part.dropped.values()) + part.left_out


def test_svamp_failures_by_kind(loaded):
    report = loaded("svamp").report
    assert report.files["train"].problems["no marker"] == 11
    assert report.files["train"].problems["not an equation"] == 17
    assert report.files["train"].dropped == {"no marker": 11}
    assert sum(report.splits[s].read for s in ("train", "valid")) == 800 and report.splits["valid"].read == 80


def test_svamp_splits_are_the_published_permutation(loaded):
    "The published 200 test rows are the last of a permutation with seed 0 of the 1,000; the first has number 800."
    needed("svamp", "train")
    whole = Path(ROOT) / "svamp" / "SVAMP.json"
    if not whole.exists():
        pytest.skip(f"{whole} is not there")
    import json

    rows = json.loads(whole.read_text())
    order = np.random.RandomState(0).permutation(len(rows))
    inputs = [f"{rows[i]['Body']}\n{rows[i]['Question']}" for i in order[800:]]
    assert loaded("svamp").examples["test"]["input"][:] == inputs


def test_cqa_labels_outside_the_choices(loaded):
    problems = loaded("cqa").report.files["train"].problems
    assert set(problems) == {"empty label", "several answers", "label outside the choices"}
    assert sum(problems.values()) == 448
    teacher = load_data("cqa", data_root=ROOT, label_source="teacher")
    assert sum(teacher.report.files["train"].dropped.values()) == sum(teacher.report.splits["train"].dropped.values())
    assert all(row["label"] in row["choices"] for row in teacher.examples["train"].select(range(2000)))


def test_anli_is_trained_on_its_valid_split(loaded):
    data = loaded("anli1")
    assert data.report.splits["train"].read == 900 and data.report.splits["valid"].read == 100
    assert all(SEGMENT_SEPARATOR in text for text in data.examples["test"]["input"])
    assert data.report.files["valid"].dropped == {"no marker": 9}


def test_esnli_trailing_text(loaded):
    assert loaded("esnli").report.files["test"].problems.get("label outside the choices", 0) >= 1
