"""Servers and a browser for the tests and the screenshots: JupyterLab, Voilà, and whatever Chromium is installed."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.resources import files
from pathlib import Path

from helpers_ports import free_ports

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
TOKEN = "cotmi-test"
PATIENCE = 120_000 # milliseconds that a busy machine may take for anything; an idle one needs a hundredth
FONT_HOSTS = ("cdnjs.cloudflare.com", "use.fontawesome.com", "cdn.jsdelivr.net", "unpkg.com")


def find_chromium() -> str | None:
    "The Chromium to drive: COTMI_CHROMIUM, BROWSER_PATH, or what is on the path; None if there is none."
    named = [os.environ.get(n) for n in ("COTMI_CHROMIUM", "BROWSER_PATH")]
    return next((p for p in (*named, *map(shutil.which, CANDIDATES)) if p and Path(p).is_file()), None)


def missing() -> str:
    "Why browser tests cannot run here, or an empty string."
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install -e '.[dev]')"
    if find_chromium() is None:
        return "no Chromium was found: install the package chromium, or name one in COTMI_CHROMIUM"
    return ""


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status < 500
    except urllib.error.HTTPError as fault:
        return fault.code < 500
    except OSError:
        return False


@contextlib.contextmanager
def served(command: list[str], url: str, folder: Path, seconds: float = 120):
    "Run a server until the block ends; waits until `url` answers."
    home = folder / ".jupyter-home"
    quiet = home / "config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True, exist_ok=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}') # no question about news over the page
    switched_on = home / "config/jupyter_server_config.d"
    switched_on.mkdir(parents=True, exist_ok=True)
    (switched_on / "cotmi.json").write_bytes(files("cotmi.dashboards").joinpath("cotmi.json").read_bytes())
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
                   "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "IPYTHONDIR": str(home / "ipython"),
                   "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1", "HF_HUB_OFFLINE": "1"}
    log = (home / f"server-{free_ports(1)[0]}.log").open("w+")
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        ends = time.monotonic() + seconds
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > ends:
                log.seek(0)
                raise RuntimeError(f"{command[2]} did not start:\n{log.read()[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)
        if server.poll() is None:
            server.kill()
        log.close()


@contextlib.contextmanager
def jupyterlab(folder: Path):
    "A JupyterLab over a folder; gives its address."
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={url.rsplit(':')[-1]}",
               "--allow-root", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}",
               "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with served(command, f"{url}/api?token={TOKEN}", folder):
        yield url


@contextlib.contextmanager
def voila(notebook: Path):
    "A Voilà over a notebook; gives its address."
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "voila", str(notebook), "--no-browser", f"--port={url.rsplit(':')[-1]}",
               "--Voila.ip=127.0.0.1"]
    with served(command, f"{url}/voila/static/", notebook.parent):
        yield url


def _request(address: str, method: str = "GET"):
    "What a JupyterLab answers."
    asked = urllib.request.Request(address, headers={"Authorization": f"token {TOKEN}"}, method=method)
    with urllib.request.urlopen(asked) as answer:
        return json.loads(answer.read() or "null")


def end_sessions(url: str) -> None:
    "End every kernel of a JupyterLab."
    for session in _request(f"{url}/api/sessions"):
        _request(f"{url}/api/sessions/{session['id']}", "DELETE")


@contextlib.contextmanager
def chromium():
    "A running browser; Playwright allows one at a time in a process."
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE / 4)
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield started
        started.close()


@contextlib.contextmanager
def new_page(started, width: int = 1280, height: int = 900):
    "A page with nothing remembered; `page.elsewhere` lists requests to other machines, `page.faults` script errors."
    context = started.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    context.set_default_navigation_timeout(PATIENCE)
    page = context.new_page()
    page.elsewhere, page.faults = [], []
    page.on("request", lambda r: page.elsewhere.append(r.url) if _leaves(r.url) else None)
    page.on("pageerror", lambda fault: page.faults.append(str(fault)))
    yield page
    context.close()


def _leaves(url: str) -> bool:
    "Whether a request goes to another machine."
    return url.split(":", 1)[0] in ("http", "https", "ws", "wss") and "//127.0.0.1:" not in url


def notebook(path: Path, *cells: str) -> Path:
    "Write a notebook of code cells."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata=kernel), path)
    return path


def open_lab(page, url: str, name: str) -> None:
    "Open a notebook in JupyterLab and wait for its kernel."
    page.goto(f"{url}/lab/tree/{name}?reset&token={TOKEN}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)


def come_back(page, url: str, name: str) -> None:
    """Leave a notebook whose kernel runs on and open it again; waits for its widgets.

    JupyterLab looks for a widget's model for two seconds by the clock (`get_model` of its manager). A page that is busy
    making the models meanwhile finds the time over, does not look again and says "model not found"; a reader opens it
    once more.
    """
    kernels = lambda: {kernel["id"] for kernel in _request(f"{url}/api/kernels")} # noqa: E731
    before, ends = kernels(), time.monotonic() + PATIENCE / 1000
    lost, looking = map(page.get_by_text, ("Error displaying widget: model not found", "Loading widget..."))
    while time.monotonic() < ends:
        page.goto("about:blank")
        page.goto(f"{url}/lab/tree/{name}?token={TOKEN}")
        page.locator(".cotmi:visible").or_(lost).first.wait_for()
        looking.first.wait_for(state="hidden") # in the cells below, too
        assert kernels() == before, f"the kernels are {kernels()}, they were {before}: one ended"
        if not lost.count():
            return
    raise AssertionError(f"JupyterLab found no widgets of a running kernel within {PATIENCE // 1000} s")


def run_all(page) -> None:
    "Run every cell of the open notebook."
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('[data-command="runmenu:run-all"]').click()


# Texts of a figure that stand on one another or leave it, and the share of its width that is left to draw in.
CROWDED = """plot => {
  const places = ['.gtitle', '.legendtext', '.xtitle', '.ytitle', '.annotation-text', '.xtick text', '.ytick text',
                  '.cbtitle text', '.cbaxis text'].flatMap(kind => [...plot.querySelectorAll(kind)].map(e => [kind, e]))
    .filter(([, e]) => e.getBoundingClientRect().width && e.textContent.trim())
    .filter(([, e]) => getComputedStyle(e).visibility !== 'hidden')
    .map(([kind, e]) => [kind, e.textContent, e.getBoundingClientRect()]);
  const host = plot.getBoundingClientRect(), bad = [];
  places.forEach(([kind, text, a], i) => {
    if (a.left < host.left - 1 || a.right > host.right + 1 || a.top < host.top - 1 || a.bottom > host.bottom + 1)
      bad.push(`${text} leaves the figure`);
    places.slice(i + 1).forEach(([other, word, b]) => {
      if (kind === other && text === word) return; // the parts of one text
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5) bad.push(`${text} stands on ${word}`);
    });
  });
  return [bad, plot.querySelector('.js-plotly-plot')._fullLayout._size.w / host.width];
}"""


def has_room(plot, where: str) -> None:
    "A figure has no text on another or cut, and leaves most of its width to draw in."
    crowded, room = plot.evaluate(CROWDED)
    assert not crowded, f"{where}: {crowded[:5]}"
    assert room > 0.4, f"{where}: {room:.0%} of the figure is left to draw in"
