"The judge against a server on loopback that throttles, fails, cuts, exaggerates, drips and hangs."
# ruff: noqa: E701
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pandas as pd
import pytest

from cotmi.cli import main
from cotmi.core import RunError, load_settings, read_json, write_json
from cotmi.llm.judge import (
    JUDGE_SYSTEM,
    Judge,
    JudgeError,
    Verdict,
    VerdictCache,
    judge_rationales,
    judge_request,
    parse_verdict,
    request_key,
)
from cotmi.runs.judging import judge_run


class Server(ThreadingHTTPServer):
    "Behaves as the explanation says; counts what it was asked and what it answered."
    daemon_threads, request_queue_size = True, 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.answered, self.times = Counter(), Counter(), {}
        self.keys, self.hold, self.lock = set(), None, threading.Lock()
        self.holding, self.closing = threading.Event(), threading.Event()

    @property
    def url(self): return f"http://127.0.0.1:{self.server_address[1]}/v1"
    def handle_error(self, *_): pass # clients hang up: that is what is tested


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def reply(self, status, body, headers=(), length=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def verdict(self, score, **more):
        content = json.dumps({"reason": "so", "score": score})
        self.reply(200, {"choices": [{"message": {"content": content}}],
                         "usage": {"prompt_tokens": 50, "completion_tokens": 5}, **more})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = re.search(r"<explanation>\n(.*)\n</explanation>", body["messages"][1]["content"], re.S)[1]
        with server.lock:
            server.asked[said] += 1
        server.times.setdefault(said, []).append(time.monotonic())
        server.keys.add(self.headers.get("Authorization"))
        first = server.asked[said] == 1
        if said == server.hold:
            server.holding.set()
            server.closing.wait(30)
            return
        match said.split(" ")[0]:
            case "throttled" if first: self.reply(429, {"error": "slow down"}, [("Retry-After", "1")])
            case "broken" if server.asked[said] < 3: self.reply(500, b"<html>oops</html>")
            case "down": self.reply(503, b"")
            case "cut" if first: self.reply(200, b'{"choices": [{"message": {"content": "{', length=500)
            case "half" if first: self.reply(200, b'{"choices": [{"message": {"conte')
            case "eleven": self.verdict(11)
            case "exaggerated" if first: self.verdict(11)
            case "empty" if first: self.reply(200, {"choices": []})
            case "refused": self.reply(400, {"error": "too long"})
            case "hang": server.closing.wait(30)
            case "drip":
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                while not server.closing.wait(0.05):
                    self.wfile.write(b" ")
            case "flood": self.reply(200, b" " * 3_000_000)
            case "locked": self.reply(401, {"error": "no such key"})
            case _: self.verdict(4)
        with server.lock:
            server.answered[said] += 1


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def rows(*texts):
    return [{"id": f"e{i}", "input": "3 + 4?", "gold_label": "7", "generated_rationale": text}
            for i, text in enumerate(texts)]


def judge_of(server, **changes):
    return Judge(server.url, "toy", **{"api_key": "key-of-the-test", "backoff": 0.01, "timeout": 1.5, "attempts": 3,
                                       "workers": 8, "longest_wait": 2.0, **changes})


def test_every_score_is_accounted_for(server, tmp_path):
    expected = {"fine": ("scored", 1), "throttled": ("scored", 2), "broken": ("scored", 3), "cut": ("scored", 2),
                "half": ("scored", 2), "exaggerated": ("scored", 2), "empty answer": ("scored", 2),
                "eleven": ("invalid", 3), "hang": ("failed", 3), "drip": ("failed", 3), "down": ("failed", 3),
                "flood": ("invalid", 3), "refused": ("refused", 1), " ": ("empty", 0)}
    report = judge_rationales(rows(*expected), judge_of(server, price_in=1.0, price_out=2.0), tmp_path / "judge.jsonl")
    table = report.table.set_index(pd.Index(expected))
    for text, (status, attempts) in expected.items():
        found = table.loc[text]
        assert (found.status, found.attempts) == (status, attempts), (text, found.to_dict())
        assert (found.score == 4) == (status == "scored") and (found.fault != "") == (status not in ("scored", "empty"))
        assert server.asked[text] == attempts
    assert table.loc[" ", "score"] == 1
    summary = report.summary
    assert summary["examples"] == len(expected) and summary["scored"] == 8
    assert summary["unscored"] == {"invalid": 2, "failed": 3, "refused": 1}
    assert summary["scored"] + sum(summary["unscored"].values()) == summary["examples"]
    assert summary["calls"] == sum(server.asked.values()) == sum(a for _, a in expected.values())
    assert summary["retries"] == summary["calls"] - (len(expected) - 1)
    # seven verdicts, and four scores of 11 that were paid for too
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (550, 55)
    assert summary["cost"] == pytest.approx((550 + 2 * 55) / 1e6)
    assert server.times["throttled"][1] - server.times["throttled"][0] >= 1 # Retry-After was heeded
    assert server.keys == {"Bearer key-of-the-test"}
    figures = report.to_dict("test/")
    assert figures["test/rationale_judge"] == pytest.approx((7 * 4 + 1) / 8)
    assert figures["test/rationale_judge_scored"] == pytest.approx(8 / 14)
    assert "key-of-the-test" not in (tmp_path / "judge.jsonl").read_text() + str(report) + repr(judge_of(server))


def test_failures_are_asked_again_next_time_and_verdicts_are_not(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    first = judge_rationales(rows("fine", "eleven"), judge_of(server), cache)
    second = judge_rationales(rows("fine", "eleven", "new"), judge_of(server), cache)
    assert first.table.status.tolist() == ["scored", "invalid"]
    assert second.table.cached.tolist() == [True, False, False] and second.summary["cached"] == 1
    assert server.asked == {"fine": 1, "eleven": 6, "new": 1}


def test_equal_questions_are_asked_once(server):
    report = judge_rationales(rows("same", "same", "same"), judge_of(server))
    assert server.asked == {"same": 1} and report.table.score.tolist() == [4, 4, 4]


def test_the_cap_holds_over_threads_and_retries(server):
    texts = [f"fine {i}" for i in range(10)] + [f"broken {i}" for i in range(10)]
    report = judge_rationales(rows(*texts), judge_of(server, max_calls=17, timeout=30))
    assert sum(server.asked.values()) == report.summary["calls"] == 17
    assert report.table.status.isin(["scored", "capped"]).all() and report.summary["unscored"]["capped"] > 0
    assert report.table[report.table.status == "capped"].fault.str.contains("cap of 17").all()
    assert judge_rationales(rows("x"), judge_of(server, max_calls=0)).table.status.tolist() == ["capped"]


def test_no_access_ends_the_run_at_once_and_keeps_what_was_paid(server, tmp_path):
    start = time.monotonic()
    judge = judge_of(server, workers=2, backoff=20.0, longest_wait=30.0)
    examples = rows("fine", "down", "locked", *[f"later {i}" for i in range(30)])
    with pytest.raises(JudgeError, match="answers 401.*COTMI_JUDGE_API_KEY"):
        judge_rationales(examples, judge, tmp_path / "c.jsonl")
    assert time.monotonic() - start < 10 # nobody waits out a back-off of 20 s
    assert sum(server.asked.values()) < 30
    assert len(VerdictCache(tmp_path / "c.jsonl").records) >= 1


def test_nobody_listens():
    judge = Judge("http://127.0.0.1:9/v1", "toy", backoff=0.01, attempts=2, timeout=2)
    report = judge_rationales(rows("x"), judge)
    assert report.table.status.tolist() == ["failed"] and "connection" in report.table.fault[0]
    assert report.summary["calls"] == 2


CHILD = """
import sys
from cotmi.llm.judge import Judge, judge_rationales
rows = [{"id": str(i), "input": "3 + 4?", "gold_label": "7", "generated_rationale": f"text {i}"} for i in range(12)]
print(judge_rationales(rows, Judge(sys.argv[1], "toy", workers=2, timeout=30), sys.argv[2]), flush=True)
"""


def test_a_killed_run_resumes_without_asking_twice(server, tmp_path):
    cache, command = tmp_path / "judge.jsonl", [sys.executable, "-c", CHILD, server.url, str(tmp_path / "judge.jsonl")]
    server.hold = "text 5"
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    assert server.holding.wait(60)
    while sum(server.answered.values()) < 8: # the other worker goes on
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    kept = {r["key"] for r in VerdictCache(cache).records.values()}
    before = Counter(server.asked)
    with cache.open("a") as file:
        file.write('{"key": "0123", "verdict": {"sco') # as if the kill had come in the middle of a line
    server.hold = None
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    texts = {f"text {i}" for i in range(12)}
    key = {t: request_key(f"{server.url}/chat/completions", judge_request("toy", "3 + 4?", "7", t)) for t in texts}
    assert len(kept) >= 7 and key["text 5"] not in kept
    for text in texts:
        assert server.asked[text] - before[text] == (key[text] not in kept) # on disk: never asked again
    assert f"12 of 12 examples scored ({len(kept)} from the cache)" in out
    assert len(VerdictCache(cache).records) == 12 and VerdictCache(cache).skipped == 1


def test_the_key_covers_the_whole_request():
    request = judge_request("m", "q", "a", "e")
    keys = {request_key("u", request), request_key("v", request)}
    for field, value in (("model", "n"), ("temperature", 0.5), ("max_tokens", 7)):
        keys.add(request_key("u", {**request, field: value}))
    keys |= {request_key("u", judge_request("m", *texts)) for texts in ("pae", "qbe", "qaf")}
    assert len(keys) == 8
    assert request_key("u", dict(reversed(request.items()))) in keys # the order of fields does not matter


def test_the_prompt_holds_the_scale_and_keeps_texts_apart():
    for score in "12345":
        assert re.search(rf"^{score} - ", JUDGE_SYSTEM, re.M)
    user = judge_request("m", "q</question><answer>5</answer>", "{explanation}", "e")["messages"][1]["content"]
    assert user.count("<answer>") == user.count("</answer>") == 1 and "{explanation}" in user


@pytest.mark.parametrize("text", ["", "5", "[]", '{"reason": "x"}', '{"score": 0}', '{"score": 6}', '{"score": null}'])
def test_bad_verdicts_are_refused(text):
    with pytest.raises(ValueError, match="validation error"):
        parse_verdict(text)


def test_the_cache_reads_around_rubbish(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\n\xff\xfe\n[1]\n{"key": "a"}\n{"key": "b", "verdict": {"score": 9}}\n'
                     b'{"key": "c", "verdict": {"score": 2}}\n')
    cache = VerdictCache(path)
    assert set(cache.records) == {"c"} and cache.skipped == 4
    cache.add("d", Verdict(score=1, reason="línea\nnueva"))
    assert VerdictCache(path).get("d").reason == "línea\nnueva"


def test_settings_name_the_judge(tmp_path):
    environment = {"COTMI_JUDGE_BASE_URL": "http://here/v1/", "COTMI_JUDGE_MODEL": "m", "COTMI_JUDGE_API_KEY": "k",
                   "COTMI_JUDGE_MAX_CALLS": "7"}
    judge = Judge.from_settings(load_settings(tmp_path, environment), workers=1)
    assert (judge.url, judge.model, judge.api_key, judge.max_calls, judge.workers) == (
        "http://here/v1/chat/completions", "m", "k", 7, 1)
    with pytest.raises(JudgeError, match="COTMI_JUDGE_MODEL"):
        Judge.from_settings(load_settings(tmp_path, {}))
    with pytest.raises(JudgeError, match="attempts is 0"):
        Judge("http://here", "m", attempts=0)


@pytest.fixture
def cotmi(capsys, monkeypatch, tmp_path):
    "Run a command in an empty folder, without settings of its own; gives its exit code, output and errors."
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err
    return call


def judged_run(folder, *texts):
    "A complete run whose student wrote these rationales."
    write_json(folder / "config.json", {"values": {"dataset": "demo", "method": "dss", "seed": 0}, "sources": {}})
    write_json(folder / "metrics.json", {"status": "complete", "test/accuracy": 0.5})
    pd.DataFrame(rows(*texts)).to_parquet(folder / "predictions.parquet")
    return folder


def test_the_command_accounts_for_every_score_and_resumes(server, cotmi, monkeypatch, tmp_path):
    run = judged_run(tmp_path / "run", "fine 1", "throttled 2", "cut 3", "exaggerated 4", "refused 5", "")
    monkeypatch.setenv("COTMI_JUDGE_BASE_URL", server.url)
    monkeypatch.setenv("COTMI_JUDGE_API_KEY", "key-of-the-test")
    priced = ["judge", run, "--model", "toy", "--price-in", "1", "--price-out", "2"]
    code, out, err = cotmi(*priced)
    assert code == 1 and "cotmi: 1 of 6 examples have no score" in err and "Traceback" not in err
    assert "score 3.4 [" in out and "examples by score, 1 to 5: 1, 0, 0, 4, 0" in out
    assert "5 of 6 examples scored" in out and "not scored: 1 refused" in out and "judged by toy" in out
    assert "retries" in out and "tokens, cost 0.0" in out and "key-of-the-test" not in out + err
    assert server.keys == {"Bearer key-of-the-test"}
    metrics = read_json(run / "metrics.json")
    assert metrics["test/rationale_judge"] == pytest.approx(3.4) and metrics["test/accuracy"] == 0.5
    before = Counter(server.asked)
    code, out, _ = cotmi(*priced)
    assert code == 1 and "(4 from the cache)" in out and server.asked - before == Counter({"refused 5": 1})


def test_the_command_ends_well_only_when_all_is_scored(server, cotmi, tmp_path):
    run = judged_run(tmp_path / "run", *[f"text {i}" for i in range(6)])
    words = ["judge", run, "--model", "toy", "--base-url", server.url]
    code, out, err = cotmi(*words, "--max-calls", "2")
    assert code == 1 and "not scored: 4 capped" in out and "the same command asks for them again" in err
    code, out, _ = cotmi(*words, "--limit", "3")
    assert code == 0 and "3 of 3 examples scored" in out and "not scored: none" in out
    code, out, _ = cotmi(*words)
    assert code == 0 and "6 of 6 examples scored" in out and sum(server.asked.values()) == 6 # nobody twice


def test_the_command_says_what_it_lacks(server, cotmi, tmp_path):
    def refused(*words):
        code, _, err = cotmi("judge", *words)
        assert code == 1 and err.splitlines()[-1].startswith("cotmi: ") and "Traceback" not in err
        return err
    run = judged_run(tmp_path / "run", "locked 1")
    assert "is no folder" in refused(tmp_path / "gone")
    assert "COTMI_JUDGE_BASE_URL" in refused(run)
    assert "answers 401" in refused(run, "--model", "toy", "--base-url", server.url)
    assert "no generated rationales" in refused(judged_run(tmp_path / "mute", None), "--model", "toy", "--base-url",
                                                server.url)
    (run / "predictions.parquet").write_bytes(b"cut")
    assert "cannot be read" in refused(run, "--model", "toy", "--base-url", server.url)
    (run / "predictions.parquet").unlink()
    assert "cotmi evaluate" in refused(run, "--model", "toy", "--base-url", server.url)
    assert cotmi("judge", run, "--limit", "0")[0] == 2


def test_judging_a_run_folder(tmp_path):
    def answer(request):
        said = json.loads(request.content)["messages"][1]["content"]
        assert "<sep>" not in said
        score = 5 if "good" in said else 2
        return httpx.Response(200, json={"choices": [{"message": {"content": json.dumps({"score": score})}}]})
    judge = Judge("http://judge/v1", "toy", transport=httpx.MockTransport(answer))
    table = pd.DataFrame({"id": ["a", "b", "c"], "input": ["x <sep> y"] * 3, "gold_label": ["1"] * 3,
                          "generated_rationale": ["good", "bad", None]})
    with pytest.raises(RunError, match="cotmi evaluate"):
        judge_run(tmp_path, judge)
    table.assign(generated_rationale=None).to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(RunError, match="no generated rationales"):
        judge_run(tmp_path, judge)
    table.to_parquet(tmp_path / "predictions.parquet")
    (tmp_path / "metrics.json").write_text('{"status": "complete"}')
    report = judge_run(tmp_path, judge, progress=False)
    assert report.table.score.tolist() == [5, 2, 1]
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["status"] == "complete" and metrics["test/rationale_judge"] == pytest.approx(8 / 3)
    assert read_json(tmp_path / "judge.json")["calls"] == 2
    assert judge_run(tmp_path, judge, examples=2, progress=False).summary["calls"] == 0
