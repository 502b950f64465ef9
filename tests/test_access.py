"""For keyboards and screen readers: axe finds nothing in any tab, and controls say their name and state."""

import helpers_browser as browser
import helpers_runs as made
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
if reason := browser.missing():
    pytest.skip(f"browser tests: {reason}", allow_module_level=True)
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

from playwright.sync_api import expect  # noqa: E402

DRAWN = "[...document.querySelectorAll('.cotmi-plot')].every(p => !p.offsetWidth || p.dataset.stale === '0')"


def tabs_of(page, board):
    "Every tab, opened and drawn."
    for number, name in enumerate(board.get_by_role("tab").all_inner_texts()):
        board.get_by_role("tab", name=name, exact=True).click()
        view = board.locator(f".cotmi-page-{number}:visible")
        view.wait_for(timeout=60_000)
        expect(view.get_by_text("Reading…")).to_have_count(0, timeout=60_000)
        page.wait_for_function(DRAWN, timeout=60_000)
        yield name, view


def violations(page) -> list[str]:
    "What axe finds in the dashboards."
    found = axe.Axe().run(page, context=".cotmi").response["violations"]
    return [f"{rule['id']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]]


def test_axe_finds_nothing_and_controls_say_what_they_are(tmp_path):
    run = made.make_run(tmp_path / "outputs", examples=120)
    made.make_run(tmp_path / "outputs", method="dss", examples=120)
    browser.notebook(tmp_path / "page.ipynb", "from cotmi import CompareDashboard, RunDashboard",
                     f"RunDashboard({str(run)!r})", "CompareDashboard('outputs', theme='dark')")
    with (browser.voila(tmp_path / "page.ipynb") as url, browser.chromium() as started,
          browser.new_page(started, 1280, 1400) as page):
        page.goto(url)
        first, comparison = (page.locator(".cotmi").nth(i) for i in range(2))
        comparison.get_by_role("tab").first.wait_for(timeout=120_000)
        for board in (first, comparison):
            for name, view in tabs_of(page, board):
                assert violations(page) == [], name
                if name == "Rationales":
                    view.get_by_role("button", name="Select these").click()
                    expect(first.get_by_text("120 of 120")).to_be_visible()
                    view.locator(".cotmi-table tbody tr").first.click()
                    expect(view.get_by_role("heading", name="Teacher's rationale")).to_be_visible()
                    expect(view.get_by_role("slider", name="Confidence, lower end")).to_be_visible()
        for theme, other in (("dark", "light"), ("light", "dark")):
            first.get_by_role("button", name=theme, exact=True).click()
            expect(first.get_by_role("button", name=theme, exact=True)).to_have_attribute("aria-pressed", "true")
            expect(first.get_by_role("button", name=other, exact=True)).to_have_attribute("aria-pressed", "false")
            page.wait_for_function(DRAWN)
            assert violations(page) == [], theme
        fold = first.locator(".cotmi-fold > summary")
        fold.focus()
        page.keyboard.press("Enter")
        expect(first.get_by_text("Test accuracy in context")).to_be_hidden()
        page.reload()
        page.locator(".cotmi").nth(0).locator(".cotmi-fold > summary").wait_for(timeout=120_000)
        expect(page.locator(".cotmi").nth(0).get_by_text("Test accuracy in context")).to_be_hidden() # remembered
        assert page.faults == []
