"""The documentation site, the README and what they promise: every export described, every link good, no request out."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
pytest.importorskip("sphinx")
pytest.importorskip("furo")


@pytest.fixture(scope="module")
def helpers():
    "The modules in docs/, which are no part of the package."
    sys.path.insert(0, str(DOCS))
    try:
        yield {name: importlib.import_module(name) for name in ("api", "readme")}
    finally:
        sys.path.remove(str(DOCS))
        for name in ("api", "readme"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def sources(helpers):
    "Module name to what it exports."
    return {module.path: helpers["api"].exported(module) for module in helpers["api"].modules()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built from the notebooks as they are saved; `make docs` runs them too."
    folder = tmp_path_factory.mktemp("docs")
    done = subprocess.run([sys.executable, str(DOCS / "build.py"), "--no-run", "--out", str(folder / "html"),
                           "--source", str(folder / "source")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "html"


class Page(HTMLParser):
    "Anchors, links and what a page loads."

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads, self.places = set(), [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[k] for k in ("id", "name") if found.get(k)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
            if "source" in (found.get("class") or "").split():
                self.places.append(found["href"])
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and found.get("href") and found.get("rel") not in ("canonical",):
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): Page(p) for p in site.rglob("*.html")}


def test_every_module_of_the_notebooks_is_there(sources):
    files = [p for p in (ROOT / "cotmi").rglob("*.py") if not p.stem.startswith("_")]
    exported = {p for p in files if re.search(r"^__all__ = \[[^]]", p.read_text(encoding="utf-8"), re.M)}
    assert set(sources) == {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in exported}


def test_every_parameter_is_described(helpers, sources):
    missing = [f"{thing.path}({name})" for things in sources.values() for thing in things
               for name, _, _, meaning in helpers["api"].parameters(thing) if not meaning]
    assert not missing, f"{len(missing)} parameters have no description: {missing}"


def test_every_function_and_class_has_a_docstring(sources):
    missing = [thing.path for things in sources.values() for thing in things
               if not thing.is_attribute and not thing.docstring]
    assert not missing


def test_comments_and_errors_are_read_from_the_text(helpers):
    "A comment behind a parameter, over it, behind a field, in an option of the command line, behind what is returned."
    api = helpers["api"]

    def of(name): return api.package()[name]

    described = {name: meaning for name, _, _, meaning in api.parameters(of("core.write_whole"))}
    assert described == {"path": "Where the file belongs", "write": "Fills the path that it is given"}
    assert api.docments(of("core.write_whole"))["return"] == "The path written"
    assert {p[0]: p[3] for p in api.parameters(of("cli.push_command"))}["private"] == "Let nobody else see it."
    alpha = next(p for p in api.parameters(of("training.run_config.RunConfig")) if p[0] == "alpha")
    assert alpha[2] == "0.5" and alpha[3].startswith("Weight of the label prediction")
    assert [p[0] for p in api.parameters(of("core.Interval"))] == ["value", "low", "high"] # a named tuple
    raised = api.raised(of("training.run_config.check_field"))
    assert ("ConfigError", "{what} is {value}; expected more than 0. (…)") in raised
    text = api.markdown(of("core.write_whole"), "https://example.org")
    head = "{py:function} write_whole(path: str | Path, write: Callable[[Path], Any]) -> Path"
    assert text.splitlines()[0].endswith(head)
    assert "| `path`{.name} | `str \\| Path` | Where the file belongs |" in text
    assert "**Returns** `Path`: The path written" in text


def test_the_sources_agree_with_python(helpers, sources):
    "What is read from the text is what Python sees: names, and parameters in their order."
    import inspect

    for name in ("cotmi.core", "cotmi.data.arithmetic", "cotmi.training.losses"):
        module = importlib.import_module(name)
        assert {thing.name for thing in sources[name]} == set(module.__all__)
        for thing in sources[name]:
            if not thing.is_attribute and helpers["api"].parameters(thing):
                wanted = list(inspect.signature(getattr(module, thing.name)).parameters)
                assert [p[0].lstrip("*") for p in helpers["api"].parameters(thing)] == wanted, thing.path


@pytest.mark.slow
def test_every_export_has_its_place(helpers, sources, pages):
    for name, things in sources.items():
        page = pages[f"reference/{name.removeprefix('cotmi.').replace('.', '/')}.html"]
        for thing in things:
            assert thing.path in page.ids, f"{thing.path} has no entry"
            for parameter in helpers["api"].parameters(thing):
                assert parameter[0].lstrip("*") in page.text
        assert f"_modules/{name.replace('.', '/')}.html" in pages, f"{name} has no source page"
        source = pages[f"_modules/{name.replace('.', '/')}.html"]
        for thing in things:
            assert thing.name in source.ids, f"{thing.path} is not in the source page"


@pytest.mark.slow
def test_source_links_point_at_the_definition(sources, pages):
    found = 0
    for page in pages.values():
        for link in page.places:
            match = re.search(r"/blob/[^/]+/(cotmi/.+\.py)#L(\d+)-L(\d+)$", link)
            assert match, link
            lines = (ROOT / match[1]).read_text(encoding="utf-8").splitlines()
            part = "\n".join(lines[int(match[2]) - 1:int(match[3])])
            assert ast.parse(__import__("textwrap").dedent(part)).body, link
            found += 1
    assert found >= sum(map(len, sources.values()))


@pytest.mark.slow
def test_internal_links_resolve(site, pages):
    broken = []
    for name, page in pages.items():
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = Path(os.path.normpath(target))
            if not target.exists():
                broken.append(f"{name} → {link}")
            elif parts.fragment and target.suffix == ".html" and target.is_relative_to(site):
                known = pages[target.relative_to(site).as_posix()].ids
                if unquote(parts.fragment) not in known:
                    broken.append(f"{name} → {link}")
    assert not broken, broken


@pytest.mark.slow
def test_links_into_the_repository_exist(pages):
    for name, page in pages.items():
        for link in page.links:
            if match := re.search(r"github\.com/cotmi/cotmi/(?:blob|tree)/main/([^#]+)", link):
                assert (ROOT / unquote(match[1])).exists(), f"{name} → {link}"


@pytest.mark.slow
def test_nothing_is_requested_from_elsewhere(pages):
    for name, page in pages.items():
        assert not [u for u in page.loads if urlsplit(u).netloc], name
        assert "cdn." not in re.sub(r"<pre.*?</pre>", "", page.text, flags=re.S), name


@pytest.mark.slow
def test_figures_are_in_the_pages(site, pages):
    "Each notebook that was saved with a plotly figure shows it; of an experiment it is a kept run that is shown."
    def figures(path):
        book = json.loads(path.read_text(encoding="utf-8"))
        return sum("application/vnd.plotly.v1+json" in o.get("data", {}) for c in book["cells"]
                   for o in c.get("outputs", []))

    def sources(path):
        return [c["source"] for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]

    saved = {f"tutorials/{p.stem}": figures(p) for p in (ROOT / "nbs" / "tutorials").glob("*.ipynb")}
    for path in (DOCS / "results").glob("*.ipynb"):
        if sources(path) == sources(ROOT / "nbs" / "experiments" / path.name): # else the page shows no results
            saved[f"experiments/{path.stem}"] = figures(path)
    for page, count in saved.items():
        assert pages[f"{page}.html"].text.count("<script>cotmiFigure(") == count, page
    with_figures = sum(map(bool, saved.values()))
    assert with_figures, "no notebook is saved with a figure"
    assert (site / "_static" / "plotly.min.js").stat().st_size > 1e6


@pytest.mark.slow
def test_others_can_link_to_every_export(site, sources):
    raw = (site / "objects.inv").read_bytes()
    body = zlib.decompress(raw.split(b"\n", 4)[4]).decode()
    known = {line.split(" ")[0] for line in body.splitlines() if " py:" in line}
    for things in sources.values():
        assert {thing.path for thing in things} <= known


@pytest.mark.slow
def test_names_in_code_and_in_types_are_links(pages):
    evaluating = pages["reference/runs/evaluating.html"].text
    assert re.search(r'<td>.*?<code[^>]*>(?:(?!</td>).)*<a [^>]*href="[^"]*#cotmi\.runs\.run_folder\.Run"', evaluating)
    assert 'href="reference/training/trainer.html#cotmi.training.trainer.train"' in pages["reference/index.html"].text \
        or 'href="training/trainer.html#cotmi.training.trainer.train"' in pages["reference/index.html"].text


def search(site, query):
    "The pages that have every word of a query, by the index that the search page loads."
    from snowballstemmer import stemmer

    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("(") + 1:text.rindex(")")])
    hits = []
    for word in re.findall(r"\w+", query.lower()):
        stem, found = stemmer("english").stemWord(word), set()
        for part in ("terms", "titleterms"):
            pages = index[part].get(stem, [])
            found |= {pages} if isinstance(pages, int) else set(pages)
        hits.append(found)
    return {index["docnames"][page] for page in set.intersection(*hits)}


@pytest.mark.slow
@pytest.mark.parametrize("query, page", [
    ("p value", "reference/evaluation/statistics"), ("calibration", "reference/evaluation/calibration"),
    ("LoRA", "reference/students/adapter_kinds"), ("LoRA", "tutorials/which_student"),
    ("confidence bound", "tutorials/mi_estimators"), ("cotmi sweep", "command_line")])
def test_the_search_finds(site, query, page):
    assert page in search(site, query)


@pytest.mark.slow
def test_no_leftover_markup(pages):
    for name, page in pages.items():
        text = re.sub(r"<(pre|script)\b.*?</\1>", "", page.text, flags=re.S)
        for mark in ("{py:obj}", ":::{", "{.source}", "#| ", "|---|", "| --- |"):
            assert mark not in text, f"{name} shows {mark}"


@pytest.mark.slow
def test_settings_and_parameters_have_their_tables(pages):
    from dataclasses import fields

    from cotmi.core import SETTINGS
    from cotmi.training.run_config import RunConfig

    cells = re.findall(r"<td>.*?</td>", pages["settings.html"].text, re.S)
    shown = {re.sub(r"<[^>]*>", "", cell).strip() for cell in cells}
    assert set(SETTINGS) <= shown
    assert {f.name for f in fields(RunConfig)} - {"sources"} <= shown


def test_readme_is_up_to_date(helpers):
    assert (ROOT / "README.md").read_text(encoding="utf-8") == helpers["readme"].readme(), "run `make readme`"


def test_readme_links_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not urlsplit(link).scheme and not link.startswith("#"):
            assert (ROOT / link.split("#")[0]).exists(), link


@pytest.mark.slow
def test_readme_example_runs(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    script = tmp_path / "example.py"
    script.write_text(example + "\nassert 0 <= metrics['test/accuracy'] <= 1\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_repository_files_are_there():
    for name in ("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", ".github/pull_request_template.md"):
        assert (ROOT / name).stat().st_size > 100, name


def test_citation_file_names_the_version():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = re.search(r'__version__ = "(.+?)"', (ROOT / "cotmi" / "__init__.py").read_text(encoding="utf-8"))[1]
    assert citation["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert len(citation["references"]) == 2
