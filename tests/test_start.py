"""The first word: help without what takes long to import, and what cannot work told before a kernel starts."""

import json
import os
import socket
import subprocess
import sys
import time
from threading import Thread

import pytest

from cotmi.runs import experiments

LONG = ("numpy", "scipy", "pandas", "torch", "transformers", "datasets", "sklearn", "plotly", "papermill", "nbformat",
        "jupyter_client", "IPython", "ipywidgets", "huggingface_hub") # from a tenth of a second to several
ENDED = """import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules}))))
"""
MAIN = "from cotmi.cli import main; main()"


def imported(cwd, code: str, *words: str) -> tuple[set[str], subprocess.CompletedProcess]:
    "Of `LONG` what a process has imported when it ends."
    environ = {k: v for k, v in os.environ.items() if not k.startswith("COTMI_")}
    done = subprocess.run([sys.executable, "-c", ENDED + code, *words], cwd=cwd, env=environ, capture_output=True,
                          text=True, timeout=120)
    return set(LONG) & set(json.loads(done.stdout.splitlines()[-1])), done


@pytest.mark.parametrize("code, words", [
    ("import cotmi", []), (MAIN, ["--help"]), (MAIN, ["run", "--help"]), (MAIN, ["sweep", "--help"]),
    (MAIN, ["--version"]),
], ids=["import", "help", "help of a command", "help of another", "version"])
def test_the_first_word_waits_for_nothing(tmp_path, code, words):
    found, done = imported(tmp_path, code, *words)
    assert (done.returncode, found) == (0, set())


def test_missing_data_are_told_before_torch_and_a_kernel(tmp_path):
    found, done = imported(tmp_path, MAIN, "run", "svamp")
    assert done.returncode == 1 and "`cotmi data fetch dss` gets it" in done.stderr
    assert found <= {"numpy", "pandas", "datasets", "huggingface_hub"}
    assert list(tmp_path.iterdir()) == [], "something was begun"


@pytest.fixture
def silent_hub(monkeypatch):
    "A hub that takes a call and says nothing."
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []
        Thread(target=lambda: kept.append(server.accept()), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.mark.parametrize("words, said", [
    (["run", "demo", "-p", "student", "nobody/nothing"], "The student nobody/nothing could not be loaded from the hub"),
    (["data", "hub:nobody/nothing"], "The hub dataset 'nobody/nothing' cannot be loaded"),
], ids=["student", "data"])
def test_a_silent_hub_is_told_in_five_seconds_and_before_a_kernel(command, monkeypatch, silent_hub, words, said):
    import cotmi.data.loading  # noqa: F401  what takes long is to be the hub, not Python

    monkeypatch.setattr(experiments, "execute_notebook", lambda *_: pytest.fail("a kernel was started"))
    began = time.monotonic()
    code, _, err = command(*words)
    assert code == 1 and said in err and len(err.splitlines()) == 1
    assert time.monotonic() - began < 5.5, "four seconds of patience, and the rest"
