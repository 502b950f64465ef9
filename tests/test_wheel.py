"""The wheel as a user has it: built from the sdist, installed where no checkout is, put to work in an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from sysconfig import get_path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("cotmi", "nbs/experiments", "nbs/dashboard.ipynb", "pyproject.toml", "README.md", "LICENSE")
EVERY_FILE = {".py", ".css", ".js", ".typed", ".txt", ".json"}


def run(*words: object, **options) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    "A folder with sdist and wheel, the latter built from the former; made of a copy, since building leaves folders."
    place = tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        (place / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".ipynb*")
            shutil.copytree(ROOT / name, place / "sources" / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, place / "sources" / name)
    run(sys.executable, "-m", "build", "-q", "--no-isolation", "-o", place, place / "sources")
    return place


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory) -> Path:
    "The programs of an empty environment with the wheel; what it needs is borrowed from the environment of the tests."
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    run(sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "-q", "--no-deps",
        "--no-index", next(dist.glob("*.whl")))
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text(get_path("purelib") + "\n")  # a .pth of a .pth is not read: no checkout
    return place / "bin"


@pytest.fixture(scope="module")
def cotmi(installed, tmp_path_factory):
    "Run a command of the installed package in an empty folder."
    folder = tmp_path_factory.mktemp("empty")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("COTMI_", "PYTHONPATH"))}
    environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COTMI_EVALUATE_EMBEDDING_MODEL": ""}

    def call(*words: object, cwd: Path = folder) -> str:
        return run(installed / "cotmi", *words, cwd=cwd, env=environ)
    call.folder = folder
    return call


@pytest.mark.slow
def test_both_archives_hold_everything(dist):
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "cotmi").rglob("*") if p.suffix in EVERY_FILE}
    notebooks = {str(p.relative_to(ROOT / "nbs")) for p in (ROOT / "nbs" / "experiments").rglob("[!.]*")
                 if p.suffix in (".ipynb", ".yaml") and ".ipynb_checkpoints" not in p.parts} | {"dashboard.ipynb"}
    wheel = set(zipfile.ZipFile(next(dist.glob("*.whl"))).namelist())
    assert ours | {f"cotmi/notebooks/{name}" for name in notebooks} <= wheel
    assert all(name.startswith(("cotmi/", "cotmi-")) for name in wheel)
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    assert ours | {f"nbs/{name}" for name in notebooks} | {"pyproject.toml", "README.md", "LICENSE"} <= source


@pytest.mark.slow
def test_the_demo_runs_in_an_empty_folder(cotmi):
    said = cotmi("run", "demo", "-p", "max_steps", "20", "-p", "eval_steps", "20", "-p", "demo_size", "200")
    folder = cotmi.folder / re.search(r"^Run folder: (.+)$", said, re.M)[1]
    assert json.loads((folder / "metrics.json").read_text())["status"] == "complete"
    assert (folder / "notebook.ipynb").is_file() and str(folder).startswith(str(cotmi.folder / "outputs"))
    assert "make" not in said, "there is no Makefile here"
    assert str(ROOT) not in (folder / "environment.json").read_text(), "the checkout was used"
    assert "dashboard.ipynb" in cotmi("dashboard", "--dry-run")
    assert "complete" in cotmi("list") and "Accuracy" in cotmi("compare")
    assert "rationale:" in cotmi("data", "demo", "-p", "demo_size", "60")
    assert len(cotmi("sweep", "demo_methods", "--dry-run").splitlines()) == 30


@pytest.mark.slow
def test_a_workspace_of_the_installed_package(cotmi, tmp_path):
    said = cotmi("new", tmp_path / "mine")
    assert "cotmi run demo" in said
    experiment = tmp_path / "mine" / "experiments" / "demo.ipynb"
    experiment.write_text(experiment.read_text().replace("max_steps = 1000", "max_steps = 7"))
    assert "int [7, from experiment demo]" in cotmi("parameters", "demo", cwd=tmp_path / "mine")


@pytest.mark.slow
def test_the_readme_word_for_word(dist, installed, tmp_path):
    "Every command of the README in an empty folder; the demo is the one of a nearer folder, with fewer steps."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert lines[-1] == "cotmi run demo" and lines[0].startswith("pip install ") and len(lines) == 2
    shorter = (ROOT / "nbs" / "experiments" / "demo.ipynb").read_text().replace("max_steps = 1000", "max_steps = 7")
    (tmp_path / "nbs" / "experiments").mkdir(parents=True)
    (tmp_path / "nbs" / "experiments" / "demo.ipynb").write_text(shorter)
    pip = installed / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip --python "{installed / "python"}" "$@"\n')
    pip.chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("COTMI_", "PYTHONPATH", "PIP_"))}
    environ |= {"PATH": f"{installed}:/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(dist),
                "PIP_NO_DEPS": "1", "PIP_FORCE_REINSTALL": "1", "OMP_NUM_THREADS": "1",
                "COTMI_EVALUATE_EMBEDDING_MODEL": ""}
    for line in lines:
        run("sh", "-c", line, cwd=tmp_path, env=environ)
    (metrics,) = (tmp_path / "outputs" / "demo").glob("*/metrics.json")
    assert json.loads(metrics.read_text())["status"] == "complete"
