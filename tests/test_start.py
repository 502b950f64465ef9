"""Time to the first word: help at once, and what cannot work told in seconds, before a kernel starts.

Processor time is measured where a process of its own answers, since a busy machine makes any wait long.
"""

import os
import resource
import socket
import subprocess
import sys
import time
from threading import Thread

import pytest

from cotmi.runs import experiments


def seconds(cwd, *words: str) -> tuple[float, subprocess.CompletedProcess]:
    "The processor time that a process takes."
    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    environ = {k: v for k, v in os.environ.items() if not k.startswith("COTMI_")}
    before = used()
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120)
    return used() - before, done


MAIN = "from cotmi.cli import main; main()"


@pytest.mark.parametrize("limit, words", [
    (0.3, ["-c", "import cotmi"]), (0.6, ["-c", MAIN, "--help"]), (0.6, ["-c", MAIN, "run", "--help"]),
    (0.6, ["-c", MAIN, "--version"]),
], ids=["import", "help", "help of a command", "version"])
def test_the_first_word_comes_at_once(tmp_path, limit, words):
    spent, done = min((seconds(tmp_path, *words) for _ in range(2)), key=lambda x: x[0])
    assert done.returncode == 0 and spent <= limit, f"{spent:.2f} s"


def test_missing_data_are_told_in_two_seconds_and_before_a_kernel(tmp_path):
    spent, done = min((seconds(tmp_path, "-c", MAIN, "run", "svamp") for _ in range(2)), key=lambda x: x[0])
    assert done.returncode == 1 and "`cotmi data fetch dss` gets it" in done.stderr
    assert spent <= 2, f"{spent:.2f} s"
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
