"""What the exported modules offer, read from their source text: signatures, parameters, errors, places.

Nothing is imported, so the reference can be built without loading PyTorch, and a module that fails to import still
has a page that says what it should hold.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

SIGNATURE_VALUE = 40 # Longer defaults are shown as an ellipsis in a signature
LONG_SIGNATURE = 12 # With more parameters than this a signature gives their names only
DATA_VALUE = 100 # Longer values of constants are left to the source


@dataclass
class Parameter:
    "One parameter of a function, or one field of a record."
    name: str
    annotation: str = ""
    default: str | None = None
    meaning: str = ""


@dataclass
class Entry:
    "One exported name, or a public method of an exported class."
    module: str
    name: str # `Run` or `Run.history`
    kind: str # py-domain directive: function, class, exception, data, method, property, attribute
    first: int # First line in the module, decorators included
    last: int # Last line
    signature: str = ""
    summary: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    returns: Parameter | None = None
    raises: list[tuple[str, str]] = field(default_factory=list)
    members: list["Entry"] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    patched: bool = False # A method that `@patch` adds in a cell of its own

    @property
    def full_name(self) -> str: return f"{self.module}.{self.name}"


def _text(node: ast.AST | None) -> str: return "" if node is None else ast.unparse(node)
def _short(text: str | None, width: int) -> str | None:
    return text if text is None or len(text) <= width else "..."

def _has_decorator(node, *names: str) -> bool:
    return any(_text(d.func if isinstance(d, ast.Call) else d).split(".")[-1] in names for d in node.decorator_list)

def _placeholder(node: ast.AST) -> str:
    "`{name}` for a plain name or attribute, an ellipsis for anything else."
    text = _text(node)
    return f"{{{text.split('.')[-1]}}}" if re.fullmatch(r"[\w.]+", text) else "…"

def _message(node: ast.AST) -> str:
    "The text of an error message; what is filled in stands in braces or is an ellipsis."
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else _placeholder(v.value) for v in node.values)
    if isinstance(node, ast.BinOp):
        return _message(node.left) + _message(node.right)
    return "…"


class Source:
    "One exported module."

    def __init__(self, path: Path, package: str = "cotmi"):
        self.path, self.package = path, package
        place = path.with_suffix("").parts
        self.name = ".".join(place[len(place) - 1 - place[::-1].index(package):])
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]: return self.text.splitlines()

    @cached_property
    def comments(self) -> dict[int, tuple[str, bool]]:
        "Line number to (comment, whether it stands alone)."
        found = {}
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                alone = not self.lines[token.start[0] - 1][:token.start[1]].strip()
                if not token.string.startswith("# %%"): # nbdev's mark of a cell
                    found[token.start[0]] = (token.string.lstrip("# ").rstrip(), alone)
        return found

    @cached_property
    def exports(self) -> list[str]:
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and _text(node.targets[0]) == "__all__":
                return ast.literal_eval(node.value)
        return []

    @cached_property
    def nodes(self) -> dict[str, ast.AST]:
        "Top-level name to its (last) definition."
        found = {}
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                if not self.patched_class(node):
                    found[node.name] = node
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                        found[_text(name)] = node
            elif isinstance(node, ast.AnnAssign):
                found[_text(node.target)] = node
        return found

    @cached_property
    def patches(self) -> dict[str, list[ast.AST]]:
        "Class name to the methods that `@patch` adds to it."
        found = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and (owner := self.patched_class(node)):
                found.setdefault(owner, []).append(node)
        return found

    @staticmethod
    def patched_class(node) -> str | None:
        if isinstance(node, ast.FunctionDef) and _has_decorator(node, "patch") and node.args.args:
            return _text(node.args.args[0].annotation).strip("'\"") or None
        return None

    # -- comments as documentation ------------------------------------------------------------------------------
    def _comment(self, start: int, end: int) -> str:
        "The comment on the last line of a definition, or the comment lines right above its first."
        if end in self.comments and not self.comments[end][1]:
            return self.comments[end][0]
        above, line = [], start - 1
        while line in self.comments and self.comments[line][1]:
            above.insert(0, self.comments[line][0])
            line -= 1
        return " ".join(above)

    def _parameters(self, node, skip_self: bool) -> list[Parameter]:
        a = node.args
        positional = [*a.posonlyargs, *a.args]
        defaults = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
        pairs = list(zip(positional, defaults, strict=True))
        if skip_self:
            pairs = pairs[1:]
        named = [(arg, default, arg.arg) for arg, default in pairs]
        if a.vararg:
            named.append((a.vararg, None, f"*{a.vararg.arg}"))
        named += [(arg, default, arg.arg) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
        if a.kwarg:
            named.append((a.kwarg, None, f"**{a.kwarg.arg}"))
        # several parameters on one line share no comment: it belongs to the last of them
        ends = [(default or arg).end_lineno for arg, default, _ in named]
        found = []
        for i, (arg, default, name) in enumerate(named):
            last_on_line = i + 1 == len(named) or named[i + 1][0].lineno != ends[i]
            meaning = self._comment(arg.lineno, ends[i]) if last_on_line and node.lineno != ends[i] else ""
            annotation, help_text = self._annotation(arg.annotation)
            found.append(Parameter(name, annotation, None if default is None else _text(default), meaning or help_text))
        if a.vararg and a.kwarg: # what is passed on is described once
            rest = next(p for p in found if p.name == f"**{a.kwarg.arg}")
            first = next(p for p in found if p.name == f"*{a.vararg.arg}")
            first.meaning = first.meaning or rest.meaning
        return found

    def _annotation(self, node: ast.AST | None) -> tuple[str, str]:
        "An annotation and the help in it: `Annotated[type, Option(help=…)]` is how the command line says it."
        named = self.nodes.get(node.id) if isinstance(node, ast.Name) and node.id.startswith("_") else None
        whole = getattr(named, "value", node) if named else node
        if isinstance(whole, ast.Subscript) and _text(whole.value).split(".")[-1] == "Annotated":
            kind, *extra = whole.slice.elts
            calls = [call for call in extra if isinstance(call, ast.Call)] # a helper of ours takes the help first
            said = [v for call in calls for v in (*call.args[:1], *(k.value for k in call.keywords if k.arg == "help"))]
            help_text = next((v.value for v in said if isinstance(v, ast.Constant) and isinstance(v.value, str)), "")
            return _text(kind), help_text
        return _text(node), ""

    def _signature(self, node, parameters: list[Parameter], returns: str = "") -> str:
        star = bool(node and node.args.kwonlyargs and not node.args.vararg)
        first_keyword = node.args.kwonlyargs[0].arg if star else None
        if len(parameters) > LONG_SIGNATURE: # the table below it has the types and defaults
            return f"({', '.join(p.name for p in parameters)})" + (f" -> {returns}" if returns else "")
        parts = []
        for p in parameters:
            if p.name == first_keyword:
                parts.append("*")
            default = _short(p.default, SIGNATURE_VALUE)
            gap = " = " if p.annotation else "="
            parts.append(p.name + (f": {p.annotation}" if p.annotation else "")
                         + ("" if default is None else gap + default))
        return f"({', '.join(parts)})" + (f" -> {returns}" if returns else "")

    def _returns(self, node) -> Parameter | None:
        annotation = _text(node.returns)
        meaning = ""
        if node.returns: # the comment behind it, on the line that ends the head
            for line in range(node.returns.end_lineno, node.body[0].lineno):
                text, alone = self.comments.get(line, ("", True))
                meaning = meaning or ("" if alone else text)
        return Parameter("return", annotation, None, meaning) if annotation not in ("", "None") or meaning else None

    # -- errors ----------------------------------------------------------------------------------------------------
    def _raises(self, node, seen: frozenset = frozenset()) -> list[tuple[str, str]]:
        "The errors that a function, or a private helper it calls in the same module, raises itself."
        found = []
        defaults = {p.name: p.default for p in self._parameters(node, False) if p.default}
        for child in ast.walk(node):
            if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
                name = _text(child.exc.func)
                name = defaults.get(name, name)
                if not re.fullmatch(r"[\w.]*(Error|Exit|Interrupt)", name):
                    continue
                text = _message(child.exc.args[0]) if child.exc.args else ""
                found.append((name, re.sub(r"(\s*…\.?)+", lambda m: " …" if m[0][0] == " " else "…",
                                           re.sub(r"\s+", " ", text)).strip()))
            elif isinstance(child, ast.Call) and isinstance(child.func, ast.Name):
                helper = self.nodes.get(child.func.id)
                if isinstance(helper, ast.FunctionDef) and helper.name not in seen and helper.name.startswith("_"):
                    found += self._raises(helper, seen | {helper.name})
        return list(dict.fromkeys(found))

    # -- entries ---------------------------------------------------------------------------------------------------
    def _function(self, node, owner: str = "") -> Entry:
        static = _has_decorator(node, "staticmethod")
        parameters = self._parameters(node, bool(owner) and not static)
        is_property = _has_decorator(node, "property", "cached_property") or any(
            isinstance(d, ast.Call) and any(k.arg == "as_prop" for k in d.keywords) for d in node.decorator_list)
        returns = self._returns(node)
        kind = "property" if is_property else "method" if owner else "function"
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        signature = "" if is_property else self._signature(node, parameters, returns.annotation if returns else "")
        return Entry(self.name, f"{owner}.{node.name}".lstrip("."), kind, first, node.end_lineno, signature,
                     ast.get_docstring(node) or "", parameters, returns, self._raises(node))

    def _fields(self, node: ast.ClassDef) -> list[Parameter]:
        found = []
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or "ClassVar" in _text(item.annotation):
                continue
            default, meaning = item.value, self._comment(item.lineno, item.end_lineno)
            shown = None if default is None else _text(default)
            if isinstance(default, ast.Call):
                named = {k.arg: k.value for k in default.keywords}
                if "default_factory" in named:
                    shown = f"{_text(named['default_factory'])}()"
                elif "default" in named:
                    shown = _text(named["default"])
                elif len(default.args) > 1: # a helper that takes the default and its help
                    shown = _text(default.args[0])
                texts = [v.value for c in ast.walk(default) if isinstance(c, ast.Dict)
                         for k, v in zip(c.keys, c.values, strict=True)
                         if _text(k) == "'help'" and isinstance(v, ast.Constant)]
                if isinstance(named.get("help"), ast.Constant):
                    texts = [named["help"].value]
                if not texts: # a project's own field(default, "help", …)
                    texts = [v.value for v in default.args[1:] if isinstance(getattr(v, "value", None), str)]
                meaning = meaning or (texts[0] if texts else "")
            if not _text(item.target).startswith("_"):
                found.append(Parameter(_text(item.target), _text(item.annotation), shown, meaning))
        return found

    def _inherited_fields(self, node: ast.ClassDef, record: bool) -> list[Parameter]:
        parameters = {}
        for base in node.bases if record else ():
            if isinstance(parent := self.nodes.get(_text(base)), ast.ClassDef):
                parameters |= {p.name: p for p in self._inherited_fields(parent, True)}
        return list((parameters | {p.name: p for p in self._fields(node)}).values())

    def _class(self, node: ast.ClassDef) -> Entry:
        bases = [_text(b) for b in node.bases]
        is_error = node.name.endswith("Error") or any(b.endswith(("Error", "Exception")) for b in bases)
        methods = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        methods += self.patches.get(node.name, [])
        init = next((m for m in methods if m.name == "__init__"), None)
        record = _has_decorator(node, "dataclass") or any("NamedTuple" in b or "TypedDict" in b for b in bases)
        raises: list = []
        if init and not record:
            parameters = self._parameters(init, True)
            signature, raises = self._signature(init, parameters), self._raises(init)
        elif record:
            parameters = self._inherited_fields(node, _has_decorator(node, "dataclass"))
            signature = self._signature(None, parameters)
            post = next((m for m in methods if m.name == "__post_init__"), None)
            raises = self._raises(post) if post else []
        else:
            parameters, signature = [], ""
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        entry = Entry(self.name, node.name, "exception" if is_error else "class", first, node.end_lineno, signature,
                      ast.get_docstring(node) or "", parameters, None, raises, bases=bases)
        for method in methods:
            decorators = [_text(d) for d in method.decorator_list]
            shown = not method.name.startswith("_") or (method.name == "__call__" and ast.get_docstring(method))
            # without a docstring a method of a derived class answers to its base, which describes it
            inherited = bool(bases) and not record and not ast.get_docstring(method)
            if (shown and not inherited and "overload" not in decorators
                    and f"{method.name}.setter" not in decorators):
                member = self._function(method, node.name)
                member.patched = method in self.patches.get(node.name, ())
                entry.members.append(member)
        return entry

    def _data(self, name: str, node) -> Entry:
        value = getattr(node, "value", None)
        annotation = _text(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        text = "" if value is None else _text(value)
        signature = "" if isinstance(getattr(node, "targets", [None])[0], ast.Tuple) else text
        return Entry(self.name, name, "data", node.lineno, node.end_lineno,
                     signature if len(signature) <= DATA_VALUE else "",
                     self._comment(node.lineno, node.end_lineno),
                     returns=Parameter("value", annotation) if annotation else None)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        "Every exported name, in the order of the source."
        found = {}
        for name in sorted(self.exports, key=lambda n: getattr(self.nodes.get(n), "lineno", 0)):
            node = self.nodes.get(name)
            if isinstance(node, ast.ClassDef):
                found[name] = self._class(node)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[name] = self._function(node)
            elif node is not None:
                found[name] = self._data(name, node)
        return found

    @cached_property
    def tags(self) -> dict[str, tuple[str, int, int]]:
        "What sphinx.ext.viewcode wants to know: name to (kind, first line, last line)."
        kinds = {"function": "def", "method": "def", "property": "def", "data": "other"}
        every = [e for entry in self.entries.values() for e in (entry, *entry.members)]
        return {e.name: (kinds.get(e.kind, "class"), e.first, e.last) for e in every}


def top_names() -> dict[str, str]:
    "The names at the top of the package and where they live: `cotmi.train` to `cotmi.training.trainer.train`."
    package = Path(__file__).resolve().parents[1] / "cotmi"
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and _text(node.targets[0]) == "_HOMES":
            return {f"cotmi.{n}": f"{home}.{n}" for n, home in ast.literal_eval(node.value).items()}
    return {}


# -- Markdown ----------------------------------------------------------------------------------------------------------
WORD = re.compile(r"[A-Za-z_][\w.]*")

def cell(text: str) -> str:
    "Text that can stand in a table cell."
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()

def code(text: str) -> str:
    if not text:
        return ""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{cell(text)}{pad}{fence}"

def linked(annotation: str, names: dict[str, str]) -> str:
    "An annotation as code in which our own types are links; `names` maps a short name to the full one."
    plain = annotation.strip("'\"")
    if not any(w in names for w in WORD.findall(plain)):
        return code(plain)
    # code spans cannot touch each other, so what stands between the links is plain text
    return WORD.sub(lambda m: f"{{py:obj}}`{m[0]} <{names[m[0]]}>`" if m[0] in names else m[0].replace("_", r"\_"),
                    re.sub(r"([][*|])", r"\\\1", plain))

def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)] if rows else []

def markdown(entry: Entry, names: dict[str, str], source_url: str, depth: int = 0, link=lambda text: text) -> str:
    """MyST text of an entry: the py-domain object with its summary, parameters, return, errors, place and members.

    `link` turns names in prose into references.
    """
    fence = "`" * (8 - depth)
    options = [f":module: {entry.module}"]
    head = entry.name + (entry.signature if entry.kind not in ("data", "property") else "")
    if len(entry.parameters) > LONG_SIGNATURE:
        options.append(":single-line-parameter-list:")
    if entry.kind == "property" and entry.returns and entry.returns.annotation:
        options.append(f":type: {entry.returns.annotation}")
    if entry.kind == "data":
        if entry.signature:
            options.append(f":value: {entry.signature}")
        if entry.returns:
            options.append(f":type: {entry.returns.annotation}")
    lines = [f"{fence}{{py:{entry.kind}}} {head}", *options, ""]
    if entry.summary:
        lines += [link(entry.summary), ""]
    rows = [[f"`{p.name}`", linked(p.annotation, names), code(p.default) if p.default is not None else "",
             link(cell(p.meaning))] for p in entry.parameters]
    if rows and (entry.kind != "method" or any(p.meaning for p in entry.parameters)): # else the signature says it all
        kept = [0, *(i for i in (1, 2, 3) if any(r[i] for r in rows))]
        titles = ["Parameter", "Type", "Default", "Meaning"]
        lines += table([titles[i] for i in kept], [[r[i] for i in kept] for r in rows]) + [""]
    if entry.returns and entry.kind in ("function", "method"):
        kind, meaning = linked(entry.returns.annotation, names), link(entry.returns.meaning)
        lines += [f"**Returns** {kind}" + (": " if kind and meaning else "") + meaning, ""]
    if entry.kind == "property" and entry.returns and entry.returns.meaning:
        lines += [link(entry.returns.meaning), ""]
    if entry.raises:
        lines += ["**Raises**", ""]
        lines += [f"- {linked(name, names)}" + (f": {_quoted(text)}" if text.strip("… ") else "")
                  for name, text in entry.raises] + [""]
    file = f"{entry.module.replace('.', '/')}.py"
    place = f"line {entry.first}" if entry.first == entry.last else f"lines {entry.first}–{entry.last}"
    lines += [f"[{file}, {place}]({source_url}/{file}#L{entry.first}-L{entry.last}){{.source}}", ""]
    for member in (m for m in entry.members if not m.patched): # those stand in their own cells
        lines += [markdown(member, names, source_url, depth + 1, link), ""]
    return "\n".join([*lines, fence])

def _quoted(text: str) -> str:
    text = text if len(text) <= 160 else text[:157].rsplit(" ", 1)[0] + " …"
    return code(text)
