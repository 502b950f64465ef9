"""A run on paper: the report and the story that a notebook's output carries."""

import itertools
import json
import re
import subprocess
import sys

import helpers_browser as browser
import helpers_runs as made
import pytest

from cotmi.cli import main
from cotmi.dashboards.compare_dashboard import CompareDashboard
from cotmi.dashboards.report import write_report
from cotmi.dashboards.run_dashboard import RunDashboard
from cotmi.evaluation.metrics import METRICS
from cotmi.runs.run_folder import Run

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(made.make_run(tmp_path_factory.mktemp("runs"), examples=60, hostile=True, seed=3))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return write_report(run.path, tmp_path_factory.mktemp("report"), markdown=False)


def figures_of(text: str) -> dict[str, list[dict]]:
    "The traces of every figure of a page, by its title."
    decoder, calls = json.JSONDecoder(), re.finditer(r"<script>cotmiFigure\('[\w-]+', ", text)
    figures = [decoder.raw_decode(text, call.end())[0] for call in calls]
    return {figure["layout"]["title"]["text"]: figure["data"] for figure in figures}


def test_figures_are_the_numbers_of_the_run(page, run):
    figures = figures_of(page.read_text())
    estimates = [e for e in run.mi["estimates"]]
    forest = figures["Held-out estimates of I(Z;V)"][0]
    assert len(forest["customdata"]) == len(estimates)
    for point, estimate in zip(forest["customdata"], estimates, strict=True):
        assert point[1:3] == pytest.approx([estimate["low"], estimate["high"]], nan_ok=True)
    valid = run.history.dropna(subset=["valid/accuracy"])
    lines = [trace for trace in figures["Accuracy on valid"] if len(trace.get("customdata") or trace["x"])]
    assert any(len(trace["y"]) == len(valid) or "bdata" in trace["y"] for trace in lines)


def test_every_figure_stands_there_with_its_interval(page, run):
    text = page.read_text()
    known = [metric for metric in METRICS if run.interval(metric.key)]
    assert len(known) >= 8
    for metric in known:
        value = metric.factor * run.interval(metric.key).value
        row = re.search(rf"<td>{re.escape(metric.name)}</td><td>([-\d.]+)", text)
        assert row and float(row[1]) == pytest.approx(value, abs=0.06), metric.key


def test_what_a_teacher_wrote_is_text(page):
    assert "<img src=x" not in page.read_text() and "&lt;img src=x" in page.read_text()


def test_a_comparison_and_its_markdown(tmp_path, capsys, monkeypatch):
    made.make_grid(tmp_path / "grid", seeds=2, examples=40)
    monkeypatch.setattr("cotmi.dashboards.report._draw", lambda figures, folder: "")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "grid"), "--out", str(tmp_path / "report")])
    assert not ended.value.code and capsys.readouterr().out.strip() == str(tmp_path / "report" / "report.html")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Accuracy (%)" in text and "![test-accuracy](figures/test-accuracy.png)" in text
    assert "6 of 6 runs" in (tmp_path / "report" / "report.html").read_text()


def test_no_run_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 1 and "no run" in capsys.readouterr().err


def test_an_output_has_its_story_beside_the_widget(run, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "somebody")
    shown = RunDashboard(run, follow=False)._repr_mimebundle_()
    shown = shown[0] if isinstance(shown, tuple) else shown
    assert WIDGET in shown and "learns demo" in shown["text/html"] and "<script" not in shown["text/html"]
    for sign in ("JPY_SESSION_NAME", "SERVER_SOFTWARE", "VSCODE_PID", "VSCODE_CWD", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(sign, raising=False)
    for dash in (RunDashboard(run, follow=False), CompareDashboard([run])):
        shown = dash._repr_mimebundle_()
        shown = shown[0] if isinstance(shown, tuple) else shown
        assert WIDGET not in shown and "text/html" in shown


@pytest.mark.slow
def test_nbconvert_shows_the_story(run, tmp_path):
    book = browser.notebook(tmp_path / "book.ipynb", f"from cotmi import RunDashboard\nRunDashboard({str(run.path)!r})")
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--execute", "--no-input", str(book)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "book.html").read_text()
    assert "learns demo by the method" in text and "test accuracy</td>" in text
    assert f'<script type="{WIDGET}"' not in text


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_the_page_asks_for_nothing(page):
    with browser.chromium() as started, browser.new_page(started) as shown:
        shown.goto(page.as_uri())
        shown.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 10")
        assert shown.elsewhere == [] and shown.faults == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_nothing_overlaps_on_paper(page, tmp_path):
    "As in a dashboard, at three widths: no text on another, none cut."
    made.make_grid(tmp_path / "grid", seeds=2, examples=60)
    several = write_report(tmp_path / "grid", tmp_path / "several", markdown=False)
    with browser.chromium() as started, browser.new_page(started, 420, 1200) as shown:
        for report, width in itertools.product((page, several), (420, 853, 1280)):
            if shown.url != report.as_uri(): # the page stays open while its width changes
                shown.goto(report.as_uri())
            shown.set_viewport_size({"width": width, "height": 1200})
            shown.wait_for_function("""[...document.querySelectorAll('.cotmi-plot')].every(plot =>
                Math.abs((plot.firstChild._fullLayout?.width ?? 0) - plot.offsetWidth) <= 1)""")
            for plot in shown.locator(".cotmi-plot").all():
                browser.has_room(plot, f"{report.parent.name}, {width}, {plot.locator('.gtitle').text_content()}")
