"""Fixtures that several test files share."""

import os
from pathlib import Path

# Tiny models are fastest on one thread, and threads that wait for each other stall on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached for the hub would wait for it
torch.set_num_threads(1)

# With two workers and a file to each at a time, what takes minutes begins first, so that none is left alone at the end.
LONG = ("tutorials", "browser", "experiments", "docs", "bf16", "wheel", "recipes", "drill", "processes", "slurm",
        "dask", "interval_of_information", "train", "access")


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def demo_data():
    "A small demo data set."
    from cotmi.data.loading import load_data

    return load_data("demo", demo_size=240, demo_steps=2)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    "A complete run, made once; take a copy of its folder to write into it."
    from helpers_small_run import small_run

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
        return small_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run_copy(finished_run, tmp_path, monkeypatch):
    "The folder of a complete run, to be written into."
    import shutil

    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
    return Path(shutil.copytree(finished_run.path, tmp_path / "outputs" / "demo" / finished_run.id))


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    "Run a command in an empty folder; gives its exit code, output and errors."
    from cotmi.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTMI_PATHS_OUTPUTS", str(tmp_path / "outputs"))

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err
    return call


@pytest.fixture
def cotmi(capsys, monkeypatch, tmp_path):
    "Run a command in an empty folder, without settings of its own; gives its exit code, output and errors."
    from cotmi.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err
    return call
