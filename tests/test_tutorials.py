"""The tutorials run from top to bottom, in the order in which they are read, each in a kernel of its own."""

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
FEW_STEPS = {"max_steps 150 -p eval_steps 50": "max_steps 10 -p eval_steps 10"}
SHORTER = { # the pages show the whole work; here it need only run
    "ten_minutes": {"max_steps = 1000": "max_steps = 20", "demo_size = 12000": "demo_size = 400"},
    "a_teacher_of_your_own": {"range(400)": "range(80)", **FEW_STEPS},
    "your_own_data": FEW_STEPS,
    "new_critic_or_objective": {"max_steps=60": "max_steps=15"},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tutorials():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import tutorials
        yield tutorials
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    "Shared by all of them: a run that one has made is there for the next."
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_tutorial_runs(path, tutorials, outputs):
    start = time.time()
    book = tutorials.run_tutorial(path, outputs, SHORTER.get(path.stem))
    assert not [o for c in book.cells for o in c.get("outputs", []) if o.output_type == "error"]
    print(f"{path.stem}: {time.time() - start:.0f} s")


def test_tutorials_are_saved_with_their_outputs():
    "A page of the docs shows the outputs that its notebook holds."
    import nbformat

    for path in PATHS:
        book = nbformat.read(path, 4)
        code = [c for c in book.cells if c.cell_type == "code"]
        assert not code or any(c.outputs for c in code), f"{path.name}: run docs/tutorials.py {path.stem}"
