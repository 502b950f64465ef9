"""The rules of the house that a machine can watch: order, cleanliness, one parameters cell, nothing unsafe."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from rooms import ROOMS, room_notebooks  # noqa: E402

NOTEBOOKS = [path for paths in room_notebooks().values() for path in paths]
EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
MODULES = sorted(p for p in (ROOT / "cotmi").rglob("*.py") if p.name != "_modidx.py")
TOOLS = Path(sys.executable).parent
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def module_of(path: Path) -> str | None:
    found = [re.search(r"^#\|\s*default_exp\s+(\S+)", source(c), re.M) for c in cells(path) if c["cell_type"] == "code"]
    return next((m[1] for m in found if m), None)


def file_of(module: str) -> Path:
    return (ROOT / "cotmi").joinpath(*module.split(".")).with_suffix(".py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "cotmi").with_suffix("").parts)


def imported(module: str) -> set[str]:
    "The modules of cotmi that a module imports, at the top or inside a function."
    found, room = set(), module.split(".")[:-1]
    for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level and node.module:
                found.add(".".join([*room[:len(room) + 1 - node.level], node.module]))
            elif node.level == 0 and node.module and node.module.startswith("cotmi."):
                found.add(node.module.removeprefix("cotmi."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("cotmi.") for a in node.names if a.name.startswith("cotmi.")}
    return found


def test_every_room_is_listed():
    kept = {p.name for p in (ROOT / "cotmi").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert kept == set(ROOMS)
    assert {m for m in map(module_of, NOTEBOOKS) if m} == {name_of(p) for p in MODULES if p.name != "__init__.py"}


def test_imports_point_down_the_list():
    "A room imports only from the rooms before it, a notebook only from those before it in its room."
    order = [m for m in map(module_of, NOTEBOOKS) if m]
    for place, module in enumerate(order):
        above = imported(module) - set(order[:place])
        assert not above, f"{module} imports {sorted(above)}, which do not stand above it in nbs/"


def test_core_imports_nothing_of_ours_but_errors():
    assert not imported("errors") and imported("core") == {"errors"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the sources, in which tools may write."
    folder = tmp_path_factory.mktemp("house") / "copy"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_proc")
    for name in ("nbs", "cotmi"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("pyproject.toml", "settings.ini", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_tool(name: str, folder: Path, *arguments: str):
    done = subprocess.run([str(TOOLS / name), *arguments], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"})
    assert done.returncode == 0, done.stdout + done.stderr


def differing(folder: Path, pattern: str) -> list[str]:
    "Files of the copy that are no longer as they were."
    found = [p.relative_to(folder) for p in folder.glob(pattern)]
    return [str(p) for p in found
            if not (ROOT / p).exists() or (ROOT / p).read_bytes() != (folder / p).read_bytes()]


def test_export_leaves_no_diff(copy):
    run_tool("nbdev-export", copy)
    assert differing(copy, "cotmi/**/*.py") == [], "run nbdev-export and commit what it writes"


def test_notebooks_are_clean(copy):
    run_tool("nbdev-clean", copy)
    assert differing(copy, "nbs/**/*.ipynb") == [], "run nbdev-clean and commit what it writes"


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_hold_no_state(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    assert path.stat().st_size < 1_000_000, "a notebook of a megabyte holds outputs that belong in outputs/"
    assert "define(\"plotly\"" not in path.read_text(encoding="utf-8")


def test_library_notebooks_have_one_idea():
    for path in NOTEBOOKS:
        assert len(cells(path)) <= 60, f"{path.name} has {len(cells(path))} cells: split it"
        if module_of(path):
            title = next(source(c) for c in cells(path) if c["cell_type"] == "markdown")
            assert re.match(r"# \S.*\n> \S", title), f"{path.name} starts without title and subtitle"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments_have_one_parameters_cell(path):
    from cotmi.runs.experiments import experiment_parameters

    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", ())]
    assert len(tagged) == 1
    parameters = experiment_parameters(path)
    assert not any(c.get("outputs") for c in cells(path)), "an experiment is a template: its outputs go to outputs/"
    if path.stem == "compare":
        return
    assert {"out", "force", "overrides"} <= set(parameters)
    configured = next(source(c) for c in cells(path) if "RunConfig.resolve(" in source(c))
    passed = set(re.findall(r'"(\w+)": \1\b', configured))
    assert passed == set(parameters) - {"out", "force", "overrides", "samples"}


def test_experiments_are_left_out_of_nbdev_test():
    assert (ROOT / "nbs" / "experiments" / ".notest").exists()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_safe(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{where}: {node.func.id}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            assert not PICKLES & set(names), f"{where}: {names}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("load", "save"), f"{where}: torch.{node.attr} pickles"
        if isinstance(node, ast.keyword):
            assert node.arg not in ("allow_pickle", "trust_remote_code"), f"{where}: {node.arg}"
            assert not (node.arg == "shell" and getattr(node.value, "value", None) is True), f"{where}: shell=True"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_functions_say_what_they_do(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        assert not public or ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_ruff_is_content():
    run_tool("ruff", ROOT, "check")


def test_public_names():
    code = """
import sys, cotmi
assert "torch" not in sys.modules, "importing cotmi must be quick"
assert set(cotmi.__all__) <= set(dir(cotmi))
import cotmi.training.trainer, cotmi.evaluation.evaluator, cotmi.information.correlations
for name in cotmi.__all__:
    assert callable(getattr(cotmi, name)), name
from cotmi import train, evaluate, correlation
try:
    cotmi.trian
except AttributeError as fault:
    assert "trian" in str(fault)
else:
    raise SystemExit("a misspelt name was found")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_quick():
    heavy = "assert not {'torch', 'transformers', 'datasets', 'plotly', 'ipywidgets'} & set(sys.modules)"
    more = heavy.replace("{", "{'pandas', 'scipy', 'pydantic', 'pyarrow', ")
    subprocess.run([sys.executable, "-c", f"import sys, cotmi.cli; {more}"], check=True)
    code = "from cotmi.cli import main; import contextlib\nwith contextlib.suppress(SystemExit): main(['list'])"
    subprocess.run([sys.executable, "-c", f"import sys; {code}\n{heavy}"], check=True, capture_output=True)


def test_default_names_are_names_of_the_records():
    "A configuration does not look the default of a choice up, since that takes seconds: so it is looked up here."
    from cotmi.training.run_config import RunConfig, _fields

    chosen = {name: f for name, f in _fields().items() if f.metadata["names"]}
    assert set(chosen) == {"method", "objective", "features", "critic", "adapter", "select_by", "report_to",
                           "mi_bounds"}
    for name, declared in chosen.items():
        assert set((declared.default or "").split(",")) - {""} <= set(declared.metadata["names"]()), name
        for other in declared.metadata["names"]():
            assert getattr(RunConfig(**{"objective": "infonce", name: other}), name) == other


def test_every_dependency_is_pinned():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    pinned = {re.split(r"==", x)[0].lower().replace("_", "-") for x in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; python_version >= \"3\.\d+\")?", x) for x in lines)
    assert "torch==2.13.0" in lines and "cotmi" not in pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w.-]+", d)[0].lower().replace("_", "-") for d in wanted} - {"cotmi"}
    assert names <= pinned, f"not in constraints.txt: {sorted(names - pinned)}"


def test_settings_file_is_valid():
    from cotmi.core import SETTINGS, load_settings
    from cotmi.training.run_config import RunConfig

    settings = load_settings(ROOT, {})
    assert settings.file == ROOT / "settings.ini"
    assert {name: settings[name] for name in SETTINGS} == {name: s.default for name, s in SETTINGS.items()}
    assert RunConfig.resolve({}, settings) == RunConfig()


def test_make_targets_are_explained():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    explained = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "lab", "test", "docs", "readme", "bench", "clean"):
        assert re.search(rf"^{target}:", makefile, re.M) and f"make {target} " in explained
    for target in ("demo", "lab", "test", "docs", "readme", "bench"):
        assert re.search(rf"^{target}: install$", makefile, re.M), f"{target} works without an environment"


def test_what_make_runs_is_a_shell_script():
    "Each recipe, as make would hand it to the shell, is read to its end and not run."
    for target in ("install", "packages", "hooks", "demo", "lab", "test", "docs", "readme", "bench", "clean"):
        told = subprocess.run(["make", "-n", "--no-print-directory", target], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout
        read = subprocess.run(["sh", "-n"], input=told, capture_output=True, text=True)
        assert read.returncode == 0, f"make {target}: {read.stderr}"


def test_continuous_integration_runs_what_the_readme_names():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")
