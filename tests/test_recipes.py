"""The recipes of CONTRIBUTING.md, followed word by word in a copy of the repository: their files, their code, their
checks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("nbs", "cotmi", "pyproject.toml", "settings.ini", "README.md", "LICENSE")
# Recipe to the files that it may change, besides what is exported from them.
RECIPES = {
    "A data set": {"nbs/data/08_published.ipynb", "nbs/experiments/parity.ipynb"},
    "An objective": {"nbs/training/03_objectives.ipynb"},
    "A critic": {"nbs/information/00_critics.ipynb"},
    "A student family": {"nbs/students/04a_bart.ipynb", "nbs/students/08_student.ipynb"},
    "A dashboard tab": {"nbs/dashboards/20a_lengths_view.ipynb", "nbs/dashboards/22_run_dashboard.ipynb"},
}
OUTSIDE = "The same without touching the package"


def recipe(title: str) -> list[tuple[str, str, str]]:
    "The fenced blocks under a heading: the line that leads to each, its language, its text."
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##)", text, re.M | re.S)
    assert section, f"CONTRIBUTING.md has no recipe {title!r}"
    lead, blocks = "", []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$|^([^\n]+):$", section[1], re.M | re.S):
        if match[3]:
            lead = match[3]
        else:
            blocks.append((lead, match[1], match[2].rstrip("\n")))
    return blocks


def state(folder: Path) -> dict[str, bytes]:
    "Every file of the copy with its content."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}


@pytest.fixture
def copy(tmp_path):
    "A copy of the repository's sources, to write in."
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.png")
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def follow(blocks: list[tuple[str, str, str]], copy: Path) -> None:
    "Do to the copy what the lines above the blocks say."
    for lead, language, text in blocks:
        if lead == "Check":
            continue
        *source, target = re.findall(r"`(nbs/\S+\.ipynb)`", lead)
        path = copy / target
        if source: # a copy of another notebook, with another first line in its cell of parameters
            assert lead.startswith("A copy of") and not path.exists()
            book = nbformat.read(copy / source[0], 4)
            (cell,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
            name = text.split(" = ")[0]
            cell.source, changed = re.subn(rf"^{name} = .*$", text, cell.source, flags=re.M)
            assert changed == 1
        else:
            assert lead.startswith("New, ") or (lead.startswith("At the end of ") and path.exists()), lead
            book = nbformat.read(path, 4) if path.exists() else nbformat.v4.new_notebook()
            new = nbformat.v4.new_markdown_cell if language == "markdown" else nbformat.v4.new_code_cell
            book.cells.append(new(text))
        nbformat.write(book, path)


def run(*words: str, cwd: Path, first: Path) -> None:
    "Run a program with a folder first on Python's path."
    environment = {**os.environ, "PYTHONPATH": f"{first}{os.pathsep}{cwd}", "OMP_NUM_THREADS": "1",
                   "HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def checked(blocks: list[tuple[str, str, str]], folder: Path, first: Path) -> None:
    "Run the check of a recipe in an empty folder."
    (check,) = [text for lead, _, text in blocks if lead == "Check"]
    folder.mkdir(exist_ok=True)
    (folder / "check.py").write_text(f"import cotmi; assert cotmi.__file__.startswith({str(first)!r})\n{check}\n",
                                     encoding="utf-8")
    run(sys.executable, "check.py", cwd=folder, first=first)


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title, copy, tmp_path):
    blocks, before = recipe(title), state(copy)
    follow(blocks, copy)
    run("nbdev-export", cwd=copy, first=copy)
    after = state(copy)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    exported = {name for name in changed if name.startswith("cotmi/")}
    assert changed - exported == RECIPES[title]
    texts = [(copy / name).read_text(encoding="utf-8") for name in changed - exported]
    modules = [name for text in texts for name in re.findall(r"#\| default_exp ([\w.]+)", text)]
    expected = {f"cotmi/{name.replace('.', '/')}.py" for name in modules}
    assert exported == expected | {"cotmi/_modidx.py"}
    checked(blocks, tmp_path / "elsewhere", copy)


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_recipe_is_needed(title, tmp_path):
    "Without the recipe its check fails: it tests what the recipe adds."
    with pytest.raises(AssertionError, match="Error"):
        checked(recipe(title), tmp_path / "elsewhere", ROOT)


@pytest.mark.slow
def test_without_touching_the_package(tmp_path):
    blocks = recipe(OUTSIDE)
    (module,) = [(lead, text) for lead, _, text in blocks if lead != "Check"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / re.search(r"`(\w+\.py)`", module[0])[1]).write_text(module[1] + "\n", encoding="utf-8")
    checked(blocks, tmp_path / "elsewhere", ROOT)


def test_every_recipe_is_followed():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(r"^## Recipes\n(.*?)(?=^## )", text, re.M | re.S)[1]
    assert re.findall(r"^### (.+)$", section, re.M) == [*RECIPES, OUTSIDE]
