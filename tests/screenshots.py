"""Take the screenshots of the documentation: python tests/screenshots.py RUN [--playground] [--compare FOLDER].

Opens the dashboards of a run with Voilà in the Chromium of this machine, goes through every tab, and writes a PNG of at
most 120 kB for each, 1280 pixels wide and light if nothing else is asked. Tests do not run it. To look at everything:
`--themes light dark --widths 1280 853 420 --most 1000000 --into FOLDER`.
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
TABS = ("Training", "MI story", "Mutual information", "Z and V", "Rationales", "Calibration", "Data")
COMPARISON = ("Runs", "Curves", "Intervals", "Differences", "Information") # Examples shows rows of the data
DRAWN = "[...document.querySelectorAll('.cotmi-plot')].every(p => !p.offsetWidth || p.dataset.stale === '0')"


def save(board, path: Path, most: int) -> None:
    "Write a picture of a dashboard, with as many colours and points as its size allows."
    picture = Image.open(io.BytesIO(board.screenshot())).convert("RGB")
    picture.save(path, optimize=True)
    for share, colours in ((1, 256), (1, 128), (1, 64), (0.8, 64), (0.7, 64), (0.6, 64)):
        if path.stat().st_size < most:
            break
        size = round(picture.width * share), round(picture.height * share)
        smaller = picture if share == 1 else picture.resize(size, Image.Resampling.LANCZOS)
        # this method keeps colours that are rare, such as those of a few points
        few = smaller.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
    print(f"{path}  {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB", flush=True)


def settle(page, view) -> None:
    "Wait until a tab is filled and its figures show what the kernel sent last."
    view.get_by_text("Reading…").wait_for(state="detached", timeout=120_000)
    page.wait_for_function(DRAWN, timeout=120_000)
    page.wait_for_timeout(500) # a figure that was just drawn may be drawn once more


def open_tab(page, board, name: str):
    "Open a tab and wait until its figures are drawn."
    board.get_by_role("tab", name=name, exact=True).click()
    number = board.get_by_role("tab").all_inner_texts().index(name)
    view = board.locator(f".cotmi-page-{number}:visible")
    view.wait_for(timeout=120_000)
    settle(page, view)
    return view


def show(page, view, name: str) -> None:
    "Bring a tab to where it has something to show."
    if name == "Z and V":
        view.locator(".cotmi-plot .scatterlayer .point").nth(20).click(force=True)
    elif name in ("Rationales", "Examples"):
        if name == "Rationales":
            view.get_by_text("Wrong only", exact=True).check()
            page.wait_for_timeout(800)
        if view.locator(".cotmi-table tbody tr").count() > 1:
            view.locator(".cotmi-table tbody tr").nth(1).click()
    page.mouse.move(2, 2)
    settle(page, view)


def shoot(code: str, tabs: tuple[str, ...], given: argparse.Namespace, prefix: str, theme: str) -> None:
    "Screenshots of the dashboard that some code makes."
    with tempfile.TemporaryDirectory() as folder:
        notebook = browser.notebook(Path(folder) / "page.ipynb", code)
        with (browser.voila(notebook) as url, browser.chromium() as started,
              browser.new_page(started, given.widths[0], 2400) as page):
            page.goto(url)
            board = page.locator(".cotmi").first
            board.get_by_role("tab").first.wait_for(timeout=240_000)
            for name in tabs:
                for width in given.widths:
                    page.set_viewport_size({"width": width, "height": 2400 if width > 800 else 8000})
                    show(page, open_tab(page, board, name), name)
                    parts = (prefix, *(["dark"] if theme == "dark" else []), *([str(width)] if width != 1280 else []),
                             name.lower().replace(" ", "-"))
                    save(board, given.into / f"{'-'.join(parts)}.png", given.most)


def shoot_playground(run: Path, given: argparse.Namespace) -> None:
    "A screenshot of the playground after an example was edited, asked and attributed."
    with tempfile.TemporaryDirectory() as folder:
        code = "from cotmi.dashboards.playground import StudentPlayground\n"
        code += f"StudentPlayground({str(run)!r}, theme='light')"
        notebook = browser.notebook(Path(folder) / "page.ipynb", code)
        with (browser.voila(notebook) as url, browser.chromium() as started,
              browser.new_page(started, 1280, 2400) as page):
            page.goto(url)
            board = page.locator(".cotmi").first
            board.get_by_role("button", name="Load the student").click(timeout=240_000)
            board.get_by_text("parameters").wait_for(timeout=240_000)
            example = board.get_by_placeholder("id of a test example")
            example.fill(str(Run(run).predictions["id"].iloc[3]))
            example.press("Enter")
            text = board.locator("textarea")
            page.wait_for_function("document.querySelector('.cotmi textarea').value.length > 0")
            text.fill(re.sub(r"\d+", "8", text.input_value(), count=1))
            for button, said in (("Ask", "answered"), ("Attribute", re.compile("^attributed"))):
                board.get_by_role("button", name=button, exact=True).click()
                board.get_by_text(said).last.wait_for(timeout=240_000)
            settle(page, board)
            save(board, given.into / "playground.png", given.most)


def arguments() -> argparse.Namespace:
    "What was asked for."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--prefix", default="dashboard", help="how the files' names begin")
    parser.add_argument("--tabs", nargs="*", default=TABS, help="tabs to show; all if not given")
    parser.add_argument("--themes", nargs="*", default=["light"], help="light, dark")
    parser.add_argument("--widths", nargs="*", type=int, default=[1280], help="widths of the page in pixels")
    parser.add_argument("--dark", default="", help="one tab to show in the dark theme too")
    parser.add_argument("--compare", type=Path, help="a folder of runs, for the comparison")
    parser.add_argument("--into", type=Path, default=Path(__file__).parents[1] / "nbs" / "images")
    parser.add_argument("--most", type=int, default=120_000, help="bytes of a picture")
    parser.add_argument("--playground", action="store_true", help="show the playground with the run's student too")
    given = parser.parse_args()
    if reason := browser.missing():
        parser.error(reason)
    return given


def main() -> None:
    given = arguments()
    given.into.mkdir(parents=True, exist_ok=True)
    code = f"from cotmi import RunDashboard\nRunDashboard({str(given.run.resolve())!r}, theme=%r)"
    if given.playground: # first, so that what it keeps with the run is seen in Rationales
        shoot_playground(given.run.resolve(), given)
    for theme in given.themes:
        if given.tabs:
            shoot(code % theme, tuple(given.tabs), given, given.prefix, theme)
        if given.compare:
            many = f"from cotmi import CompareDashboard\nCompareDashboard({str(given.compare.resolve())!r}, theme=%r)"
            shoot(many % theme, COMPARISON, given, "comparison", theme)
    if given.dark:
        shoot(code % "dark", (given.dark,), given, given.prefix, "dark")


if __name__ == "__main__":
    main()
