"""Inputs that nobody can use: each gets one message that says what to do, and changes nothing."""

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bad_inputs import DEEP, LONG, RANDOM, RUN, Bad, bad_inputs

from cotmi import cli
from cotmi.core import CotmiError, RunFile
from cotmi.runs.execution import execute
from cotmi.training.run_config import RunConfig

TABLE = bad_inputs()
ADVICE = re.compile(
    r"\b(expected|allowed|use|set|put|check|try|install|run|choose|remove|give|take|write|make|get|ask|leave|map|wait|add|"
    r"download|convert|save|mend|open|free|pass|wrap|evaluate|train|look|looks|rename|copy|need|needs|needed|"
    r"(?-i:Name)|did you mean|known are|names? them all|cotmi [a-z]+|--[a-z]+)\b",
    re.IGNORECASE,
)
PROGRESS = re.compile(r"\d%\||\dit \[\d\d:")
ANSWERS = {
    "401": (401, "no"),
    "403": (403, "no"),
    "404": (404, "no"),
    "400": (400, "no"),
    "page": (200, "<html>hello</html>"),
    "nothing": (200, ""),
    "deep": (200, "[" * DEEP),
    "list": (200, "[1]"),
    "no_choices": (200, '{"choices": []}'),
    "null_choices": (200, '{"choices": null}'),
    "null_content": (200, '{"choices": [{"message": {"content": null}}]}'),
    "binary": (200, RANDOM),
    "long_number": (200, f'{{"choices": {LONG}}}'),
    "cut": (200, '{"choices": [{"mess'),
    "prose": (200, json.dumps({"choices": [{"message": {"content": "I would rather not."}}]})),
    "good": (200, json.dumps({"choices": [{"message": {"content": '{"score": 4, "reason": "fine"}'}}]})),
}


class Scripted(BaseHTTPRequestHandler):
    "An endpoint that answers as the first part of its path says."

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        mode = self.path.split("/")[1]
        if mode == "elsewhere":
            self.send_response(307)
            self.send_header("location", "http://127.0.0.1:9/v1/chat/completions")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        status, body = ANSWERS[mode]
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    "The address of the scripted endpoint."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished run of two steps."
    config = RunConfig(student="builtin:tiny", max_steps=2, demo_size=60, batch_size=8, estimate_mi=False, dropout=0.0)
    return execute(config, out=tmp_path_factory.mktemp("runs")).path


def tree(folder: Path) -> dict[str, str]:
    "What a folder holds: the kind of each entry, and a hash of each file. Locks and paid answers are no content."
    held = {}
    for path in sorted(folder.rglob("*")):
        kind = stat.S_IFMT(path.lstat().st_mode)
        content = path.read_bytes() if stat.S_ISREG(kind) else b""
        if path.suffix != ".lock" and path.name != RunFile.VERDICTS and "__pycache__" not in path.parts:
            held[str(path.relative_to(folder))] = f"{kind} {hashlib.sha256(content).hexdigest()}"
    return held


def answer(case: Bad, url: str, capsys) -> str:
    "The one message that a row gets."
    if case.call is not None:
        with pytest.raises(CotmiError) as raised:
            case.call()
        return str(raised.value)
    with pytest.raises(SystemExit) as ended:
        cli.main([word.replace("{url}", url) for word in case.words])
    said = capsys.readouterr()
    assert ended.value.code not in (0, None), f"it was taken for good:\n{said.out[-500:]}"
    told = [line for line in said.err.splitlines() if line.strip() and not PROGRESS.search(line)]
    assert len(told) == 1 and told[0].startswith("cotmi: "), said.err[-2000:]
    assert "Traceback" not in said.out + said.err
    return told[0].removeprefix("cotmi: ")


@pytest.fixture
def in_time():
    "Whoever waits for a pipe, or an endpoint, is woken."

    def wake(*_):
        pytest.fail("it takes longer than 20 seconds")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(row, id=row.id, marks=pytest.mark.xfail(strict=True, reason=row.why) if row.why else ())
        for row in TABLE
    ],
)
def test_bad_input_gets_one_message_and_changes_nothing(case, in_time, url, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_experiment", lambda *a, **k: pytest.fail("a notebook was started"))
    monkeypatch.setattr(cli, "make_sweep", lambda *a, **k: pytest.fail("a sweep was started"))
    for name in [name for name in os.environ if name.startswith("COTMI_")]:
        monkeypatch.delenv(name)
    for name, text in case.environ.items():
        monkeypatch.setenv(name, text)
    if case.group in ("run folder", "judge") or str(RUN) in case.words:
        shutil.copytree(finished, tmp_path / RUN, copy_function=os.link)
    case.make(tmp_path)
    before = tree(tmp_path)
    message = answer(case, url, capsys)
    if "unforeseen" in message or "\n" in message or len(message) > 400:
        pytest.fail(f"no message of ours: {message}")
    if not ADVICE.search(message):
        pytest.fail(f"it does not say what to do: {message}")
    assert tree(tmp_path) == before, "something was changed"


def test_table_is_large_and_named():
    counts = Counter(row.group for row in TABLE)
    assert len(TABLE) - counts["value"] >= 250 and len({row.id for row in TABLE}) == len(TABLE)
    assert set(counts) == {
        "data",
        "published data",
        "settings",
        "environment",
        "sweep",
        "value",
        "run folder",
        "judge",
        "student",
    }
