"""The reference as MyST: what griffe reads from the source text, and the comments beside it. Nothing is imported.

griffe knows signatures, records, bases and places. Two things it leaves to us: a comment beside a parameter, a field or
a constant is what documents it here, and what a function raises is read from its body.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
LONG_SIGNATURE = 12 # With more parameters than this a signature gives their names only
SIGNATURE_VALUE, DATA_VALUE, MESSAGE = 40, 100, 160 # Longer defaults, values of constants and messages are cut


class Tuples(griffe.Extension):
    "`A, B = 1, 2` at the top of a module too: griffe leaves it out."

    def on_node(self, *, node: ast.AST, agent: griffe.Visitor, **_) -> None:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and agent.current.is_module:
            for name in map(ast.unparse, node.targets[0].elts):
                agent.current[name] = griffe.Attribute(name, lineno=node.lineno, endlineno=node.end_lineno)

@cache
def package() -> griffe.Module:
    return griffe.load("cotmi", search_paths=[ROOT], allow_inspection=False, extensions=griffe.load_extensions(Tuples))

def module(name: str) -> griffe.Module: # `cotmi.data.data_report`
    return package()[name.removeprefix("cotmi.")].module

def modules(of: griffe.Module | None = None) -> list[griffe.Module]:
    "Every module that exports something; `import cotmi` in one of them is an alias, not a module."
    inner = [m for m in (of or package()).members.values() if not m.is_alias and m.is_module]
    return [found for m in inner for found in ([m] if m.exports else []) + modules(m)]

def exported(of: griffe.Module) -> list:
    "What a module exports, in the order of its source."
    return sorted((of.members[str(name)] for name in of.exports or ()), key=lambda thing: thing.lineno)

def members(thing) -> list:
    "The methods and properties of a class to show: without a docstring those of a derived class answer to its base."
    derived = thing.is_class and thing.bases and not is_record(thing)
    return [m for m in (thing.members.values() if thing.is_class else ()) if not m.is_alias
            and (m.is_function or "property" in m.labels) and (m.docstring or not derived)
            and (not m.name.startswith("_") or m.name == "__call__" and m.docstring)]

def things(of: griffe.Module) -> list:
    return [thing for top in exported(of) for thing in (top, *members(top))]

def is_record(thing) -> bool:
    return "dataclass" in thing.labels or any(str(base) in ("NamedTuple", "TypedDict") for base in thing.bases)

def short_name(thing) -> str: # `Run` or `Run.history`
    return thing.path.removeprefix(f"{thing.module.path}.")

def top_names() -> dict[str, str]:
    "The names at the top of the package and where they live: `cotmi.train` to `cotmi.training.trainer.train`."
    homes = ast.literal_eval(str(package()["_HOMES"].value))
    return {f"cotmi.{name}": f"{home}.{name}" for name, home in homes.items()}

@cache
def index() -> dict[str, list[str]]:
    "Every full and every short name to the full names that it may mean."
    found = {name: [name] for name in top_names()}
    for of in modules():
        found[of.path] = [of.path]
        for thing in things(of):
            found[thing.path] = [thing.path]
            found.setdefault(short_name(thing), []).append(thing.path)
    return found

def meaning(name: str, module: str) -> str | None:
    "The full name as seen from a module: its own name comes first, then one that is the only one."
    meant = index().get(f"{module}.{name}") or index().get(name, ())
    return meant[0] if len(meant) == 1 else None


# -- comments as documentation -----------------------------------------------------------------------------------------
@cache
def comments(path: Path) -> dict[int, tuple[str, bool]]:
    "Line to its comment and whether it stands alone there; nbdev's marks of cells are none."
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {t.start[0]: (t.string.lstrip("# ").rstrip(), not t.line[:t.start[1]].strip()) for t in tokens
            if t.type == tokenize.COMMENT and not t.string.startswith("# %%")}

@cache
def definitions(path: Path) -> dict[int, ast.AST]:
    "First line, of the decorators and of the rest, to the function or class that begins there."
    found = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if hasattr(n, "decorator_list")]
    return {line: n for n in found for line in (n.lineno, *(d.lineno for d in n.decorator_list))}

def place(thing) -> tuple[int, int]:
    "First line, of the decorators too, and last line."
    node = definitions(thing.filepath).get(thing.lineno)
    return min([thing.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]), thing.endlineno

def docment(path: Path, first: int, beside: Iterable[int]) -> str:
    "The comment behind one of these lines, or those on the lines above the first."
    said, above = comments(path), []
    for line in beside:
        if line in said and not said[line][1]:
            return said[line][0]
    while (first := first - 1) in said and said[first][1]:
        above.insert(0, said[first][0])
    return " ".join(above)

def docments(thing) -> dict[str, str]:
    "Parameter, field or `return` to its comment; of several on one line it is the last one's."
    node = definitions(thing.filepath)[thing.lineno]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        return {ast.unparse(n.target): docment(thing.filepath, n.lineno, [n.end_lineno]) for n in fields}
    a, body = node.args, node.body[0].lineno
    args = [arg for arg in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if arg]
    firsts = [arg.lineno for arg in args] + [node.returns.lineno if node.returns else body]
    found = {arg.arg: docment(thing.filepath, first, range(first, end))
             for arg, first, end in zip(args, firsts, firsts[1:], strict=False) if node.lineno != first != end}
    said = [comments(thing.filepath).get(line, ("", True)) for line in range(firsts[-1], body)]
    return found | {"return": next((text for text, alone in said if not alone), "")}

def sentence(value) -> str:
    "The help within a default or an annotation, such as `_set(0.5, \"…\")` or `Annotated[int, Option(help=\"…\")]`."
    words = [n.value for n in ast.walk(ast.parse(str(value))) if isinstance(n, ast.Constant)] if value else []
    return max((w for w in words if isinstance(w, str) and " " in w), key=len, default="")


# -- parameters, signatures, errors ------------------------------------------------------------------------------------
def parameters(thing) -> list[tuple[str, object, str | None, str]]:
    "Name as it is passed, annotation, default and meaning of each parameter, or field of a record."
    if thing.is_attribute or thing.is_class and not is_record(thing) and "__init__" not in thing.members:
        return []
    said, every = docments(thing), thing.parameters
    if thing.is_class: # a record's fields; what it inherits stands in its bases
        for base in thing.mro():
            said = docments(base) | said
        said |= docments(thing.members["__init__"]) if not is_record(thing) else {}
        if "dataclass" not in thing.labels and is_record(thing):
            every = [griffe.Parameter(n, annotation=a.annotation, default=a.value)
                     for n, a in thing.attributes.items() if "property" not in a.labels]
    found = []
    for p in (p for p in every if not (thing.is_class and p.name.startswith("_"))):
        annotation, default = p.annotation, p.default
        named = thing.module.members.get(str(annotation))
        if named and not named.is_alias and named.is_attribute and "Annotated" in str(named.value): # shared by commands
            annotation = named.value
        told = said.get(p.name, "") or sentence(annotation if "Annotated" in str(annotation) else default)
        if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
            annotation = annotation.slice.elements[0]
        if isinstance(default, griffe.ExprCall) and str(default.function) == "_set":
            default = default.arguments[0]
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(p.kind, "")
        found.append((star + p.name, annotation, None if default is None or star else str(default), told))
    first = found and found[0][0] in ("self", "cls") and "staticmethod" not in thing.labels
    return found[1:] if first else found

def signature(thing) -> str:
    rows = parameters(thing)
    returns = f" -> {thing.returns}" if thing.is_function and str(thing.returns) not in ("None",) else ""
    if len(rows) > LONG_SIGNATURE: # the table below has types and defaults
        return f"({', '.join(name for name, *_ in rows)}){returns}"
    if thing.is_class and not rows:
        return ""
    keywords = {p.name for p in thing.parameters if p.kind is griffe.ParameterKind.keyword_only}
    shown, starred = [], False
    for name, annotation, default, _ in rows:
        if name in keywords and not starred:
            shown.append("*")
        starred = starred or name in keywords or name.startswith("*")
        value = "..." if default and len(default) > SIGNATURE_VALUE else default
        shown.append(name + (f": {annotation}" if annotation else "")
                     + ("" if value is None else f" = {value}" if annotation else f"={value}"))
    return f"({', '.join(shown)}){returns}"

def message(node: ast.AST) -> str:
    "The text of an error; what is filled in stands in braces, or is an ellipsis where it is no plain name."
    if isinstance(node, ast.JoinedStr):
        return "".join(message(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return message(node.left) + message(node.right)
    if isinstance(node, ast.FormattedValue):
        name = ast.unparse(node.value)
        return f"{{{name.split('.')[-1]}}}" if re.fullmatch(r"[\w.]+", name) else "…"
    return str(node.value) if isinstance(node, ast.Constant) else "…"

def raised(thing, seen: tuple = ()) -> list[tuple[str, str]]:
    "The errors, and their messages, that a function or a private helper of its module raises itself."
    found = []
    for node in ast.walk(definitions(thing.filepath)[thing.lineno]):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name, said = ast.unparse(node.exc.func), message(node.exc.args[0]) if node.exc.args else ""
            name = next((p[2] for p in parameters(thing) if p[0] == name and p[2]), name) # an error passed in
            if re.search(r"(Error|Exit|Interrupt)$", name):
                found.append((name, re.sub(r"…\.?(\s*…\.?)*", "…", re.sub(r"\s+", " ", said)).strip()))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in seen:
            helper = thing.module.members.get(node.func.id)
            if node.func.id.startswith("_") and helper and not helper.is_alias and helper.is_function:
                found += raised(helper, (*seen, node.func.id))
    return list(dict.fromkeys(found))


# -- MyST --------------------------------------------------------------------------------------------------------------
def cell(text: str) -> str:
    "Text that can stand in a table cell."
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()

def code(text: object) -> str:
    shown = cell("" if text is None else str(text).strip("'\""))
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`" if shown else ""

def table(head: list[str], rows: list[list[str]]) -> list[str]:
    "A table without the columns that are empty."
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = ["| " + " | ".join(row[i] for i in kept) + " |" for row in (head, ["---"] * len(head), *rows)]
    return [*lines, ""] if rows else []

def directive(thing) -> str:
    if thing.is_class:
        fault = any(str(name).endswith(("Error", "Exception")) for name in (thing.name, *thing.bases))
        return "exception" if fault else "class"
    return "function" if thing.is_function and thing.parent.is_module else "method" if thing.is_function else (
        "property" if "property" in thing.labels else "data")

def head(thing) -> list[str]:
    "The directive's own lines: name and signature, and its options."
    kind, value = directive(thing), str(thing.value) if thing.is_attribute and thing.value is not None else ""
    options = [f":module: {thing.module.path}"]
    if kind in ("data", "property"):
        options += [f":value: {value}"] if kind == "data" and 0 < len(value) <= DATA_VALUE else []
        options += [f":type: {thing.annotation}"] if thing.annotation else []
    elif len(parameters(thing)) > LONG_SIGNATURE:
        options.append(":single-line-parameter-list:")
    shown = signature(thing) if kind not in ("data", "property") else ""
    return [f"{{py:{kind}}} {short_name(thing)}{shown}", *options, ""]

def body(thing, source_url: str) -> list[str]:
    "What the directive holds: docstring, parameters, return, errors, place."
    lines = [thing.docstring.value, ""] if thing.docstring else []
    if directive(thing) == "data":
        lines = [docment(thing.filepath, thing.lineno, [thing.endlineno]), ""]
    rows = [[f"`{name}`{{.name}}", code(annotation), code(default), cell(told)]
            for name, annotation, default, told in parameters(thing)]
    if thing.is_class or thing.parent.is_module or any(row[3] for row in rows): # else the signature says it all
        lines += table(["Parameter", "Type", "Default", "Meaning"], rows)
    told = docments(thing)["return"] if thing.lineno in definitions(thing.filepath) and not thing.is_class else ""
    if thing.is_function and (told or str(thing.returns) != "None"):
        lines += [f"**Returns** {': '.join(filter(None, [code(thing.returns), told]))}", ""]
    lines += [told, ""] if thing.is_attribute else []
    judge = thing
    if thing.is_class:
        judge = thing.members.get("__post_init__" if is_record(thing) else "__init__")
    errors = raised(judge) if judge and judge.lineno in definitions(thing.filepath) else []
    lines += ["**Raises**", ""] if errors else []
    for name, text in errors:
        text = text if len(text) <= MESSAGE else text[:MESSAGE - 3].rsplit(" ", 1)[0] + " …"
        lines.append(f"- `{name}`" + (f": {code(text)}" if text.strip("… ") else ""))
    file, (first, last) = thing.filepath.relative_to(ROOT), place(thing)
    spot = f"line {first}" if first == last else f"lines {first}–{last}"
    return [*lines, "", f"[{file}, {spot}]({source_url}/{file}#L{first}-L{last}){{.source}}", ""]

def markdown(thing, source_url: str, depth: int = 0) -> str:
    "MyST of an exported name and of the members of a class."
    fence = "`" * (8 - depth)
    inner = [markdown(member, source_url, depth + 1) + "\n" for member in members(thing)]
    return "\n".join([fence + "\n".join(head(thing)), *body(thing, source_url), *inner, fence])
