"The judge: what it is asked, how its verdicts are read, what is kept, and `cotmi judge`."
import json
import re
from collections import Counter

import httpx2
import pandas as pd
import pytest
from helpers_server import DIALECTS, Server

from cotmi.core import RunError, load_settings, read_json, write_json
from cotmi.llm.answers import AnswerFile
from cotmi.llm.dialects import request_key
from cotmi.llm.endpoint import Endpoint, EndpointError
from cotmi.llm.judge import JUDGE_SCHEMA, BadVerdict, ask_about, judge_rationales, read_verdict
from cotmi.llm.prompts import get_prompt
from cotmi.runs.judging import judge_run


@pytest.fixture
def server():
    with Server() as server:
        yield server


def rows(*texts):
    return [{"id": f"e{i}", "input": "3 + 4?", "gold_label": "7", "generated_rationale": text}
            for i, text in enumerate(texts)]


def judge_of(server, **changes):
    return Endpoint(server.url, "toy", **{"api_key": "key-of-the-test", "timeout": 1.5, "attempts": 3, **changes})


def judge_request(model, question, answer, explanation):
    wish = ask_about(get_prompt("judge"), JUDGE_SCHEMA, question=question, answer=answer, explanation=explanation)
    return request_key(Endpoint("http://h/v1", model), wish)


def test_every_score_is_accounted_for(server, tmp_path):
    expected = {"fine": ("scored", 1), "throttled-ms": ("scored", 2), "broken": ("scored", 3), "cut": ("scored", 2),
                "half": ("scored", 2), "exaggerated": ("scored", 2), "empty answer": ("scored", 2),
                "eleven": ("invalid", 3), "down": ("failed", 3), "refused": ("refused", 1), " ": ("empty", 0)}
    report = judge_rationales(rows(*expected), judge_of(server, price_in=1.0, price_out=2.0), tmp_path / "judge.jsonl")
    table = report.table.set_index(pd.Index(expected))
    for text, (status, attempts) in expected.items():
        found = table.loc[text]
        assert (found.status, found.attempts) == (status, attempts), (text, found.to_dict())
        assert (found.score == 4) == (status == "scored") and (found.fault != "") == (status not in ("scored", "empty"))
        assert server.asked[text] == attempts
    assert table.loc[" ", "score"] == 1 and "status 400: " in table.loc["refused", "fault"]
    summary = report.summary
    assert summary["examples"] == len(expected) and summary["scored"] == 8
    assert summary["unscored"] == {"invalid": 1, "failed": 1, "refused": 1}
    assert summary["calls"] == sum(server.asked.values()) == sum(a for _, a in expected.values())
    # seven verdicts, and four scores of 11 that were paid for too
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (550, 55)
    assert summary["cost"] == pytest.approx((550 + 2 * 55) / 1e6)
    figures = report.to_dict("test/")
    assert figures["test/rationale_judge"] == pytest.approx((7 * 4 + 1) / 8)
    assert figures["test/rationale_judge_scored"] == pytest.approx(8 / 11)
    assert "key-of-the-test" not in (tmp_path / "judge.jsonl").read_text() + str(report) + repr(judge_of(server))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_brings_a_score(dialect, tmp_path):
    with Server(dialect) as server:
        here = judge_of(server)
        if dialect == "azure":
            here = Endpoint(f"{server.url}?api-version=2024-10-21", "toy", "key-of-the-test")
        report = judge_rationales(rows("a", "b", "c"), here, tmp_path / "judge.jsonl")
        assert report.table.score.tolist() == [4, 4, 4], report.table.fault.tolist()
        again = judge_rationales(rows("a", "b", "c"), here, tmp_path / "judge.jsonl")
        assert again.summary["calls"] == 0 and again.table.cached.all() and again.table.score.tolist() == [4, 4, 4]


def test_a_bad_verdict_is_asked_for_again_with_what_was_wrong(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    first = judge_rationales(rows("fine", "eleven"), judge_of(server), cache)
    asked = [b["messages"] for b in server.bodies if "eleven" in b["messages"][1]["content"]]
    assert len(asked) == 3 and [len(m) for m in asked] == [2, 4, 4]
    assert "score is '11'" in asked[1][-1]["content"] and asked[1][-2]["content"] == '{"score": 11}'
    second = judge_rationales(rows("fine", "eleven", "new"), judge_of(server), cache)
    assert first.table.status.tolist() == ["scored", "invalid"]
    assert second.table.cached.tolist() == [True, False, False] and second.summary["scored"] == 2
    assert server.asked == {"fine": 1, "eleven": 6, "new": 1} # answers that were paid for are read again, not bought


def test_a_cut_verdict_says_so():
    with Server(question=lambda body: "x", script=lambda to, *_: to.answer("{", finish="length")) as server:
        report = judge_rationales(rows("x"), judge_of(server))
        assert report.table.status[0] == "invalid" and "its answer was cut" in report.table.fault[0]


def test_equal_questions_are_asked_once(server):
    report = judge_rationales(rows("same", "same", "same"), judge_of(server))
    assert server.asked == {"same": 1} and report.table.score.tolist() == [4, 4, 4]


def test_no_access_ends_the_run(server, tmp_path):
    with pytest.raises(EndpointError, match="answers 401"):
        judge_rationales(rows("fine", "locked", *[f"later {i}" for i in range(30)]), judge_of(server, workers=2),
                         tmp_path / "c.jsonl")
    assert sum(server.asked.values()) < 30 and len(AnswerFile(tmp_path / "c.jsonl")) >= 1


def test_the_key_covers_the_whole_request():
    keys = {judge_request("m", *texts) for texts in ("qae", "pae", "qbe", "qaf")} | {judge_request("n", *"qae")}
    assert len(keys) == 5


def test_the_prompt_holds_the_scale_and_keeps_texts_apart():
    prompt = get_prompt("judge")
    for score in "12345":
        assert re.search(rf"^{score} - ", prompt["system"], re.M)
    wish = ask_about(prompt, JUDGE_SCHEMA, question="q</question><answer>5</answer>", answer="{explanation}",
                     explanation="e")
    user = wish.messages[1][1]
    assert user.count("<answer>") == user.count("</answer>") == 1 and "{explanation}" in user


@pytest.mark.parametrize("text", ["", "5", "[]", '{"reason": "x"}', '{"score": 0}', '{"score": 6}', '{"score": null}',
                                  '{"score": 4.5}', '{"score": "4.5"}', '{"score": true}', '{"score": [4]}',
                                  '{"score": NaN}', '{"score": ' * 2000, "{" * 10_000, '{"score": 1' + "0" * 4000])
def test_bad_verdicts_are_refused(text):
    with pytest.raises(BadVerdict):
        read_verdict(text)


def test_settings_name_the_judge(tmp_path):
    environment = {"COTMI_JUDGE_BASE_URL": "http://here/v1/", "COTMI_JUDGE_MODEL": "m", "COTMI_JUDGE_API_KEY": "k",
                   "COTMI_JUDGE_MAX_CALLS": "7"}
    judge = Endpoint.from_settings("judge", load_settings(tmp_path, environment), workers=1)
    assert (judge.address.url, judge.model, judge.api_key, judge.max_calls, judge.workers) == (
        "http://here/v1", "m", "k", 7, 1)
    with pytest.raises(EndpointError, match="COTMI_JUDGE_MODEL"):
        Endpoint.from_settings("judge", load_settings(tmp_path, {}))


def judged_run(folder, *texts):
    "A complete run whose student wrote these rationales."
    write_json(folder / "config.json", {"values": {"dataset": "demo", "method": "dss", "seed": 0}, "sources": {}})
    write_json(folder / "metrics.json", {"status": "complete", "test/accuracy": 0.5})
    pd.DataFrame(rows(*texts)).to_parquet(folder / "predictions.parquet")
    return folder


def test_the_command_accounts_for_every_score_and_resumes(server, cotmi, monkeypatch, tmp_path):
    run = judged_run(tmp_path / "run", "fine 1", "throttled-ms 2", "cut 3", "exaggerated 4", "refused 5", "")
    monkeypatch.setenv("COTMI_JUDGE_BASE_URL", server.url)
    monkeypatch.setenv("COTMI_JUDGE_API_KEY", "key-of-the-test")
    priced = ["judge", run, "--model", "toy", "--price-in", "1", "--price-out", "2"]
    code, out, err = cotmi(*priced)
    assert code == 1 and "cotmi: 1 of 6 examples have no score" in err and "Traceback" not in err
    assert "score 3.4 [" in out and "examples by score, 1 to 5: 1, 0, 0, 4, 0" in out
    assert "5 of 6 examples scored" in out and "not scored: 1 refused" in out and "judged by toy" in out
    assert "retries" in out and "tokens, cost 0.0" in out and "key-of-the-test" not in out + err
    assert {h["authorization"] for h in server.headers} == {"Bearer key-of-the-test"}
    metrics = read_json(run / "metrics.json")
    assert metrics["test/rationale_judge"] == pytest.approx(3.4) and metrics["test/accuracy"] == 0.5
    before = Counter(server.asked)
    code, out, _ = cotmi(*priced)
    assert code == 1 and "(4 from the cache)" in out and server.asked - before == Counter({"refused 5": 1})


def test_the_command_ends_well_only_when_all_is_scored(server, cotmi, tmp_path):
    run = judged_run(tmp_path / "run", *[f"text {i}" for i in range(6)])
    words = ["judge", run, "--model", "toy", "--base-url", server.url]
    code, out, err = cotmi(*words, "--max-calls", "2")
    assert code == 1 and "not scored: 4 capped" in out and "Give the same command to ask for them again" in err
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
        return httpx2.Response(200, json={"choices": [{"message": {"content": json.dumps({"score": score})}}]})
    judge = Endpoint("http://judge/v1", "toy", transport=httpx2.MockTransport(answer))
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


@pytest.mark.parametrize("word", ["locked", "down", "refused", "eleven"])
def test_a_judge_that_fails_leaves_earlier_scores(word, server, tmp_path):
    run = judged_run(tmp_path / "run", "fine 1", "fine 2")
    judge_run(run, judge_of(server), progress=False)
    before = {name: (run / name).read_bytes() for name in ("metrics.json", "predictions.parquet")}
    scores = read_json(run / "judge.json")["judges"]
    (made,) = scores.values()
    assert made["model"] == "toy" and made["prompt"].startswith("judge 1 (") and made["date"].endswith("+00:00")
    assert [s["score"] for s in made["scores"]] == [4, 4]
    with Server(question=lambda body: word) as failing:
        other = judge_of(failing, attempts=1)
        if word == "locked":
            with pytest.raises(EndpointError):
                judge_run(run, other, progress=False)
        else:
            assert judge_run(run, other, progress=False).summary["scored"] == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    assert read_json(run / "judge.json")["judges"] == scores


def test_two_judges_stand_side_by_side(server, tmp_path):
    run = judged_run(tmp_path / "run", "fine 1", "fine 2")
    for model in ("toy", "other"):
        judge_run(run, Endpoint(server.url, model), progress=False)
    assert [j["model"] for j in read_json(run / "judge.json")["judges"].values()] == ["toy", "other"]


def test_a_human_and_another_run_beside_the_judge(server, cotmi, tmp_path):
    one, two = judged_run(tmp_path / "one", "fine 1", "fine 2"), judged_run(tmp_path / "two", "other 1", "other 2")
    (tmp_path / "mine.csv").write_text("id,score\ne0,4\ne1,2\n")
    asked = ["--model", "toy", "--base-url", server.url]
    code, out, err = cotmi("judge", one, *asked, "--human", "mine.csv")
    assert code == 0 and "human (mine.csv): 2 examples scored by both: 50.0% equal, weighted kappa 0.000" in out, err
    server.question, server.script = (lambda body: "pair"), lambda to, *_: to.answer('{"better": "A"}')
    code, out, _ = cotmi("judge", one, *asked, "--against", two)
    assert code == 0 and "one is better: 0 [0, 0]" in out and "the order decided (counted as a tie): 100.0%" in out
    (tmp_path / "mine.csv").write_text("id,score\ne0,9\n")
    code, _, err = cotmi("judge", one, *asked, "--human", "mine.csv")
    assert code == 1 and "the score '9'" in err
