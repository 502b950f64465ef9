"""The house in figures: sizes of cells and functions, descriptions, names compared, imports made late.

    python tests/house_figures.py    print the table; tests/test_style.py holds the limits
"""

import ast
import io
import json
import re
import statistics
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cotmi"
METHODS = {"finetune", "single_task", "dss", "mi"}
OBJECTIVES = {"paper-masked", "paper-code"}
BOUNDS = {"infonce", "nwj", "dv", "js", "smile", "barber-agakov", "club", "gaussian"}
CRITICS = {"bilinear", "separable", "concat"}
LABEL_KINDS = {"choice", "choices", "equation", "number", "text"}
NAMES = METHODS | OBJECTIVES | BOUNDS | CRITICS | LABEL_KINDS


def modules() -> dict[str, ast.Module]:
    "Dotted name inside the package to syntax tree."
    files = (p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_modidx.py")
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): ast.parse(p.read_text(encoding="utf-8"))
            for p in files}


def file_of(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


# -- names compared ----------------------------------------------------------------------------------------------------
def _strings(node: ast.AST) -> set[str]:
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return {p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)}


def compared_names(tree: ast.AST) -> list[tuple[int, str]]:
    "Line and text of every comparison with the name of a method, objective, bound, critic or label kind."
    kept = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            if any(_strings(side) & NAMES for side in (node.left, *node.comparators)):
                kept.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.MatchValue) and _strings(node.value) & NAMES:
            kept.append((node.lineno, ast.unparse(node)))
    return kept


# -- sizes -------------------------------------------------------------------------------------------------------------
def export_cells() -> list[tuple[int, str, str]]:
    "Lines, notebook and text of every cell that is exported, imports apart."
    kept = []
    for path in sorted((ROOT / "nbs").rglob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
            if re.match(r"#\|\s*export", source):
                body = source.split("\n", 1)[1] if "\n" in source else ""
                if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(body).body):
                    continue
                lines = len(body.strip("\n").splitlines())
                name = str(path.relative_to(ROOT / "nbs"))
                kept.append((lines, name, body.strip("\n")))
    return kept


def is_table(body: str) -> bool:
    "Whether a cell is a table: a constant, or one class of fields and methods of a few lines that say where to look."
    tree = ast.parse(body).body
    if len(tree) == 1 and isinstance(tree[0], ast.ClassDef):
        return all(m.end_lineno - m.body[0].lineno < 8 for m in tree[0].body if isinstance(m, ast.FunctionDef))
    return all(isinstance(node, (ast.Assign, ast.AnnAssign)) for node in tree)


def functions() -> list[tuple[int, str]]:
    "Lines and name of every function and method."
    return [(node.end_lineno - node.lineno + 1, f"{name}.{node.name}") for name, tree in modules().items()
            for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


# Methods that a base class describes: the Trainer of transformers, and our `View`.
INHERITED = {"compute_loss", "get_batch_samples", "log", "create_optimizer", "build", "refresh", "chose"}


# -- descriptions ------------------------------------------------------------------------------------------------------
def _public(tree: ast.Module):
    "Public functions and methods with their owner's name, and public classes."
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node, ""
            yield from ((m, node.name) for m in node.body
                        if isinstance(m, ast.FunctionDef) and (not m.name.startswith("_") or m.name == "__init__"))


def described_parameters() -> tuple[int, int, list[str]]:
    "How many parameters of public functions have a comment of their own, how many there are, and those without."
    good, lacking = 0, []
    for name, tree in modules().items():
        text = file_of(name).read_text(encoding="utf-8")
        comments = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline)
                    if t.type == tokenize.COMMENT}
        for node, owner in _public(tree):
            if not isinstance(node, ast.FunctionDef) or node.name in INHERITED or node.name.startswith("on_"):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for argument in arguments[1 if owner else 0:]:
                annotated = argument.annotation is not None and "help=" in ast.unparse(argument.annotation)
                alias = argument.annotation is not None and re.fullmatch(r"_\w+", ast.unparse(argument.annotation))
                if argument.end_lineno in comments or annotated or alias:
                    good += 1
                else:
                    lacking.append(f"{name}.{owner + '.' if owner else ''}{node.name}({argument.arg})")
    return good, good + len(lacking), lacking


def without_docstring() -> list[str]:
    "Public functions and classes without a docstring; small properties of records say enough by their names."
    kept = []
    for name, tree in modules().items():
        for node, owner in _public(tree):
            told = node.name == "__init__" or node.name in INHERITED or node.name.startswith("on_")
            if owner and (told or node.end_lineno - node.lineno < 2):
                continue
            if not ast.get_docstring(node):
                kept.append(f"{name}.{owner + '.' if owner else ''}{node.name}")
    return kept


# -- structure ---------------------------------------------------------------------------------------------------------
def patches() -> list[str]:
    "Functions that are glued onto a class of ours, by a decorator or by an assignment to an attribute of the class."
    decorated = [f"{name}.{node.name}" for name, tree in modules().items() for node in ast.walk(tree)
                 if isinstance(node, ast.FunctionDef) and any("patch" in ast.unparse(d) for d in node.decorator_list)]
    assigned = [f"{name}: {ast.unparse(target)}" for name, tree in modules().items() for node in tree.body
                if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Attribute) and ast.unparse(target.value)[:1].isupper()]
    return decorated + assigned


def late_imports() -> set[tuple[str, str]]:
    "Module of ours, and the module of ours that it imports inside a function."
    kept = set()
    for name, tree in modules().items():
        room = name.split(".")[:-1]
        for function in (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    kept |= {(name, a.name.removeprefix("cotmi.")) for a in node.names if a.name.startswith("cotmi.")}
                if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("cotmi")):
                    parts = [*room[:len(room) + 1 - node.level], node.module] if node.level else \
                        [(node.module or "").removeprefix("cotmi.")]
                    kept.add((name, ".".join(parts)))
    return kept


def hidden_imports() -> list[str]:
    "Places that import a module by a string, `cotmi/__init__.py` and names given by a user apart."
    return [f"{name}:{node.lineno}" for name, tree in modules().items() for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module"
            and node.args and isinstance(node.args[0], ast.Constant)]


def main() -> int:
    cells = export_cells()
    sizes = [lines for lines, *_ in cells]
    code = [(lines, where, body.split("\n")[0][:60]) for lines, where, body in cells if not is_table(body)]
    lengths = sorted(functions())
    good, every, lacking = described_parameters()
    bare = without_docstring()
    print(f"modules                          {len(modules())}")
    print(f"export cells, imports apart      {len(cells)}, median {statistics.median(sizes):g} lines")
    print(f"  over 25 / over 40 lines        {sum(x > 25 for x in sizes)} / {sum(x > 40 for x in sizes)}")
    print(f"  largest with code              {max(code)}")
    print(f"functions                        {len(lengths)}, median {statistics.median(x for x, _ in lengths):g} lines")
    print(f"  longest                        {lengths[-1]}")
    print(f"parameters described             {good} of {every} ({good / every:.1%})")
    print(f"public names without docstring   {len(bare)}")
    print(f"@patch                           {len(patches())}")
    print(f"imports by a string              {len(hidden_imports())}")
    print(f"imports of ours made late        {len(late_imports())}")
    print(f"comparisons of record names      {sum(len(compared_names(t)) for t in modules().values())}")
    if "-v" in sys.argv:
        for name, tree in modules().items():
            for line, text in compared_names(tree):
                print(f"  compared  {name}:{line}: {text}")
        for lines, where, first in sorted(code, reverse=True):
            if lines > 40:
                print(f"  cell      {lines} {where}: {first}")
        for item in lacking:
            print(f"  parameter {item}")
        for item in bare:
            print(f"  docstring {item}")
        for item in sorted(late_imports()):
            print(f"  late      {item}")
        for size, item in lengths[::-1]:
            if size > 45:
                print(f"  function  {size} {item}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
