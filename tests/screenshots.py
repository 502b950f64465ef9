"""Take the screenshots of the documentation: python tests/screenshots.py RUN [--playground] [--compare FOLDER].

Opens the dashboards of a run with Voilà in the Chromium of this machine, goes through every tab at a width of 1280
pixels, and writes one PNG of under 200 kB for each. Tests do not run it.
"""

import argparse
import io
import re
import tempfile
from pathlib import Path

import helpers_browser as browser
from PIL import Image

from cotmi.runs.run_folder import Run

# Without Configuration, which shows the paths of the machine that the run was made on.
TABS = ("Training", "Mutual information", "Z and V", "Rationales", "Calibration", "Data")
COMPARISON = ("Runs", "Curves", "Intervals", "Information") # Examples shows rows of the data
MOST = 200_000


def save(board, path: Path) -> None:
    "Write a picture of a dashboard, with as many colours as its size allows."
    picture = Image.open(io.BytesIO(board.screenshot())).convert("RGB")
    picture.save(path, optimize=True)
    for colours in (256, 128, 64, 32):
        if path.stat().st_size < MOST:
            break
        # this method keeps colours that are rare, such as those of a few points
        few = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
    print(f"{path}  {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


def open_tab(page, board, name: str):
    "Open a tab and wait until its figures are drawn."
    board.get_by_role("tab", name=name, exact=True).click()
    number = board.get_by_role("tab").all_inner_texts().index(name)
    view = board.locator(f".cotmi-page-{number}:visible")
    view.wait_for(timeout=60_000)
    view.get_by_text("Reading…").wait_for(state="detached", timeout=60_000)
    page.wait_for_timeout(1500)
    return view


def show(page, view, name: str) -> None:
    "Bring a tab to where it has something to show."
    if name == "Z and V":
        view.locator(".cotmi-plot .scatterlayer .point").nth(20).click(force=True)
        page.mouse.move(2, 2)
    elif name in ("Rationales", "Examples"):
        if name == "Rationales":
            view.get_by_text("Wrong only", exact=True).click()
            page.wait_for_timeout(500)
        if view.locator(".cotmi-table tbody tr").count() > 1:
            view.locator(".cotmi-table tbody tr").nth(1).click()
            page.mouse.move(2, 2)
    page.wait_for_timeout(900)


def shoot(code: str, tabs: tuple[str, ...], into: Path, prefix: str) -> None:
    "Screenshots of the dashboard that some code makes."
    with tempfile.TemporaryDirectory() as folder:
        notebook = browser.notebook(Path(folder) / "page.ipynb", code)
        with (browser.voila(notebook) as url, browser.chromium() as started,
              browser.new_page(started, 1280, 2400) as page):
            page.goto(url)
            board = page.locator(".cotmi").first
            board.get_by_role("tab").first.wait_for(timeout=120_000)
            for name in tabs:
                show(page, open_tab(page, board, name), name)
                save(board, into / f"{prefix}-{name.lower().replace(' ', '-')}.png")


def shoot_playground(run: Path, into: Path) -> None:
    "A screenshot of the playground after an example was edited and asked."
    with tempfile.TemporaryDirectory() as folder:
        code = "from cotmi.dashboards.playground import StudentPlayground\n"
        code += f"StudentPlayground({str(run)!r}, theme='light')"
        notebook = browser.notebook(Path(folder) / "page.ipynb", code)
        with (browser.voila(notebook) as url, browser.chromium() as started,
              browser.new_page(started, 1280, 2400) as page):
            page.goto(url)
            board = page.locator(".cotmi").first
            board.get_by_role("button", name="Load the student").click(timeout=120_000)
            board.get_by_text("parameters").wait_for(timeout=120_000)
            example = board.get_by_placeholder("id of a test example")
            example.fill(str(Run(run).predictions["id"].iloc[3]))
            example.press("Enter")
            text = board.locator("textarea")
            page.wait_for_function("document.querySelector('.cotmi textarea').value.length > 0")
            text.fill(re.sub(r"\d+", "8", text.input_value(), count=1))
            page.wait_for_timeout(1000)
            board.get_by_role("button", name="Ask", exact=True).click()
            board.get_by_text("answered", exact=True).wait_for(timeout=120_000)
            page.wait_for_timeout(2000)
            save(board, into / "playground.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--prefix", default="dashboard", help="how the files' names begin")
    parser.add_argument("--dark", default="Z and V", help="tab to show in the dark theme too; empty for none")
    parser.add_argument("--tabs", nargs="*", default=TABS, help="tabs to show; all if not given")
    parser.add_argument("--compare", type=Path, help="a folder of runs, for the comparison")
    parser.add_argument("--into", type=Path, default=Path(__file__).parents[1] / "nbs" / "images")
    parser.add_argument("--playground", action="store_true", help="show the playground with the run's student too")
    given = parser.parse_args()
    if reason := browser.missing():
        parser.error(reason)
    given.into.mkdir(parents=True, exist_ok=True)
    code = f"from cotmi import RunDashboard\nRunDashboard({str(given.run.resolve())!r}, theme=%r)"
    shoot(code % "light", tuple(given.tabs), given.into, given.prefix)
    if given.dark:
        shoot(code % "dark", (given.dark,), given.into, f"{given.prefix}-dark")
    if given.playground:
        shoot_playground(given.run.resolve(), given.into)
    if given.compare:
        code = f"from cotmi import CompareDashboard\nCompareDashboard({str(given.compare.resolve())!r}, theme='light')"
        shoot(code, COMPARISON, given.into, "comparison")


if __name__ == "__main__":
    main()
