"""Sphinx configuration; docs/build.py writes the sources that it reads."""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

import api  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx import addnodes  # noqa: E402
from sphinx.transforms import SphinxTransform  # noqa: E402

project = "cotmi"
author = "The cotmi developers"
project_copyright = author
release = version = re.search(r'__version__ = "(.+?)"', (ROOT / "cotmi" / "__init__.py").read_text(encoding="utf-8"))[1]

extensions = ["myst_nb", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
nb_execution_mode = "off" # docs/build.py runs the notebooks
nb_merge_streams = True
nb_output_stderr = "remove"
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_render_markdown_format = "myst" # tables in Markdown outputs
suppress_warnings = ["misc.highlighting_failure"] # shell lines in a cell; the lexer copes
nb_number_source_lines = False
myst_enable_extensions = ["attrs_inline", "attrs_block", "dollarmath", "deflist"]
smartquotes_action = "qe" # leave the dashes of --options alone
myst_heading_anchors = 3
myst_links_external_new_tab = False
viewcode_follow_imported_members = False
viewcode_line_numbers = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
add_module_names = False

html_theme = "furo"
html_title = "cotmi"
html_static_path = ["_static"]
html_css_files = ["cotmi.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e75", "color-brand-content": "#0b6e75",
                            "color-brand-visited": "#0b6e75"},
    "dark_css_variables": {"color-brand-primary": "#5cc8cf", "color-brand-content": "#5cc8cf",
                           "color-brand-visited": "#5cc8cf"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


@cache # viewcode asks once for every name
def text_and_places(module):
    if not (ROOT / f"{module.replace('.', '/')}.py").exists():
        return None
    found = api.module(module)
    kinds = {"class": "class", "exception": "class", "data": "other"}
    return found.filepath.read_text(encoding="utf-8"), {
        api.short_name(t): (kinds.get(api.directive(t), "def"), *api.place(t)) for t in api.things(found)}


def find_source(app, module):
    "Give viewcode the text and the places of our names, so that it imports nothing."
    return text_and_places(module)


class NameLinks(SphinxTransform):
    "Names of ours in `code` become references: the whole of it, or classes and constants in it, as in a type."
    default_priority = 900

    def apply(self, **_) -> None:
        module = "cotmi." + self.env.docname.removeprefix("reference/").replace("/", ".")
        taken = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.desc_signature)
        for literal in list(self.document.findall(nodes.literal)):
            if "name" not in literal["classes"] and not any(isinstance(n, taken) for n in above(literal)):
                text = literal.astext()
                literal.children = []
                literal += list(self.parts(text, module))

    def parts(self, text: str, module: str) -> Iterator[nodes.Node]:
        "The text in pieces, of which names of ours are references."
        for piece in re.split(r"([A-Za-z_][\w.]*(?:\(\))?)", text):
            full = api.meaning(piece.removesuffix("()"), module)
            # a plain lower-case word may mean the thing, not the function; within a text only `Run` or `BOUNDS` is ours
            if full and (not re.fullmatch(r"[a-z]+", piece) if piece == text else piece[0].isupper()):
                yield addnodes.pending_xref("", nodes.Text(piece), refdomain="py", reftype="obj", reftarget=full,
                                            refexplicit=True, refwarn=True, refdoc=self.env.docname)
            elif piece:
                yield nodes.Text(piece)


def above(node: nodes.Node) -> Iterator[nodes.Node]:
    while node := node.parent:
        yield node


def visit_math(self, node, display):
    "A formula as MathML, which browsers draw without a script."
    from docutils import nodes
    from latex2mathml.converter import convert

    mathml = convert(node.astext(), display="block" if display else "inline")
    self.body.append(f'<div class="math">{mathml}</div>' if display else mathml)
    raise nodes.SkipNode


def copy_plotly(app, error):
    "The one copy of plotly.js that every figure of the site loads, and what fits figures into their column."
    if error is None and app.builder.format == "html":
        from plotly.offline import get_plotlyjs

        from cotmi.dashboards.report import column_script

        static = Path(app.outdir) / "_static"
        (static / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
        (static / "figures.js").write_text(column_script(), encoding="utf-8")


def add_top_names(app, env):
    "Let `cotmi.train` and the other names at the top of the package be linked to by both names."
    objects = env.get_domain("py").objects
    for name, full in api.top_names().items():
        if full in objects and name not in objects:
            objects[name] = objects[full]._replace(aliased=True)


TREES: dict[str, str] = {} # folder of source pages to their navigation


def remember_tree(app, pagename, templatename, context, doctree):
    "One navigation for all source pages of a folder: it is the same for each, and making it is half of the build."
    if pagename.startswith("_modules/"):
        tree, folder = context["toctree"], pagename.rpartition("/")[0]
        context["toctree"] = lambda **shape: TREES.get(folder) or TREES.setdefault(folder, tree(**shape))


def setup(app):
    app.add_transform(NameLinks)
    app.connect("html-page-context", remember_tree, priority=400) # before the theme asks for it
    app.connect("env-updated", add_top_names)
    app.connect("viewcode-find-source", find_source)
    app.connect("build-finished", copy_plotly)
    app.add_html_math_renderer("mathml", (lambda self, node: visit_math(self, node, False), None),
                               (lambda self, node: visit_math(self, node, True), None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
