"A student is shared with a card made from its run: to a folder, and to a stub of the hub on loopback."

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from cotmi import Run
from cotmi.core import StudentError
from cotmi.runs.sharing import model_card


class Hub(BaseHTTPRequestHandler):
    "What an upload in one commit asks of the hub; every file comes within the commit."
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def reply(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self): self.reply({"sha": "0" * 40, "siblings": [], "id": "me/mine"})
    do_HEAD = do_GET

    def do_POST(self):
        size = self.headers.get("Content-Length")
        body = self.rfile.read(int(size)) if size else b"".join(self.chunks())
        server = self.server
        server.asked.append(self.path)
        if server.refuse:
            return self.reply({"error": "no"}, server.refuse)
        if self.path.endswith("/preupload/main"):
            return self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                         for f in json.loads(body)["files"]]})
        if "/commit/" in self.path:
            rows = [json.loads(line) for line in body.splitlines()]
            server.commits.append({r["value"]["path"]: base64.b64decode(r["value"]["content"])
                                   for r in rows if r["key"] == "file"})
            there = f"http://{self.headers['Host']}/me/mine/commit/1"
            return self.reply({"commitUrl": there, "commitOid": "1" * 40, "success": True})
        if self.path == "/api/repos/create":
            server.created = json.loads(body)
        self.reply({"url": f"http://{self.headers['Host']}/me/mine", "name": "me/mine", "id": "1"})

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.commits, server.created, server.refuse = [], [], {}, 0
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield server
    server.shutdown()


def test_a_run_goes_to_a_folder_that_transformers_loads(command, run_copy, tmp_path):
    code, out, _ = command("push", run_copy, "--folder", tmp_path / "shared")
    assert code == 0 and "Written to" in out
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    card = (tmp_path / "shared" / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card and str(tmp_path) not in card, "a path of this machine is nobody's business"
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "shared").num_parameters() > 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "shared")) > 0
    assert not (run_copy / "student" / "README.md").exists(), "the run stays as it is"


def test_a_run_goes_to_the_hub_in_one_commit(command, run_copy, hub):
    code, out, err = command("push", run_copy, "me/mine", "--private")
    assert code == 0 and out.strip().endswith("/me/mine"), err
    (commit,) = hub.commits
    assert "private" in (hub.created.get("visibility"), *["private"] * bool(hub.created.get("private"))), hub.created
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(commit)
    assert b'from_pretrained("me/mine")' in commit["README.md"]


def test_a_student_goes_to_the_hub(run_copy, hub):
    run = Run(run_copy)
    assert run.load_student().push_to_hub("me/mine", model_card(run, "me/mine")).endswith("/me/mine")
    assert {"README.md", "model.safetensors"} <= set(hub.commits[0])


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_one_message(command, run_copy, hub, status):
    hub.refuse = status
    code, _, err = command("push", run_copy, "me/mine")
    assert code == 1 and not hub.commits and err.count("\n") == 1 and len(err) <= 400 and "hf auth login" in err


def test_only_the_card_without_a_name(command, run_copy, hub):
    code, out, err = command("push", run_copy)
    assert code == 0 and not hub.asked and "## What not to conclude" in out and "Nothing was published" in err


@pytest.mark.parametrize("dataset, augment, said, header", [
    ("anli1", False, "**Not for commercial use**", True), ("svamp", True, "ASDiv", True),
    ("cqa", False, "BSD-3-Clause", False), ("svamp", False, "MIT", False), ("/home/me/mine.csv", False, "terms", False),
])
def test_terms_of_the_data_stand_on_the_card(run_copy, dataset, augment, said, header):
    path = run_copy / "config.json"
    stored = json.loads(path.read_text())
    stored["values"] |= {"dataset": dataset, "augment": augment}
    path.write_text(json.dumps(stored))
    card = model_card(Run(run_copy))
    assert said in card and ("license: cc-by-nc-4.0" in card) == header and "/home/me" not in card


def test_figures_have_their_intervals(run_copy):
    run = Run(run_copy)
    value, low, high = (100 * run.metrics[f"test/accuracy{end}"] for end in ("", "_low", "_high"))
    assert f"| test accuracy (%) | {value:.1f} | {low:.1f} – {high:.1f} |" in model_card(run)


def test_what_is_not_done_is_not_shared(command, run_copy, hub):
    for change, said in ((lambda: (run_copy / "student" / "config.json").unlink(), "nothing to share"),):
        change()
        code, _, err = command("push", run_copy, "me/mine")
        assert code == 1 and said in err and not hub.asked


def test_a_name_that_is_none(run_copy):
    with pytest.raises(StudentError, match="expected is owner/name"):
        Run(run_copy).load_student().push_to_hub("mine")
