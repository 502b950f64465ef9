"""What Z and V share while a student trains: a curve for every method, which changes nothing else."""
import math

import pytest
import torch

from cotmi.core import RunFile, read_json_lines
from cotmi.data.loading import load_data
from cotmi.information.estimate import quick_estimate
from cotmi.students.methods import METHODS
from cotmi.training.run_config import RunConfig
from cotmi.training.trainer import train
from cotmi.training.valid_information import LEAST_PAIRS

FIGURES = {"valid/mi", "valid/mi_low", "valid/mi_high", "valid/mi_null"}


@pytest.fixture(scope="module")
def data():
    return load_data("demo", demo_size=700)


def rows_of(folder, data, **changes):
    "The history of two short steps."
    config = RunConfig(**{"student": "builtin:tiny", "max_steps": 2, "eval_steps": 1, "batch_size": 8,
                          "logging_steps": 1, "generation_max_length": 4, "features": "decoder", "objective": "infonce",
                          **changes})
    result = train(config, data, folder, progress=False)
    return read_json_lines(folder / RunFile.HISTORY), result.student


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_curve(method, data, tmp_path):
    assert len(data.examples["valid"]) >= LEAST_PAIRS
    rows, _ = rows_of(tmp_path, data, method=method)
    evaluations = [row for row in rows if "valid/accuracy" in row]
    assert [row["step"] for row in evaluations] == [1, 2]
    for row in evaluations:
        assert FIGURES <= set(row) and all(math.isfinite(row[name]) for name in FIGURES)
        assert row["valid/mi_low"] <= row["valid/mi"] <= row["valid/mi_high"]
    assert not any(FIGURES & set(row) for row in rows if "valid/accuracy" not in row)


def test_looking_changes_no_weight_and_can_be_left_out(data, tmp_path):
    with_curve, one = rows_of(tmp_path / "a", data, method="dss", dropout=0.1, features="vocab")
    without, other = rows_of(tmp_path / "b", data, method="dss", dropout=0.1, features="vocab", valid_mi_pairs=0)
    assert any(FIGURES & set(row) for row in with_curve) and not any(FIGURES & set(row) for row in without)
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_too_few_examples_have_no_curve(tmp_path):
    rows, _ = rows_of(tmp_path, load_data("demo", demo_size=60), method="dss")
    assert not any(FIGURES & set(row) for row in rows)


@pytest.mark.parametrize("seed", [1, 5, 10]) # with which the critics read -0.02 to -0.06, beyond their noise
def test_no_reading_is_below_zero_by_more_than_its_noise(seed):
    generator = torch.Generator().manual_seed(seed)
    z, v = (torch.randn(80, 40, generator=generator) for _ in "zv")
    reading = quick_estimate(z, v)
    assert reading.high >= 0 and reading.diagnostics["read"] != "critics"
    assert reading.low <= 0 <= reading.value + 0.02
