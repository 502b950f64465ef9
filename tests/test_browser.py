"""The dashboards in a real Chromium, in JupyterLab and in Voilà."""

import contextlib
import json
import os
import re
import shutil
import time

import helpers_browser as browser
import helpers_runs as made
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
if reason := browser.missing():
    pytest.skip(f"browser tests: {reason}", allow_module_level=True)

from playwright.sync_api import expect  # noqa: E402

ROWS = 10_000
TABS = ("Training", "MI story", "Mutual information", "Z and V", "Rationales", "Calibration", "Data", "Configuration")
FILTER_SECONDS = """([box, text]) => new Promise((done, failed) => {
  const page = [...box.closest('.cotmi').querySelectorAll('[class*=cotmi-page-]')].find(page => page.contains(box));
  const table = page.querySelector('.cotmi-table');
  const begun = performance.now();
  const seen = new MutationObserver(() => {
    if (!table.querySelector('.count').textContent.includes('without filters')) return;
    seen.disconnect(); done((performance.now() - begun) / 1000);
  });
  seen.observe(table, { attributes: true, attributeFilter: ['data-drawn'] });
  setTimeout(() => failed(new Error(`after 20 s the table says ${table.textContent.slice(0, 200)}`)), 20_000);
  box.value = text; box.dispatchEvent(new Event('input', { bubbles: true }));
})"""


def patience() -> float:
    "How much longer than on an idle machine things may take here and now."
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def report():
    "Measured times, printed at the end of the module."
    times: dict[str, float] = {}
    yield times
    print("\n" + "\n".join(f"browser: {name}: {seconds:.2f} s" for name, seconds in times.items()))


# A figure by itself, and what a view may do to one between two frames: hide it, change it and show it.
ALONE = """from cotmi.dashboards.bars import label_bars
from cotmi.dashboards.plot import Plot
alone = Plot(label_bars(["yes", "no"], [0.2, 0.8]))
alone"""
WHILE_HIDDEN = """alone.layout.display = "none"
alone.figure = label_bars(["left", "right"], [0.2, 0.8])
alone.layout.display = None"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with runs and the notebooks that show them."
    folder = tmp_path_factory.mktemp("browser")
    big = made.make_run(folder / "outputs", examples=ROWS, hostile=True, seed=5)
    choice = made.make_run(folder / "outputs", dataset="places", examples=300, kind="choice", features="decoder")
    made.make_grid(folder / "grid", seeds=2, examples=120)
    growing = made.half_written_run(folder / "growing")
    browser.notebook(
        folder / "run.ipynb", "from cotmi import CompareDashboard, RunDashboard", f"RunDashboard({str(big)!r})",
        f"RunDashboard({str(choice)!r}, theme='dark')", f"RunDashboard({str(growing)!r}, follow=False)",
        "CompareDashboard('grid')", ALONE, WHILE_HIDDEN)
    browser.notebook(folder / "page.ipynb", f"from cotmi import RunDashboard\nRunDashboard({str(big)!r})")
    return folder, growing


# What is done to a dashboard, wherever it is shown.


def open_tab(board, name):
    "Switch to a tab; gives its page once it is filled and its figures are drawn."
    board.get_by_role("tab", name=name, exact=True).click()
    page = board.locator(f".cotmi-page-{board.get_by_role('tab').all_inner_texts().index(name)}:visible")
    page.wait_for()
    expect(page.get_by_text("Reading…")).to_have_count(0)
    for plot in page.locator(".cotmi-plot:visible").all():
        expect(plot).not_to_have_attribute("data-drawn", "0")
    return page


DRAWN = "plot => plot.dataset.drawn"
LINES = "plot => [...plot.querySelectorAll('.scatterlayer .js-line')].map(e => e.getAttribute('d')).join()"
JOINED = "plot => plot.querySelectorAll('.scatterlayer .js-line').length"
AXIS = "plot => plot.querySelector('.js-plotly-plot')._fullLayout.yaxis.type"
TITLE = "plot => plot.querySelector('.gtitle').textContent"
ACROSS = "plot => [...plot.querySelectorAll('.xtick text')].map(e => e.textContent).join()"


@contextlib.contextmanager
def changes(plot, read):
    "What happens in the block must change what is read of a plot."
    expect(plot).to_have_attribute("data-stale", "0") # no other redraw is under way
    before = plot.evaluate(read)
    yield
    plot.page.wait_for_function(f"([plot, before]) => ({read})(plot) !== before",
                                arg=[plot.element_handle(), before], timeout=browser.PATIENCE / 4)


def redrawn(plot):
    "What happens in the block must redraw a plot; a slow kernel's answer to what was done before does so, too."
    return changes(plot, DRAWN)


def titled(page, title):
    "The plot with a title."
    return page.locator(f'.cotmi-plot[aria-label*="{title}"]:visible')


def control(page, label):
    "The input of an ipywidgets control."
    named = page.page.get_by_text(label, exact=True)
    return page.locator(".widget-inline-hbox:visible", has=named).locator("input, select").last


def move(slider, key="ArrowRight", times=3):
    "Move a slider's handle with the keyboard."
    handle = slider.locator(".noUi-handle").first
    for _ in range(times):
        handle.press(key)


def slider(page, label):
    return page.locator(".widget-slider:visible", has=page.page.get_by_text(label, exact=True))


def exercise_training(board):
    page = open_tab(board, "Training")
    losses = titled(page, "Loss terms")
    with changes(losses, LINES), changes(losses, AXIS):
        page.get_by_text("Logarithmic loss").click()
    with changes(losses, LINES):
        move(slider(page, "Smoothing"))
    for text in ("optimiser step", "checkpoint kept"):
        expect(losses.get_by_text(text).first).to_be_visible()
    expect(titled(page, "over training").get_by_text("held-out Î on valid")).to_be_visible()
    expect(titled(page, "Accuracy on valid").get_by_text(re.compile("checkpoint kept: .*% at"))).to_be_visible()


def exercise_information(board):
    page = open_tab(board, "Mutual information")
    forest = titled(page, "Held-out estimates")
    assert forest.locator(".scatterlayer .point").count() >= 3
    rows = forest.locator(".ytick text").count()
    expect(page.get_by_text("still improving after 1000 steps")).to_be_visible()
    control(page, "Bound").select_option("gaussian")
    page.get_by_role("button", name="Estimate", exact=True).click()
    expect(page.get_by_text(re.compile(r"gaussian: .* nats \["))).to_be_visible(timeout=60_000)
    expect(forest.locator(".ytick text")).to_have_count(rows + 1)
    expect(forest.get_by_text("re-estimated").first).to_be_visible()
    control(page, "Bound").select_option("infonce")
    control(page, "Critic").select_option("separable")
    page.get_by_role("button", name="Estimate", exact=True).click()
    expect(page.get_by_text(re.compile("% done"))).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("Cancelled: the estimate is not kept.")).to_be_visible(timeout=500 * patience())
    expect(forest.locator(".ytick text")).to_have_count(rows + 1)


def exercise_pairs(board):
    page = open_tab(board, "Z and V")
    pairs, heat = titled(page, "Z (circles) and V"), titled(page, "Cross-correlation")
    with redrawn(pairs):
        control(page, "Projection").select_option("principal")
    expect(pairs.get_by_text("principal direction 1 (no unit)")).to_be_visible()
    for value, text in (("correct", "wrong"), ("confidence", "confidence"), ("label", "other labels")):
        with redrawn(pairs):
            control(page, "Colour").select_option(value)
        expect(pairs.get_by_text(text, exact=True).first).to_be_visible()
    joined = pairs.evaluate(JOINED)
    with changes(pairs, JOINED):
        page.get_by_text("Join all pairs").click()
    assert pairs.evaluate(JOINED) > joined
    with redrawn(pairs): # a click opens the example, with its neighbours, and rings the pair
        pairs.locator(".scatterlayer .point").nth(7).click(force=True)
    expect(page.get_by_role("heading", name=re.compile("Example test-"))).to_be_visible()
    expect(page.get_by_text("Nearest in Z")).to_be_visible()
    row = page.get_by_label("Nearest in Z").locator("tbody tr").first # a neighbour is read by a click
    near = row.get_attribute("data-id")
    with redrawn(pairs):
        row.click()
    expect(page.get_by_role("heading", name=f"Example {near}")).to_be_visible()
    expect(pairs.get_by_text("chosen", exact=True)).to_be_visible()
    expect(heat.get_by_text("dimension of V (40 shown)")).to_be_visible()
    with redrawn(heat):
        move(slider(page, "Dimensions"), "ArrowLeft", 2)
    expect(heat.get_by_text("dimension of V (30 shown)")).to_be_visible()
    with changes(heat, ACROSS):
        page.get_by_text("Cluster like dimensions").click()


def exercise_rationales(page, board, report, where):
    view = open_tab(board, "Rationales")
    table, count = view.locator(".cotmi-table"), view.locator(".cotmi-table .count")
    expect(count).to_have_text(f"1–15 of {ROWS:,}")
    search = view.get_by_placeholder("Search inputs, labels, rationales")
    seconds = page.evaluate(FILTER_SECONDS, [search.element_handle(), "pears 7"])
    report[f"{where}: a search over {ROWS:,} rows, seen in the browser"] = seconds
    assert seconds < 0.3 * patience()
    expect(count).to_contain_text("(10,000 without filters)")
    total = lambda: int(re.search(r"of ([\d,]+)", count.inner_text())[1].replace(",", "")) # noqa: E731
    found = total()
    assert 0 < found < ROWS
    for name in ("Wrong only", "Unfaithful only", "Teacher wrong"):
        before = count.inner_text()
        view.get_by_text(name, exact=True).click()
        expect(count).not_to_have_text(before)
        view.get_by_text(name, exact=True).click()
        expect(count).to_have_text(before)
    for agreement in ("differs from student", "agrees with student"):
        before = count.inner_text()
        control(view, "Teacher").select_option(label=agreement)
        expect(count).not_to_have_text(before)
    control(view, "Teacher").select_option(label="any")
    before = count.inner_text()
    move(slider(view, "Confidence"), times=6)
    expect(slider(view, "Confidence").locator(".widget-readout")).to_have_text("0.30 – 1.00")
    expect(count).not_to_have_text(before)
    by_confidence = table.locator("th", has_text="Confidence").get_by_role("button")
    sure = re.compile(r"^(0\.[3-9]|1\.)") # what the kernel answers to the last of the moves, and nothing before it
    by_confidence.click()
    expect(table.locator("th", has_text="Confidence")).to_have_attribute("aria-sort", "ascending")
    expect(table.locator("tbody tr").first.locator("td.is-share")).to_have_text(sure)
    by_confidence.click()
    expect(table.locator("th", has_text="Confidence")).to_have_attribute("aria-sort", "descending")
    view.get_by_role("button", name="Clear filters").click()
    expect(count).to_have_text(f"1–15 of {ROWS:,}")
    by_confidence.click()
    expect(table.locator("th", has_text="Confidence")).to_have_attribute("aria-sort", "ascending")
    view.get_by_role("button", name="Last page").click()
    expect(count).to_have_text(f"9,991–10,000 of {ROWS:,}")
    view.get_by_role("button", name="First page").click()
    expect(count).to_have_text(f"1–15 of {ROWS:,}")
    row = table.locator("tbody tr").nth(2)
    identity = row.get_attribute("data-id")
    row.click()
    expect(view.get_by_role("heading", name=f"Example {identity}")).to_be_visible()
    expect(table.locator(f"tr[data-id='{identity}']")).to_have_attribute("aria-selected", "true")
    table.locator(f"tr[data-id='{identity}']").press("ArrowDown") # by keyboard
    following = table.locator("tbody tr").nth(3).get_attribute("data-id")
    expect(view.get_by_role("heading", name=f"Example {following}")).to_be_visible()
    exercise_rows(board, view, table)


def exercise_rows(board, view, table):
    "Rows that are selected by mouse and by keyboard are the one selection, and the others stay to be added."
    rows = table.locator("tbody tr")
    bar = board.locator(".widget-html-content:visible", has_text="by rows of Rationales")
    ids = [row.get_attribute("data-id") for row in rows.all()]
    rows.nth(6).click(modifiers=["Control"])
    expect(bar).to_contain_text(f"1 of {ROWS:,}")
    rows.nth(8).click(modifiers=["Shift"])
    expect(bar).to_contain_text(f"3 of {ROWS:,}")
    expect(table.get_by_text("3 selected")).to_be_visible()
    marked = table.locator("tr.marked")
    assert [row.get_attribute("data-id") for row in marked.all()] == ids[6:9]
    table.locator(f"tr[data-id='{ids[8]}']").press("Shift+ArrowDown")
    expect(bar).to_contain_text(f"4 of {ROWS:,}")
    expect(table.locator(f"tr[data-id='{ids[9]}']")).to_be_focused()
    table.locator(f"tr[data-id='{ids[9]}']").press("Control+Space")
    expect(bar).to_contain_text(f"3 of {ROWS:,}")
    expect(table.locator(".count")).to_have_text(f"1–15 of {ROWS:,}")
    board.get_by_role("button", name="Clear selection").click()
    expect(marked).to_have_count(0)


def exercise_hostile(page, board):
    "HTML and script in the data are text."
    view = open_tab(board, "Rationales")
    view.get_by_placeholder("Search inputs, labels, rationales").fill("onerror")
    row = view.locator(".cotmi-table tbody tr").first
    expect(row).to_contain_text("<img src=x")
    row.click()
    expect(view.locator(".cotmi-text.student")).to_contain_text("<script>window.cotmiHacked=1</script>")
    open_tab(board, "Z and V")
    data = open_tab(board, "Data")
    control(data, "Problem").select_option("no marker")
    expect(data.get_by_text("<script>window.cotmiHacked=1</script>").first).to_be_visible()
    assert page.evaluate("window.cotmiHacked") is None
    assert board.locator("img").count() == 0


def exercise_rest(board):
    page = open_tab(board, "Calibration")
    diagram = titled(page, "Reliability")
    with changes(diagram, TITLE):
        page.get_by_role("button", name="equal mass").click()
    with changes(diagram, TITLE):
        move(slider(page, "Bins"), "ArrowLeft", 4)
    expect(titled(page, "Risk and coverage").get_by_text("coverage (% of examples answered)")).to_be_visible()
    page = open_tab(board, "Data")
    for problem in ("empty label", "not an equation"):
        control(page, "Problem").select_option(problem)
        meaning = "The answer holds no label" if "label" in problem else "The answer has no value"
        expect(page.get_by_text(meaning)).to_be_visible()
    page = open_tab(board, "Configuration")
    expect(page.get_by_text("learning_rate", exact=True)).to_be_visible()


def coloured(part, colour):
    "Waits until a part of the page has a background."
    expect(part).to_have_css("background-color", colour)


DARK, LIGHT = "rgb(27, 30, 35)", "rgb(255, 255, 255)"


def exercise_theme(board):
    losses = titled(open_tab(board, "Training"), "Loss terms")
    for theme, colour in (("dark", DARK), ("light", LIGHT)):
        board.get_by_role("button", name=theme, exact=True).click()
        coloured(board.locator(".cotmi-card").first, colour)
        coloured(losses.locator(".main-svg").first, colour)


def exercise_saving(page, board, tmp_path):
    view = open_tab(board, "Calibration")
    plot = titled(view, "Reliability")
    plot.hover()
    for kind, magic in (("PNG", b"\x89PNG"), ("SVG", b"<svg"), ("HTML", b"<!doctype html>")):
        with page.expect_download() as got:
            plot.get_by_role("button", name="Save as an interactive HTML page" if kind == "HTML" else f"Save as {kind}"
                             ).click()
        path = tmp_path / got.value.suggested_filename
        got.value.save_as(path)
        assert path.suffix == f".{kind.lower()}"
        assert path.read_bytes().startswith(magic)
    text = path.read_text()
    assert "plotly.js v" in text and not re.search(r"<script[^>]*src=", text)
    alone = page.context.new_page() # the saved page draws itself, without a network
    alone.goto(f"file://{path}")
    alone.locator(".js-plotly-plot .gtitle").wait_for()
    alone.close()


def quiet(page):
    "Nothing left the machine and no script failed; Voilà asks for its icon font."
    elsewhere = [url for url in page.elsewhere if not any(host in url for host in browser.FONT_HOSTS)]
    assert elsewhere == []
    assert page.faults == []


@pytest.fixture(scope="module")
def started():
    "The browser."
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def lab(place, started):
    "JupyterLab and its page."
    folder, _ = place
    with browser.jupyterlab(folder) as url, browser.new_page(started, height=1000) as page:
        yield url, page


def boards(page):
    return page.locator(".cotmi:visible")


def run_cell(page, number):
    page.locator(".jp-Cell").nth(number).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")


def open_imported(page, url, name):
    "Open a notebook whose first cell imports cotmi, which is no part of the time that the next one takes."
    browser.open_lab(page, url, name)
    run_cell(page, 0)
    page.locator(".jp-InputPrompt", has_text="[1]").wait_for(timeout=60_000)


def test_lab_is_on_screen_in_time(lab, report):
    url, page = lab
    open_imported(page, url, "run.ipynb")
    begun = time.monotonic()
    run_cell(page, 1)
    first = boards(page).nth(0)
    expect(first.locator(".cotmi-plot").nth(0)).not_to_have_attribute("data-drawn", "0", timeout=60_000)
    expect(first.get_by_role("heading", name="demo · builtin:tiny")).to_be_visible()
    took = time.monotonic() - begun
    report[f"JupyterLab: a run of {ROWS:,} examples, from Shift+Enter to the first figure"] = took
    assert took < 5 * patience()


def test_lab_training_and_information(lab):
    board = boards(lab[1]).nth(0)
    exercise_training(board)
    exercise_information(board)


def test_lab_pairs(lab):
    exercise_pairs(boards(lab[1]).nth(0))


def test_lab_rationales(lab, report):
    exercise_rationales(lab[1], boards(lab[1]).nth(0), report, "JupyterLab")


def test_lab_text_stays_text(lab):
    exercise_hostile(lab[1], boards(lab[1]).nth(0))


def test_lab_calibration_data_theme_and_files(lab, tmp_path):
    board = boards(lab[1]).nth(0)
    exercise_rest(board)
    exercise_theme(board)
    exercise_saving(lab[1], board, tmp_path)
    quiet(lab[1])


def test_lab_keyboard(lab):
    page, board = lab[1], boards(lab[1]).nth(0)
    board.get_by_role("tab", name="Training").focus()
    page.keyboard.press("End")
    expect(board.get_by_role("tab", name="Configuration")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowRight")
    expect(board.get_by_role("tab", name="Training")).to_have_attribute("aria-selected", "true")
    expect(board.get_by_role("tab", name="Training")).to_be_focused()


def test_lab_two_dashboards_a_growing_run_and_a_comparison(lab, place):
    page, (_, growing) = lab[1], place
    first, second, third, comparison = (page.locator(".jp-Cell").nth(i).locator(".cotmi") for i in range(1, 5))
    run_cell(page, 2)
    second.wait_for()
    view = open_tab(second, "Rationales") # labels with choices have bars
    view.locator(".cotmi-table tbody tr").first.click()
    bars = titled(view, "Label distribution")
    expect(bars.locator(".barlayer .point")).to_have_count(5)
    expect(first.get_by_role("tab", name="Training")).to_have_attribute("aria-selected", "true") # it did not move

    run_cell(page, 3)
    expect(third.get_by_text("running", exact=True).filter(visible=True)).to_have_count(1)
    losses = titled(open_tab(third, "Training"), "Loss terms")
    made.grow(growing, 300)
    with changes(losses, LINES):
        third.get_by_role("button", name="Refresh").click()
    third.get_by_text("Follow", exact=True).click()
    made.grow(growing, 300)
    with redrawn(losses):
        pass # by itself
    third.get_by_text("Follow", exact=True).click()
    expect(open_tab(third, "Rationales").get_by_text("There is no predictions.parquet in this run")).to_be_visible()

    run_cell(page, 4)
    comparison.wait_for()
    exercise_comparison(comparison)
    quiet(page)


def exercise_comparison(board):
    page = open_tab(board, "Runs")
    expect(page.locator(".cotmi-table tbody tr")).to_have_count(6)
    board.get_by_text("finetune", exact=True).first.click()
    expect(page.locator(".cotmi-table tbody tr")).to_have_count(4)
    page.locator(".cotmi-table tbody tr").first.click()
    expect(page.get_by_text("missing or amiss")).to_be_visible()
    page = open_tab(board, "Curves")
    plot = titled(page, "over training")
    with redrawn(plot):
        control(page, "Quantity").select_option("loss")
    expect(plot.get_by_text("loss (nats)")).to_be_visible()
    page = open_tab(board, "Intervals")
    expect(titled(page, "Test accuracy").locator(".ytick text")).to_have_count(6) # four runs and two means
    control(page, "Beside accuracy").select_option("held-out Î(Z;V)")
    expect(titled(page, "Held-out").get_by_text("I(Z;V) (nats)")).to_be_visible()
    page = open_tab(board, "Information")
    expect(titled(page, "Mutual information and accuracy").locator(".scatterlayer .point")).to_have_count(4)
    page = open_tab(board, "Examples")
    before = page.locator(".cotmi-table .count").inner_text()
    control(page, "Show examples where").select_option("both are right")
    expect(page.locator(".cotmi-table .count")).not_to_have_text(before)
    page.locator(".cotmi-table tbody tr").first.click()
    expect(page.get_by_text("Second run's rationale")).to_be_visible()


def tabs(board):
    return board.get_by_role("tab").all_inner_texts()


def figures(board, *names):
    "Every figure of the named tabs, or of all: its tab and title, once it shows what the kernel sent last."
    for name in names or tabs(board):
        for plot in open_tab(board, name).locator(".cotmi-plot:visible").all():
            expect(plot).to_have_attribute("data-stale", "0")
            yield name, plot.get_attribute("aria-label"), plot


def contents(board, *names):
    "What every figure of the named tabs, or of all, draws: its texts, lines, points and background."
    read = """plot => [getComputedStyle(plot.querySelector('.main-svg')).backgroundColor,
      ...[...plot.querySelectorAll('.main-svg text')].map(e => e.textContent),
      ...[...plot.querySelectorAll('.main-svg path')].map(e => e.getAttribute('d'))].join('|')"""
    return {(tab, title): plot.evaluate(read) for tab, title, plot in figures(board, *names)}


def board_of(lab, cell):
    "The dashboard below a cell of the notebook that is open, where it can be seen: cells far away may not be drawn."
    board = lab[1].locator(".jp-Cell").nth(cell).locator(".cotmi")
    board.scroll_into_view_if_needed()
    board.get_by_role("tab").first.wait_for()
    return board


def missed(board, name=None):
    "Waits until the hidden figures, or the one with a title, know that they missed a change."
    titles = f'[aria-label*="{name}"]' if name else ""
    expect(board.locator(f'.cotmi-plot{titles}[data-stale="0"]').filter(visible=False)).to_have_count(0)


# A control that is moved while a tab is hidden shows its effect when the tab is shown, in every figure.
@pytest.mark.parametrize("cell", [3, 4], ids=["run", "comparison"])
def test_lab_no_hidden_figure_keeps_the_other_theme(lab, cell):
    board = board_of(lab, cell)
    plain = {(tab, title) for tab, title, _ in figures(board)}
    first, *_, last = tabs(board)
    for here, theme, colour in ((first, "dark", DARK), (last, "light", LIGHT)):
        open_tab(board, here) # every figure of another tab is hidden
        board.get_by_role("button", name=theme, exact=True).click()
        missed(board)
        shown = set()
        for tab, title, plot in figures(board):
            coloured(plot.locator(".main-svg").first, colour)
            shown.add((tab, title))
        assert shown == plain


def test_lab_no_hidden_figure_ends_at_an_earlier_step(lab, place):
    run, growing = board_of(lab, 3), place[1]
    with changes(titled(open_tab(run, "Training"), "Loss terms"), LINES):
        open_tab(run, tabs(run)[-1])
        made.grow(growing, 300)
        run.get_by_role("button", name="Refresh").click()
        missed(run, "Loss terms")
        list(figures(run))
        open_tab(run, "Training")


def test_lab_a_figure_that_changes_while_it_is_hidden_for_a_moment(lab):
    "It comes back as wide as it was, so that its width tells nothing."
    page = lab[1]
    run_cell(page, 5)
    alone = page.locator(".jp-Cell").nth(5).locator(".cotmi-plot")
    expect(alone.locator(".ytick text")).to_have_text(["yes", "no"])
    run_cell(page, 6)
    expect(alone.locator(".ytick text")).to_have_text(["left", "right"])


def test_lab_the_distribution_is_of_the_row_that_is_read(lab):
    view = open_tab(board_of(lab, 2), "Rationales")
    bars, rows = titled(view, "Label distribution"), view.locator(".cotmi-table tbody tr")
    for number in (1, 2, 3, 1):
        with redrawn(bars):
            rows.nth(number).click()
        expect(bars).to_have_attribute("data-stale", "0")


@contextlib.contextmanager
def counted(comparison):
    "What happens in the block changes how many runs are shown, which the kernel says once it has sent the figures."
    said = comparison.get_by_role("heading", name=re.compile(r"^\d+ of \d+ runs$"))
    before = said.inner_text()
    yield
    expect(said).not_to_have_text(before)


@pytest.mark.parametrize("box", ["dss", "1"], ids=["method", "seed"])
def test_lab_no_hidden_figure_draws_what_was_left_out(lab, box):
    "A figure shows hidden what it shows when the box is ticked in its sight."
    comparison = board_of(lab, 4)
    names = tabs(comparison)
    ticked = comparison.locator(".widget-checkbox:visible", has_text=box).locator("input").first
    changed = 0
    for name, elsewhere in zip(names, names[1:] + names[:1], strict=True):
        whole = contents(comparison, name)
        with counted(comparison):
            ticked.set_checked(False)
        in_sight = contents(comparison, name)
        changed += in_sight != whole
        with counted(comparison):
            ticked.set_checked(True)
        assert contents(comparison, name) == whole
        open_tab(comparison, elsewhere)
        with counted(comparison):
            ticked.set_checked(False)
        assert contents(comparison, name) == in_sight
        with counted(comparison):
            ticked.set_checked(True)
    assert changed > 2


def test_nothing_overlaps(crowd, started):
    "Every figure of every tab at three widths, 853 being 1280 at a zoom of 150 %: no text on another, none cut."
    with browser.new_page(started, 420, 1200) as page:
        page.goto(crowd)
        boards(page).nth(2).get_by_role("tab").first.wait_for(timeout=90_000)
        for width in (420, 853, 1280):
            page.set_viewport_size({"width": width, "height": 1200})
            for board in boards(page).all():
                for tab, title, plot in figures(board):
                    browser.has_room(plot, f"{width}, {tab}, {title}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    "A Voilà with two runs and a comparison of groups that share their method; its address."
    folder = tmp_path_factory.mktemp("crowd")
    run = made.make_run(folder / "outputs", examples=400, seed=5)
    choice = made.make_run(folder / "outputs", dataset="places", examples=300, kind="choice", features="decoder")
    made.make_grid(folder / "grid", seeds=3, examples=120)
    whole = min(path.parent for path in (folder / "grid").rglob("config.json"))
    short = shutil.copytree(whole, whole.parent / "short") / "config.json"
    stored = json.loads(short.read_text())
    stored["values"]["max_steps"] = 150
    short.write_text(json.dumps(stored))
    browser.notebook(folder / "page.ipynb", "from cotmi import CompareDashboard, RunDashboard",
                     f"RunDashboard({str(run)!r})", f"RunDashboard({str(choice)!r})", "CompareDashboard('grid')")
    with browser.voila(folder / "page.ipynb") as url:
        yield url


def test_lab_coming_back(lab):
    "What was changed is there when the page is opened again."
    url, page = lab
    board = board_of(lab, 1)
    losses = titled(open_tab(board, "Training"), "Loss terms")
    logarithmic = lambda: board.locator(".widget-checkbox", has_text="Logarithmic loss").locator("input") # noqa: E731
    if not logarithmic().is_checked():
        with changes(losses, AXIS):
            logarithmic().check()
    assert losses.evaluate(AXIS) == "log"
    page.keyboard.press("Control+s")
    expect(page.locator(".jp-mod-dirty")).to_have_count(0)
    browser.come_back(page, url, "run.ipynb")
    board = board_of(lab, 1)
    expect(board.locator(".cotmi-waiting")).to_have_attribute("data-greeted", "1", timeout=60_000)
    losses = titled(open_tab(board, "Training"), "Loss terms")
    assert logarithmic().is_checked()
    assert losses.evaluate(AXIS) == "log"
    with changes(losses, LINES), changes(losses, AXIS):
        board.get_by_text("Logarithmic loss").click()
    assert losses.evaluate(AXIS) == "linear"


# A page whose greeting is held up on its way, as by a slow kernel, and which loses figures while `cotmiLoses` says so.
SLOW = """globalThis.cotmiHeld = []; globalThis.cotmiLost = 0;
  const { send } = WebSocket.prototype, read = data => typeof data === 'string' ? data : new TextDecoder().decode(data);
  WebSocket.prototype.send = function (data) {
    if (!globalThis.cotmiHeld || !read(data).includes('"event":"hello"')) return send.call(this, data);
    globalThis.cotmiHeld.push([this, data]);
  };
  const usual = Object.getOwnPropertyDescriptor(WebSocket.prototype, 'onmessage');
  Object.defineProperty(WebSocket.prototype, 'onmessage', { ...usual, set(take) {
    usual.set.call(this, message => {
      if (!globalThis.cotmiLoses || !read(message.data).includes('"_figure"')) take.call(this, message);
      else globalThis.cotmiLost++;
    });
  } });"""
GREET = """() => { const held = globalThis.cotmiHeld; globalThis.cotmiHeld = null; globalThis.cotmiLoses = false;
  held.forEach(([socket, data]) => socket.send(data)); }"""


def open_slowly(lab):
    "Open the notebook again; gives its page, its first dashboard and the box that the tests tick, held."
    url, page = lab
    page.add_init_script(script=SLOW)
    browser.come_back(page, url, "run.ipynb")
    board = board_of(lab, 1)
    waiting = board.get_by_text(re.compile("Reconnecting to the kernel|The kernel does not answer")) # later the latter
    expect(waiting).to_be_visible(timeout=60_000)
    box = board.locator(".widget-checkbox", has_text="Logarithmic loss").locator("input")
    expect(box).to_have_js_property("inert", True)
    return page, board, box


def test_lab_controls_wait_for_the_kernel(lab):
    "On a page that was opened again a control waits until the kernel answers, and no click is lost."
    expect(board_of(lab, 1).locator(".cotmi-waiting")).to_have_attribute("data-greeted", "1")
    page, board, box = open_slowly(lab)
    expect(board.get_by_role("button", name="Refresh")).to_have_js_property("inert", True)
    page.evaluate(GREET)
    expect(board.locator(".cotmi-waiting")).to_be_hidden()
    expect(box).to_have_js_property("inert", False)
    losses = titled(open_tab(board, "Training"), "Loss terms")
    with changes(losses, LINES):
        box.click()


def test_lab_a_page_is_sent_what_it_missed_while_it_opened(lab):
    "What the kernel sends after a page's first look and before it listens is lost to it; the greeting mends that."
    page, board, box = open_slowly(lab)
    losses = titled(board, "Loss terms")
    expect(losses).to_have_attribute("data-stale", "0")
    seen = lambda: (losses.evaluate(LINES), losses.get_attribute("data-drawn")) # noqa: E731
    before = seen()
    page.evaluate("globalThis.cotmiLoses = true")
    box.evaluate("box => box.click()") # a reader cannot
    page.wait_for_function("globalThis.cotmiLost")
    assert seen() == before
    with changes(losses, LINES):
        page.evaluate(GREET)


# A page so busy that whatever has a time limit is over it.
TOO_LATE = """AbortSignal.timeout = () => {
  const limit = new AbortController(); queueMicrotask(() => limit.abort()); return limit.signal; }"""


def test_lab_a_busy_page_hears_the_kernel(lab, started):
    "A widget whose script came late shows what the kernel sent before, and what it sends after."
    with browser.new_page(started, height=1000) as page:
        page.add_init_script(script=TOO_LATE)
        browser.open_lab(page, lab[0], "page.ipynb")
        browser.run_all(page)
        board = boards(page).first
        board.get_by_role("tab").first.wait_for()
        assert {tab for tab, *_ in figures(board)} > {"Training", "MI story", "Z and V", "Calibration"}
        exercise_training(board)
        exercise_theme(board)
        view = open_tab(board, "Rationales")
        expect(view.locator(".cotmi-table .count")).to_have_text(f"1–15 of {ROWS:,}")
        view.get_by_text("Wrong only", exact=True).click()
        expect(view.locator(".cotmi-table .count")).to_contain_text(f"({ROWS:,} without filters)")
        expect(board.locator(".cotmi-waiting")).to_be_hidden()


def test_lab_closing_asks_nothing(lab, place, started):
    """A notebook as version control keeps it is not changed by being opened.

    It has a page of its own: JupyterLab calls it a fault when a notebook is closed before its kernel has answered
    everything ("Canceled future for create_subshell_request message before replies were done"), on a busy machine later
    than it says that the kernel is idle. Until then it is to have no fault, and the pages of dashboards none at all.
    """
    kept = place[0] / "kept.ipynb"
    browser.notebook(kept, "1 + 1")
    stored = json.loads(kept.read_text())
    stored["metadata"] = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    kept.write_text(json.dumps(stored))
    before = kept.read_bytes()
    with browser.new_page(started, height=1000) as page:
        browser.open_lab(page, lab[0], "kept.ipynb")
        expect(page.locator(".jp-mod-dirty")).to_have_count(0)
        quiet(page)
        page.keyboard.press("Alt+w")
        expect(page.get_by_role("tab", name="kept.ipynb")).to_have_count(0)
        expect(page.locator(".jp-Dialog")).to_have_count(0)
    assert kept.read_bytes() == before


def test_lab_a_hundred_runs_are_on_screen_in_time(lab, place, started, report):
    folder, _ = place
    made.make_grid(folder / "many", seeds=34, examples=120)
    browser.notebook(folder / "many.ipynb", "from cotmi import CompareDashboard", "CompareDashboard('many')")
    with browser.new_page(started, height=1000) as page:
        open_imported(page, lab[0], "many.ipynb")
        board = boards(page).first
        begun = time.monotonic()
        run_cell(page, 1)
        expect(board.get_by_role("heading", name="102 of 102 runs")).to_be_visible()
        expect(board.locator(".cotmi-table tbody tr").first).to_be_visible()
        took = {"table": time.monotonic() - begun}
        for name in ("Curves", "Intervals", "Differences"):
            begun = time.monotonic()
            open_tab(board, name)
            took[name] = time.monotonic() - begun
        report.update({f"JupyterLab: a comparison of 102 runs, {n}": seconds for n, seconds in took.items()})
        assert max(took.values()) < 5 * patience(), took
        seeds = board.locator(".cotmi-bar", has=page.get_by_text("Seed", exact=True)).last # the innermost
        boxes = seeds.locator(".widget-checkbox").all_inner_texts()
        assert [text.strip("\u200b \n") for text in boxes] == [str(seed) for seed in range(34)]


def test_lab_live_monitor_stops_cleanly(lab, place):
    url, page = lab
    folder, _ = place
    browser.notebook(folder / "live.ipynb", "\n".join((
        "from cotmi.training.run_config import RunConfig", "from cotmi.data.loading import load_data",
        "from cotmi.dashboards.live_monitor import LiveMonitor",
        "from cotmi.training.trainer import train",
        "config = RunConfig(dataset='demo', method='dss', student='builtin:tiny', "
        "demo_size=120, max_steps=5000, logging_steps=5, eval_steps=2500, generation_max_length=8, batch_size=16)",
        "result = train(config, load_data('demo', demo_size=120), 'live', [LiveMonitor()], progress=False)",
        "print('ended', result.stopped, result.steps < 5000)")))
    browser.open_lab(page, url, "live.ipynb")
    browser.run_all(page)
    board = boards(page).first
    expect(board.get_by_text(re.compile(r"training: step \d+ of 5,000, loss"))).to_be_visible(timeout=90_000)
    losses = titled(board, "Loss terms")
    with redrawn(losses):
        pass # it goes on by itself while the cell is running
    board.get_by_role("button", name="Stop training").click()
    expect(page.get_by_text("ended True True")).to_be_visible(timeout=60_000)
    expect(board.get_by_role("button", name="Stopped")).to_be_visible()
    assert list((folder / "live" / "checkpoints").glob("checkpoint-*/trainer_state.json"))
    quiet(page)


def test_lab_playground(lab, place):
    "The student is loaded when asked for, and an edited example is answered beside the unedited one."
    from cotmi.students.builtin import builtin_student  # noqa: PLC0415

    url, page = lab
    folder, _ = place
    run = made.make_run(folder / "taught", examples=40, objective="infonce", features="decoder", width=64)
    builtin_student("tiny", ["Ada has 3 pears and finds 4 more.", "3 + 4 = 7."], seed=1).save(run / "student")
    browser.notebook(folder / "play.ipynb",
                     f"from cotmi.dashboards.playground import StudentPlayground\nStudentPlayground({str(run)!r})")
    browser.open_lab(page, url, "play.ipynb")
    browser.run_all(page)
    board = boards(page).first
    expect(board.get_by_text("No student is loaded")).to_be_visible(timeout=60_000)
    expect(board.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    board.get_by_role("button", name="Load the student").click()
    expect(board.get_by_text("parameters")).to_be_visible(timeout=60_000)
    example = board.get_by_placeholder("id of a test example")
    example.fill("test-00002")
    example.press("Enter")
    text = board.locator("textarea")
    expect(text).to_have_value(re.compile("How many are left"))
    text.fill("Ada has 5 <b>pears</b>.")
    board.get_by_role("button", name="Ask", exact=True).click()
    expect(board.get_by_text("answered", exact=True)).to_be_visible(timeout=90_000)
    expect(board.locator(".cotmi-text").nth(2)).to_contain_text("<b>pears</b>")
    expect(titled(board, "Z (circles) and V").get_by_text("typed", exact=True)).to_be_visible()
    board.get_by_role("button", name="Attribute", exact=True).click()
    expect(board.get_by_text("is kept with the run, in its tab Rationales")).to_be_visible(timeout=90_000)
    expect(board.locator(".cotmi-word", has_text="<b>pears</b>")).to_have_count(1)
    expect(board.get_by_text("Salience, not explanation")).to_have_count(2)
    assert "test-00002" in json.loads((run / "views/salience.json").read_text())
    quiet(page)


def test_voila(place, started, report, tmp_path):
    folder, _ = place
    with browser.voila(folder / "page.ipynb") as url, browser.new_page(started, height=1000) as page:
        begun = time.monotonic()
        page.goto(url)
        board = boards(page).first
        plot = board.locator(".cotmi-plot").first
        expect(plot).not_to_have_attribute("data-drawn", "0", timeout=90_000)
        report["Voilà: from the address to the first figure, kernel start included"] = time.monotonic() - begun
        exercise_training(board)
        exercise_pairs(board)
        exercise_rationales(page, board, report, "Voilà")
        exercise_rest(board)
        exercise_information(board)
        exercise_hostile(page, board)
        exercise_theme(board)
        exercise_saving(page, board, tmp_path)
        quiet(page)
