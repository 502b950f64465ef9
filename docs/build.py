#!/usr/bin/env python
"""Build the documentation: notebooks → docs/_site_src (MyST) → docs/_build/html (Sphinx).

    python docs/build.py            run the library notebooks, then build; warnings are errors
    python docs/build.py --no-run   keep the outputs that the notebooks hold

A library notebook becomes a reference page: its prose and examples stay, and each exported definition turns into its
signature, parameter table, errors and source link (docs/api.py reads them from the exported module).
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import tomllib
from pathlib import Path

os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1") # a build asks no network

import nbformat

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTEBOOKS = ROOT / "nbs"
sys.path.insert(0, str(DOCS))

from api import Source, markdown, top_names  # noqa: E402
from rooms import ROOMS, room_notebooks  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["project"]["urls"]["Repository"].rstrip("/")
BRANCH = PROJECT["tool"]["nbdev"].get("branch", "main")
BLOB = f"{REPOSITORY}/blob/{BRANCH}"
FENCED = re.compile(r"^(`{3,}|~{3,}|:{3,}).*?^\1[ \t]*$", re.M | re.S)
DIRECTIVE = re.compile(r"^#\s*\|\s*(.+?)\s*$", re.M)
HIDDEN_TYPES = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
QUARTO = re.compile(r"^\s*(:::|\{\{<|```\{(mermaid|python|dot)\})", re.M)


KEEP_GOING = False # --keep-going: say what is wrong and build the rest

def problem(text: str) -> None:
    "Stop the build, unless asked to keep going."
    if not KEEP_GOING:
        raise SystemExit(text)
    print(text, file=sys.stderr)


# -- reading notebooks -------------------------------------------------------------------------------------------------
def directives(source: str) -> dict[str, str]:
    "nbdev's `#| name value` lines of a cell."
    found = {}
    for line in source.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if match := re.match(r"\s*#\s*\|\s*([\w-]+):?\s*(.*)", line):
            found[match[1]] = match[2].strip()
    return found

def module_of(notebook) -> str | None:
    "The module that a notebook exports, or None."
    for cell in notebook.cells:
        if cell.cell_type == "code" and (name := directives(cell.source).get("default_exp")):
            return name
    return None

def library() -> dict[str, dict[str, Path]]:
    "Room to module name to notebook, in the order in which they build on each other."
    named = {room: {module_of(nbformat.read(path, 4)): path for path in paths}
             for room, paths in room_notebooks().items()}
    return {room: {name: path for name, path in modules.items() if name and module_file(name).exists()}
            for room, modules in named.items()}

def module_file(name: str) -> Path:
    "The exported file of a module."
    return (ROOT / "cotmi").joinpath(*name.split(".")).with_suffix(".py")


# -- running them ------------------------------------------------------------------------------------------------------
def run_notebook(path: Path) -> tuple[Path, list, float, str]:
    "Run a notebook in this process; returns its outputs by cell, seconds, and the text of an error."
    from execnb.shell import CaptureShell

    os.chdir(path.parent)
    start, outputs = time.time(), []
    shell = CaptureShell(mpl_format=None)
    for cell in nbformat.read(path, 4).cells:
        flags = directives(cell.source) if cell.cell_type == "code" else {"eval": "false"}
        if flags.get("eval", "").lower() == "false":
            outputs.append(None)
            continue
        outputs.append([dict(o) for o in shell.run(cell.source)])
        if shell.exc:
            error = f"{type(shell.exc).__name__}: {shell.exc}\nin the cell\n{cell.source}"
            return path, outputs, time.time() - start, error
    return path, outputs, time.time() - start, ""

def run_all(paths: list[Path], jobs: int) -> dict[Path, list]:
    "Run notebooks in forked workers that share the imports of this process."
    if len(paths) > 1:
        import torch

        torch.set_num_threads(1)
        for name in ("transformers", "datasets", "scipy.stats", "plotly.graph_objects", "fastcore.test"):
            __import__(name)
    outputs, failed = {}, []
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for path, found, seconds, error in pool.imap_unordered(run_notebook, paths, chunksize=1):
            outputs[path] = found
            print(f"  {path.name:<28} {seconds:5.1f} s" + (f"  FAILED: {error}" if error else ""), flush=True)
            if error:
                failed.append(path.name)
    if failed:
        problem(f"Notebooks failed: {', '.join(failed)}.")
    return outputs


# -- outputs -----------------------------------------------------------------------------------------------------------
def lines_to_text(value): return "".join(value) if isinstance(value, list) else value

def figure_html(figure: dict, depth: int) -> str:
    "A plotly figure as HTML that loads plotly.js from this site and fits itself into its column (_static/figures.js)."
    import uuid

    import plotly.io as pio

    shown = pio.from_json(json.dumps({k: figure[k] for k in ("data", "layout") if k in figure}), skip_invalid=True)
    text, place, top = shown.to_json().replace("<", "\\u003c"), f"figure-{uuid.uuid4().hex[:12]}", "../" * depth
    scripts = "".join(f'<script src="{top}_static/{name}"></script>' for name in ("plotly.min.js", "figures.js"))
    return (f'<div class="figure-plotly" id="{place}"></div>{scripts}'
            f"<script>cotmiFigure('{place}', {text});</script>")

def outputs_for_site(outputs: list, depth: int) -> list:
    "Outputs that a static page can show: no progress bars, no widgets, figures as HTML."
    kept = []
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            text = lines_to_text(output["text"])
            if output.get("name") == "stderr" or not text.strip():
                continue
            kept.append(nbformat.v4.new_output("stream", name="stdout", text=text))
        elif kind in ("display_data", "execute_result"):
            data = {k: lines_to_text(v) if k.startswith(("text/", "image/")) else v for k, v in output["data"].items()}
            if figure := data.pop("application/vnd.plotly.v1+json", None):
                data = {"text/html": figure_html(figure, depth)}
            if any(t in data for t in HIDDEN_TYPES):
                data = {k: v for k, v in data.items() if k in ("text/html", "image/png", "text/markdown")}
            if data:
                kept.append(nbformat.v4.new_output("display_data", data=data))
        elif kind == "error":
            kept.append(nbformat.v4.new_output("stream", name="stdout",
                                               text=f"{output['ename']}: {output['evalue']}\n"))
    return kept


# -- prose -------------------------------------------------------------------------------------------------------------
class Links:
    "Turns names into references, and links between files of the repository into links between pages."

    def __init__(self, sources: dict[str, Source], pages: dict[Path, str]):
        self.pages = pages # path in the repository to page, both without suffix handling
        self.short: dict[str, list[str]] = {}
        self.full: set[str] = set()
        self.modules = {source.name for source in sources.values()}
        for source in sources.values():
            for entry in (e for top in source.entries.values() for e in (top, *top.members)):
                self.short.setdefault(entry.name, []).append(entry.full_name)
                self.full.add(entry.full_name)

    def names(self, module: str = "") -> dict[str, str]:
        "Short name to full name as seen from a module: its own come first, then those that are unique."
        own = {n: f"{module}.{n}" for n in self.short if f"{module}.{n}" in self.full}
        return {n: f[0] for n, f in self.short.items() if len(f) == 1} | own

    def prose(self, text: str, page: str, origin: Path, module: str = "") -> str:
        names, parts, place = self.names(module), [], 0
        for match in FENCED.finditer(text):
            parts += [self._span(text[place:match.start()], page, origin, names), match[0]]
            place = match.end()
        return "".join([*parts, self._span(text[place:], page, origin, names)])

    def inline(self, page: str, origin: Path, module: str):
        return lambda text: self.prose(text, page, origin, module)

    def _span(self, text: str, page: str, origin: Path, names: dict[str, str]) -> str:
        def place(match):
            find = self.image if match[1].startswith("!") else self.target
            return f"{match[1]}({find(match[2], page, origin)})"

        text = re.sub(r"(!?\[[^]\n]*\])\(([^)\s]+)\)", place, text)
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if not line.startswith("#"): # headings stay plain: they become anchors and entries of the sidebar
                lines[i] = re.sub(r"(?<![`\[}\w])`([^`\n]+)`(?![`\]])", lambda m: self._name(m, names), line)
        return "\n".join(lines)

    def _name(self, match: re.Match, names: dict[str, str]) -> str:
        text = match[1]
        called = text.endswith("()")
        name = text[:-2] if called else text
        if name in self.modules:
            return f"{{py:mod}}`{text} <{name}>`"
        full = name if name in self.full else names.get(name)
        # a plain lower-case word may mean the thing, not the function: only word() is taken as the function
        plain_word = re.fullmatch(r"[a-z]+", name) and not called
        return f"{{py:obj}}`{text} <{full}>`" if full and not plain_word else match[0]

    def target(self, url: str, page: str, origin: Path) -> str:
        if re.match(r"[a-z]+:|#|/", url):
            return url
        path, _, anchor = url.partition("#")
        found = Path(os.path.normpath(origin.parent / path))
        if found in self.pages:
            to = os.path.relpath(self.pages[found], Path(page).parent)
            return f"{to}.{self.suffix(found)}" + (f"#{anchor}" if anchor else "")
        if not found.exists():
            problem(f"{origin.relative_to(ROOT)} links to {url}, which does not exist.")
        kind = "tree" if found.is_dir() else "blob"
        if ROOT not in found.parents and found != ROOT:
            problem(f"{origin.relative_to(ROOT)} links to {url}, which is outside the repository.")
        return f"{REPOSITORY}/{kind}/{BRANCH}/{found.relative_to(ROOT).as_posix()}"

    @staticmethod
    def suffix(path: Path) -> str: return "ipynb" if path.suffix == ".ipynb" else "md"

    def image(self, url: str, page: str, origin: Path) -> str:
        if re.match(r"[a-z]+:", url):
            return url
        found = Path(os.path.normpath(origin.parent / url))
        if not found.exists():
            problem(f"{origin.relative_to(ROOT)} shows {url}, which does not exist.")
        return os.path.relpath(Path("images") / found.name, Path(page).parent)


# -- pages -------------------------------------------------------------------------------------------------------------
def markdown_cell(text: str): return nbformat.v4.new_markdown_cell(text)

def check_syntax(text: str, origin: Path):
    if match := QUARTO.search(text):
        problem(f"{origin.relative_to(ROOT)} uses {match[0].strip()!r}, which only Quarto understands.")

def defined_names(source: str) -> list[str]:
    "The names that a cell defines at top level, in order; a method that `@patch` adds is `Class.method`."
    import ast

    names = []
    for node in ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M)).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            owner = Source.patched_class(node)
            names.append(f"{owner}.{node.name}" if owner else node.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                targets = target.elts if isinstance(target, ast.Tuple) else [target]
                names += [t.id for t in targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names

def executed(path: Path) -> list | None:
    "The outputs of an experiment as kept in docs/results, cell by cell; None if none are; an error if it has changed."
    kept = DOCS / "results" / path.name
    if not kept.exists():
        return None
    cells = [c for c in nbformat.read(kept, 4).cells if "injected-parameters" not in c.metadata.get("tags", [])]
    template = nbformat.read(path, 4).cells
    if [c.source for c in cells] != [c.source for c in template]:
        raise SystemExit(f"docs/results/{path.name} is of another version of {path}: its page would show no results. "
                         "Keep a new run with `python docs/results.py`.")
    return [c.get("outputs", []) for c in cells]

def page_of(path: Path, page: str, links: Links, source: Source | None = None, outputs: list | None = None,
            tail: str = ""):
    "The notebook that myst-nb renders for one of ours."
    notebook, cells, documented = nbformat.read(path, 4), [], set()
    module, depth = (source.name if source else ""), page.count("/")
    known = {}
    if source:
        known = source.entries | {m.name: m for e in source.entries.values() for m in e.members if m.patched}
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "raw":
            continue
        if cell.cell_type == "markdown":
            check_syntax(cell.source, path)
            text = cell.source
            if source and not documented and not any(c.cell_type == "markdown" for c in cells):
                text = re.sub(r"\A# .*", f"# {module}", text)
                text = f"```{{py:module}} {module}\n```\n\n" + text
            cells.append(markdown_cell(links.prose(text, page, path, module)))
            continue
        flags = directives(cell.source)
        body = DIRECTIVE.sub("", cell.source).strip("\n")
        if "default_exp" in flags or flags.keys() & {"hide", "exporti"} or not body.strip():
            continue
        fresh = outputs[i] if outputs and i < len(outputs) and outputs[i] is not None else cell.get("outputs", [])
        shown = outputs_for_site(fresh, depth)
        if source and flags.keys() & {"export", "exports"}:
            entries = [known[n] for n in defined_names(cell.source) if n in known and n not in documented]
            documented |= {e.name for e in entries}
            if entries:
                names = links.names(module)
                text = "\n\n".join(markdown(e, names, BLOB, link=links.inline(page, path, module)) for e in entries)
                cells.append(markdown_cell(text))
            if shown:
                cells.append(nbformat.v4.new_code_cell("", outputs=shown, metadata={"tags": ["remove-input"]}))
            continue
        new = nbformat.v4.new_code_cell(body, outputs=shown)
        tags = [t for t in cell.metadata.get("tags", []) if t != "parameters"]
        if flags.get("echo", "").lower() == "false" or "hide_input" in flags:
            tags.append("remove-input")
        if flags.get("code-fold", "").lower() == "true":
            tags.append("hide-input")
        if tags:
            new.metadata["tags"] = tags
        cells.append(new)
    if source:
        missing = [e for n, e in known.items() if n not in documented]
        if missing: # defined in a way that the cells do not show
            names = links.names(module)
            text = "\n\n".join(markdown(e, names, BLOB, link=links.inline(page, path, module)) for e in missing)
            cells.append(markdown_cell("## More\n\n" + text))
    if tail:
        cells.append(markdown_cell(tail))
    for n, cell in enumerate(cells):
        cell["id"] = f"c{n}"
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}, "language_info": {
            "name": "python", "pygments_lexer": "ipython3"}})

def title_and_subtitle(path: Path) -> tuple[str, str]:
    "The `# title` and `> subtitle` of a notebook."
    text = "\n\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    title = re.search(r"^# (.+)$", text, re.M)
    subtitle = re.search(r"^> (.+)$", text, re.M)
    return title[1].strip() if title else path.stem, subtitle[1].strip() if subtitle else ""

def toctree(pages: list[str], caption: str = "", hidden: bool = True) -> str:
    options = ([":hidden:"] if hidden else []) + ([f":caption: {caption}"] if caption else [])
    return "\n".join(["```{toctree}", *options, "", *pages, "```"])

def ordered(folder: Path, first: tuple[str, ...]) -> list[Path]:
    "The notebooks of a folder, those named first in front."
    rank = {name: i for i, name in enumerate(first)}
    return sorted(folder.glob("*.ipynb"), key=lambda p: (rank.get(p.stem, len(first)), p.stem))

def command_line() -> str:
    "The page of the commands, from the command line's own help."
    from api import cell, table
    from typer.main import get_command

    from cotmi.cli import app

    program = get_command(app)
    lines = ["# Command line", "", "> Every command of `cotmi` and its options, as `--help` shows them", "",
             f"{program.help} {program.epilog or ''}", ""]

    def describe(command, name: str) -> None:
        arguments = [(p.metavar or p.name).upper() for p in command.params if p.param_type_name == "argument"]
        lines.extend([f"## {name}", "", command.help or "", "", "```text",
                      " ".join([name, "[OPTIONS]", *arguments]), "```", ""])
        rows = []
        for p in command.params:
            if "--help" not in p.opts:
                shown = (p.metavar or p.name).upper() if p.param_type_name == "argument" else ", ".join(p.opts)
                plain = p.default is not None and p.default is not False and isinstance(p.default, (str, int, float))
                rows.append([f"`{shown}`", cell(p.help or ""), f"`{p.default}`" if plain else ""])
        kept = 3 if any(row[2] for row in rows) else 2
        head = ["option or argument", "meaning", "default"][:kept]
        lines.extend(table(head, [row[:kept] for row in rows]) + [""])
        for child, sub in getattr(command, "commands", {}).items():
            describe(sub, f"{name} {child}")

    for child, command in program.commands.items():
        describe(command, f"cotmi {child}")
    return "\n".join(lines) + "\n"

TUTORIALS = ("ten_minutes", "reproduce_the_paper", "your_own_data", "which_student", "new_critic_or_objective",
             "mi_estimators", "the_papers_term", "term_study", "demo_methods", "many_machines", "reading_a_run",
             "sharing_a_student")
GUIDES = ("which_method", "gallery", "paper_to_code", "commands", "settings")
EXPERIMENTS = ("demo", "svamp", "cqa", "anli1", "esnli", "compare")

def write_source(target: Path, run: bool, jobs: int) -> None:
    "Write every page's source below `target`."
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    rooms = library()
    modules = {name: path for room in rooms.values() for name, path in room.items()}
    sources = {name: Source(module_file(name)) for name in modules}
    tutorials = ordered(NOTEBOOKS / "tutorials", TUTORIALS)
    experiments = ordered(NOTEBOOKS / "experiments", EXPERIMENTS)
    guides = [NOTEBOOKS / f"{name}.ipynb" for name in GUIDES]

    pages = {path: f"reference/{name.replace('.', '/')}" for name, path in modules.items()}
    pages |= {p: f"tutorials/{p.stem}" for p in tutorials} | {p: f"experiments/{p.stem}" for p in experiments}
    pages |= {p: p.stem for p in guides}
    texts = {ROOT / "benchmarks" / "README.md": "benchmarks", ROOT / "CHANGELOG.md": "changelog",
             ROOT / "CONTRIBUTING.md": "contributing"}
    texts = {p: page for p, page in texts.items() if p.exists()}
    pages |= texts | {NOTEBOOKS / "index.ipynb": "index", ROOT / "README.md": "index"}
    links = Links(sources, pages)

    # the tables of the settings are nowhere but in their outputs
    tables = [p for p in guides if p.stem == "settings"]
    outputs = run_all([*modules.values(), *tables] if run else tables, jobs)

    (target / "images").mkdir()
    for image in [*NOTEBOOKS.glob("images/*"), *NOTEBOOKS.glob("*/images/*")]:
        shutil.copy(image, target / "images")

    def write(page: str, notebook):
        path = target / f"{page}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)

    for name, path in modules.items():
        write(pages[path], page_of(path, pages[path], links, sources[name], outputs.get(path)))
    for path in [*tutorials, *guides]:
        write(pages[path], page_of(path, pages[path], links, outputs=outputs.get(path)))
    for path in experiments:
        write(pages[path], page_of(path, pages[path], links, outputs=executed(path)))
    for path, page in texts.items():
        (target / f"{page}.md").write_text(links.prose(path.read_text(encoding="utf-8"), page, path), encoding="utf-8")

    def listed(page: str, rows: list[tuple[str, Path]]) -> list[str]:
        lines = ["", "| | |", "| --- | --- |"]
        for shown, path in rows:
            link = os.path.relpath(pages[path], Path(page).parent)
            lines.append(f"| [{shown}]({link}.ipynb) | {links.prose(title_and_subtitle(path)[1], page, path)} |")
        return [*lines, "", toctree([os.path.relpath(pages[p], Path(page).parent) for _, p in rows])]

    def overview(page: str, title: str, lead: str, *parts: tuple[str, str, list[tuple[str, Path]]]) -> str:
        """A page that lists others: in parts with a heading, a sentence and a table, or under no heading."""
        lines = [f"# {title}", "", lead]
        for heading, sentence, rows in parts:
            lines += [*(["", f"## {heading}", "", sentence] if heading else []), *listed(page, rows)]
        (target / f"{page}.md").parent.mkdir(exist_ok=True)
        (target / f"{page}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return page

    tree = []
    if tutorials:
        tree.append(overview("tutorials/index", "Tutorials", "Each of them is run by the tests.",
                             ("", "", [(title_and_subtitle(p)[0], p) for p in tutorials])))
    if experiments:
        tree.append(overview(
        "experiments/index", "Experiments", "Notebooks that train, evaluate and show. They run in JupyterLab, through "
        "`cotmi run NAME` and through papermill. The demo is shown with its results; the others need the "
        "published data, and their results belong to those who run them.",
        ("", "", [(title_and_subtitle(p)[0], p) for p in experiments])))
    tree += [pages[p] for p in guides]
    (target / "command_line.md").write_text(command_line(), encoding="utf-8")
    tree.append("command_line")
    tops = ", ".join(f"{{py:obj}}`{name.removeprefix('cotmi.')} <{full}>`" for name, full in top_names().items())
    said = {"core": "What every room may use: errors, settings, seeds, intervals, files that are written whole.",
            **ROOMS, "command line": "What `cotmi` does in a shell: a few lines over what the rooms offer."}
    tree.append(overview("reference/index", "Reference", f"At the top of the package are {tops}. Everything else is in "
                         "the modules, one page each. They stand in rooms, and the rooms from the ground up: a module "
                         "imports only from the rooms above it on this page, and from the modules above it in its own.",
                         *((room, said[room], [(f"cotmi.{n}", p) for n, p in rooms[room].items()]) for room in rooms)))
    tree += list(texts.values())
    home = NOTEBOOKS / "index.ipynb"
    if home.exists():
        write("index", page_of(home, "index", links, tail=toctree(tree)))
    else:
        (target / "index.md").write_text(f"# cotmi\n\n{toctree(tree)}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write README.md from nbs/index.ipynb and stop")
    parser.add_argument("--no-run", action="store_true", help="keep the outputs that the notebooks hold")
    parser.add_argument("--out", type=Path, default=DOCS / "_build" / "html", help="where the site goes")
    parser.add_argument("--source", type=Path, default=DOCS / "_site_src", help="where the generated sources go")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="notebooks run at a time")
    parser.add_argument("--keep-going", action="store_true", help="say what is wrong and build the rest")
    options = parser.parse_args()
    global KEEP_GOING
    KEEP_GOING = options.keep_going
    if options.readme:
        from readme import readme

        (ROOT / "README.md").write_text(readme(), encoding="utf-8")
        return 0
    start = time.time()
    write_source(options.source, not options.no_run, options.jobs)
    written = time.time()
    from sphinx.cmd.build import main as sphinx

    shutil.rmtree(options.out, ignore_errors=True)
    code = sphinx(["-b", "html", "-W", "--keep-going", "-q", "-E", "-c", str(DOCS), "-d",
                   str(options.out.parent / f".doctrees-{options.out.name}"), str(options.source), str(options.out)])
    if code == 0:
        print(f"{options.out}/index.html  (sources {written - start:.0f} s, Sphinx {time.time() - written:.0f} s)")
    return code


if __name__ == "__main__":
    sys.exit(main())
