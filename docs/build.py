#!/usr/bin/env python
"""Build the documentation: notebooks → docs/_site_src (MyST) → docs/_build/html (Sphinx).

    python docs/build.py            run the library notebooks, then build; warnings are errors
    python docs/build.py --no-run   keep the outputs that the notebooks hold

A library notebook becomes a reference page: its prose and examples stay, and each exported definition turns into its
signature, parameter table, errors and source link (docs/api.py has them from griffe). Names in `code` become links when
Sphinx reads the pages (docs/conf.py).
"""

import argparse
import ast
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ |= {"PLOTLY_RENDERER": "plotly_mimetype", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
               "OMP_NUM_THREADS": "1"} # notebooks run side by side, and threads of one would wait for those of another

import nbformat

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTEBOOKS = ROOT / "nbs"
sys.path.insert(0, str(DOCS))

import api  # noqa: E402
from rooms import ROOMS, room_notebooks  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["project"]["urls"]["Repository"].rstrip("/")
BRANCH = PROJECT["tool"]["nbdev"].get("branch", "main")
DIRECTIVE = re.compile(r"^#\s*\|\s*([\w-]+):?[ \t]*(.*)$\n?", re.M)
FENCED = r"^(?P<fence>`{3,}|~{3,}|:{3,})[\s\S]*?^(?P=fence)[ \t]*$"
QUARTO = re.compile(r"^\s*(:::|\{\{<|```\{(mermaid|python|dot)\})", re.M)
FIGURE = "application/vnd.plotly.v1+json"


# -- notebooks and what they show --------------------------------------------------------------------------------------
def directives(source: str) -> dict[str, str]:
    "nbdev's `#| name value` lines of a cell."
    return {name: value.strip().lower() for name, value in DIRECTIVE.findall(source)}

def module_of(path: Path) -> str | None:
    "The module that a notebook exports, such as `cotmi.data.report`."
    names = re.findall(r"#\s*\|\s*default_exp\s+([\w.]+)", nbformat.read(path, 4).cells[0].source)
    return f"cotmi.{names[0]}" if names else None

def run_notebook(path: Path) -> tuple[Path, str]:
    "The notebook with its outputs anew, as text; cells that are not to be run keep theirs."
    from execnb.shell import CaptureShell
    from fastcore.nbio import nb2str, read_nb

    def kept(cell) -> bool: return cell.cell_type == "code" and directives(cell.source).get("eval") == "false"

    os.chdir(path.parent)
    book = read_nb(path)
    CaptureShell(mpl_format=None).run_all(book, exc_stop=True, preproc=kept)
    return path, nb2str(book)

def run_all(paths: list[Path], jobs: int, modules: Iterable[str]) -> Iterator[tuple[Path, nbformat.NotebookNode]]:
    """Run notebooks, each in a process of its own, forked from one that has imported `modules` and does nothing else.

    A fork of this process could find a lock held for good: its main thread may be importing something just then."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["execnb.shell", "fastcore.test", "nbformat", "api", *modules])
    with context.Pool(jobs, maxtasksperchild=1) as pool:
        for path, text in pool.imap_unordered(run_notebook, paths, chunksize=1):
            yield path, nbformat.reads(text, 4)

def executed(path: Path) -> nbformat.NotebookNode:
    "An experiment with the outputs of its kept run, which must be of this version; as it is where none is kept."
    book, kept = nbformat.read(path, 4), DOCS / "results" / path.name
    if not kept.exists():
        return book
    run = nbformat.read(kept, 4)
    if [c.source for c in run.cells] != [c.source for c in book.cells]:
        raise SystemExit(f"docs/results/{path.name} is of another version of {path}: its page would show no results. "
                         "Keep a new run with `python docs/results.py`.")
    return run

def for_site(output: dict, depth: int) -> dict:
    "An output that a static page can show: a plotly figure is HTML that loads plotly.js from this site."
    import plotly.io as pio

    from cotmi.dashboards.report import column_figure

    if figure := output.get("data", {}).get(FIGURE):
        figure = pio.from_json(json.dumps({k: figure[k] for k in ("data", "layout") if k in figure}), skip_invalid=True)
        scripts = [f'<script src="{"../" * depth}_static/{name}"></script>' for name in ("plotly.min.js", "figures.js")]
        parts = ['<div class="figure-plotly">', *scripts, column_figure(figure), "</div>"]
        return nbformat.v4.new_output("display_data", {"text/html": "".join(parts)})
    return output


# -- pages -------------------------------------------------------------------------------------------------------------
class Site:
    "Where the pages go, and what a link from one file of the repository to another becomes."

    def __init__(self, target: Path, pages: dict[Path, str]):
        self.target, self.pages = target, pages # file of ours to page, without suffix

    def prose(self, text: str, origin: Path) -> str:
        "Markdown with links and pictures as seen from the page of `origin`; fenced code stays."
        if match := QUARTO.search(text):
            raise SystemExit(f"{origin.relative_to(ROOT)} uses {match[0].strip()!r}, which only Quarto understands.")

        def place(match: re.Match) -> str:
            return f"{match['shown']}({self.link(match['url'], origin)})" if match["url"] else match[0]

        return re.sub(FENCED + r"|(?P<shown>!?\[[^]\n]*\])\((?P<url>[^)\s]+)\)", place, text, flags=re.M)

    def link(self, url: str, origin: Path) -> str:
        if re.match(r"[a-z]+:|#|/", url):
            return url
        path, _, anchor = url.partition("#")
        found, folder = Path(os.path.normpath(origin.parent / path)), Path(self.pages[origin]).parent
        if not found.is_relative_to(ROOT) or not found.exists() and found not in self.pages:
            raise SystemExit(f"{origin.relative_to(ROOT)} links to {url}, which is not in the repository.")
        if found in self.pages:
            to = os.path.relpath(self.pages[found], folder) + (".ipynb" if found.suffix == ".ipynb" else ".md")
            return to + (f"#{anchor}" if anchor else "")
        if found.parent.name == "images":
            return os.path.relpath(Path("images") / found.name, folder)
        return f"{REPOSITORY}/{'tree' if found.is_dir() else 'blob'}/{BRANCH}/{found.relative_to(ROOT).as_posix()}"

    def write(self, origin: Path, cells: list) -> None:
        path = self.target / f"{self.pages[origin]}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        for n, cell in enumerate(cells):
            cell["id"] = f"c{n}"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"}}), path)

    def listing(self, page: str, title: str, lead: str, *parts: tuple[str, str, list[tuple[str, Path]]]) -> str:
        "A page that lists others, in parts of heading, sentence and (shown, file); returns its name."
        lines, folder = [f"# {title}", "", lead], Path(page).parent
        for heading, sentence, rows in parts:
            links = [(shown, os.path.relpath(self.pages[path], folder), path) for shown, path in rows]
            lines += ["", f"## {heading}", "", sentence] if heading else []
            table = api.table([" ", " "], [[f"[{shown}]({to}.ipynb)", title_of(path)[1]] for shown, to, path in links])
            lines += ["", *table, toctree([to for _, to, _ in links])]
        (self.target / f"{page}.md").parent.mkdir(exist_ok=True)
        (self.target / f"{page}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return page

def markdown_cell(text: str) -> nbformat.NotebookNode: return nbformat.v4.new_markdown_cell(text)

def defined(source: str) -> list[str]:
    "The names that a cell defines at its top, in order."
    found = []
    for node in ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M)).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        found += [node.name] if hasattr(node, "name") else [
            n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return found

def page_cells(book: nbformat.NotebookNode, path: Path, site: Site, module: str | None = None) -> list:
    "The cells that myst-nb renders for a notebook of ours; an exported definition becomes its entry."
    left = {thing.name: thing for thing in api.exported(api.module(module))} if module else {}
    cells, depth = [], site.pages[path].count("/")
    for cell in book.cells:
        flags = directives(cell.source) if cell.cell_type == "code" else {}
        body = DIRECTIVE.sub("", cell.source).strip("\n")
        if cell.cell_type == "markdown":
            text = site.prose(cell.source, path)
            if module and not cells:
                text = f"```{{py:module}} {module}\n```\n\n" + re.sub(r"\A# .*", f"# {module}", text)
            cells.append(markdown_cell(text))
        elif cell.cell_type == "code" and body and not flags.keys() & {"default_exp", "hide", "exporti"}:
            new = nbformat.v4.new_code_cell(body, outputs=[for_site(o, depth) for o in cell.get("outputs", [])])
            tags = {t for t in cell.metadata.get("tags", []) if t != "parameters"}
            tags |= {"remove-input"} if flags.get("echo") == "false" or "hide_input" in flags else set()
            new.metadata["tags"] = sorted(tags | ({"hide-input"} if flags.get("code-fold") == "true" else set()))
            if module and flags.keys() & {"export", "exports"}:
                entries = [left.pop(name) for name in defined(cell.source) if name in left]
                text = "\n\n".join(api.markdown(entry, f"{REPOSITORY}/blob/{BRANCH}") for entry in entries)
                new.source, new.metadata["tags"] = "", ["remove-input"]
                cells += [markdown_cell(site.prose(text, path))] if text else []
            if new.source or new.outputs:
                cells.append(new)
    if left: # the fault would leave the reference without them
        raise SystemExit(f"{path.relative_to(ROOT)} shows no definition of {', '.join(left)}, which it exports.")
    return cells

def title_of(path: Path) -> tuple[str, str]:
    "The `# title` and `> subtitle` of a notebook."
    text = "\n\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    title, subtitle = (re.search(rf"^{mark} (.+)$", text, re.M) for mark in "#>")
    return title[1].strip() if title else path.stem, subtitle[1].strip() if subtitle else ""

def toctree(pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])

def ordered(folder: str, first: tuple[str, ...]) -> list[Path]:
    "The notebooks of a folder, those named first in front."
    rank = {name: i for i, name in enumerate(first)}
    return sorted((NOTEBOOKS / folder).glob("*.ipynb"), key=lambda p: (rank.get(p.stem, len(first)), p.stem))

def command_line() -> str:
    "Every command and its options, as typer writes them."
    text = subprocess.run([sys.executable, "-m", "typer", "cotmi.cli", "utils", "docs", "--name", "cotmi"], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout
    return re.sub(r"\A# .*", "# Command line\n\n> Every command of `cotmi` and its options", text.strip()) + "\n"

TUTORIALS = ("ten_minutes", "reproduce_the_paper", "your_own_data", "which_student", "new_critic_or_objective",
             "mi_estimators", "the_papers_term", "term_study", "many_machines", "reading_a_run",
             "sharing_a_student")
GUIDES = ("which_method", "gallery", "paper_to_code", "commands", "settings")
EXPERIMENTS = ("demo", "svamp", "cqa", "anli1", "esnli", "compare")
TEXTS = ("benchmarks/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
SAID = {"core": "What every room may use: errors, settings, seeds, intervals, files that are written whole.", **ROOMS,
        "command line": "What `cotmi` does in a shell: a few lines over what the rooms offer."}

def write_source(target: Path, run: bool, jobs: int) -> None:
    "Write every page's source below `target`."
    shutil.rmtree(target, ignore_errors=True)
    (target / "images").mkdir(parents=True)
    for image in [*NOTEBOOKS.glob("images/*"), *NOTEBOOKS.glob("*/images/*")]:
        shutil.copy(image, target / "images")
    rooms = {room: [(name, path) for path in paths if (name := module_of(path))]
             for room, paths in room_notebooks().items()}
    modules = {path: name for room in rooms.values() for name, path in room}
    tutorials, experiments = ordered("tutorials", TUTORIALS), ordered("experiments", EXPERIMENTS)
    guides, texts = [NOTEBOOKS / f"{name}.ipynb" for name in GUIDES], [ROOT / name for name in TEXTS]
    home = NOTEBOOKS / "index.ipynb"
    pages = {path: f"reference/{name.removeprefix('cotmi.').replace('.', '/')}" for path, name in modules.items()}
    for path in [*tutorials, *experiments, *guides, home]:
        pages[path] = path.relative_to(NOTEBOOKS).with_suffix("").as_posix()
    pages |= {p: p.parent.name if p.name == "README.md" else p.stem.lower() for p in texts}
    site = Site(target, pages | {ROOT / "README.md": "index"})

    tables = [p for p in guides if p.stem == "settings"] # they are nowhere but in its outputs
    running = [*modules, *tables] if run else tables
    imported = [modules[path] for path in running if path in modules] # none for a single table
    as_they_are = [path for path in [*modules, *tutorials, *guides] if path not in running]
    for path, book in itertools.chain(run_all(running, jobs, imported), # pages are written while others run
                                      ((path, executed(path)) for path in experiments),
                                      ((path, nbformat.read(path, 4)) for path in as_they_are)):
        site.write(path, page_cells(book, path, site, modules.get(path)))
    for path in texts:
        text = site.prose(path.read_text(encoding="utf-8"), path)
        (target / f"{pages[path]}.md").write_text(text, encoding="utf-8")
    (target / "command_line.md").write_text(command_line(), encoding="utf-8")

    tops = ", ".join(f"`{name}`" for name in api.top_names())
    tree = [
        site.listing("tutorials/index", "Tutorials", "Each of them is run by the tests.",
                     ("", "", [(title_of(p)[0], p) for p in tutorials])),
        site.listing("experiments/index", "Experiments",
                     "Notebooks that train, evaluate and show. They run in JupyterLab, through `cotmi run NAME` and "
                     "through papermill. The demo is shown with its results; the others need the published data, and "
                     "their results belong to those who run them.",
                     ("", "", [(title_of(p)[0], p) for p in experiments])),
        *(pages[p] for p in guides), "command_line",
        site.listing("reference/index", "Reference",
                     f"At the top of the package are {tops}. Everything else is in the modules, one page each. They "
                     "stand in rooms, and the rooms from the ground up: a module imports only from the rooms above it "
                     "on this page, and from the modules above it in its own.",
                     *((room, SAID[room], rows) for room, rows in rooms.items())),
        *(pages[p] for p in texts)]
    site.write(home, [*page_cells(nbformat.read(home, 4), home, site), markdown_cell(toctree(tree))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write README.md from nbs/index.ipynb and stop")
    parser.add_argument("--no-run", action="store_true", help="keep the outputs that the notebooks hold")
    parser.add_argument("--out", type=Path, default=DOCS / "_build" / "html", help="where the site goes")
    parser.add_argument("--source", type=Path, default=DOCS / "_site_src", help="where the generated sources go")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time")
    options = parser.parse_args()
    if options.readme:
        from readme import readme

        (ROOT / "README.md").write_text(readme(), encoding="utf-8")
        return 0
    start = time.time()
    write_source(options.source, not options.no_run, options.jobs)
    written = time.time()
    from sphinx.cmd.build import main as sphinx

    shutil.rmtree(options.out, ignore_errors=True)
    code = sphinx(["-b", "html", "-W", "--keep-going", "-q", "-E", "-j", str(options.jobs),
                   "-c", str(DOCS), "-d", str(options.out.parent / f".doctrees-{options.out.name}"),
                   str(options.source), str(options.out)])
    if code == 0:
        print(f"{options.out}/index.html  (sources {written - start:.0f} s, Sphinx {time.time() - written:.0f} s)")
    return code


if __name__ == "__main__":
    sys.exit(main())
