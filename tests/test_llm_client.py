"The client against a server on loopback that wants other words, throttles, fails, cuts, drips, floods and redirects."
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter

import pytest
from helpers_server import DIALECTS, VERDICT, Server, last_words

from cotmi.core import CotmiError, load_settings
from cotmi.llm.answers import Answer, AnswerFile
from cotmi.llm.client import Unanswered, for_each
from cotmi.llm.dialects import Wish
from cotmi.llm.endpoint import Endpoint, EndpointError, find_key, read_address

SCHEMA = json.dumps({"type": "object"})
KEY = "key-of-the-test"


async def ask(client, text):
    "The answer, or what became of the question."
    try:
        return await client.ask(Wish((("user", text),), schema=SCHEMA, stop=("Q:",)))
    except Unanswered as lost:
        return lost


@pytest.fixture
def server():
    with Server(question=last_words) as server:
        yield server


def endpoint(server, **changes):
    return Endpoint(server.url, "toy", **{"api_key": KEY, "timeout": 1.5, "attempts": 3, **changes})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_served_without_a_flag_and_learnt_once(dialect, tmp_path):
    with Server(dialect, question=last_words) as server:
        query = "?api-version=2024-10-21" if dialect == "azure" else ""
        here = Endpoint(server.url + query, "toy", KEY, workers=8)
        texts = [f"fine {i}" for i in range(24)]
        replies, account = for_each(texts, ask, here, tmp_path / "a.jsonl")
        assert all("score" in reply.answer.content for reply in replies)
        refusals = {"newer": 2, "schema_only": 1, "no_format": 2}.get(dialect, 0)
        assert account.calls == len(server.bodies) == 24 + refusals # what is refused is learnt once, not by each worker
        again, later = for_each(["new"], ask, here, tmp_path / "a.jsonl")
        assert later.calls == 1, "the dialect was not remembered"
        assert account.completion_tokens == server.tokens["completion"] - later.completion_tokens


def test_a_dialect_can_be_set(tmp_path):
    with Server("newer", question=last_words) as server:
        here = endpoint(server, dialect={"length": "max_completion_tokens", "temperature": False, "format": ""})
        (reply,), account = for_each(["fine"], ask, here)
        assert account.calls == 1 and "response_format" not in server.bodies[0] and server.bodies[0]["stop"] == ["Q:"]
        (lost,), account = for_each(["fine"], ask, endpoint(server, dialect={"length": "max_tokens"}))
        assert lost.kind == "refused" and "max_completion_tokens" in str(lost) and account.calls == 1
    with pytest.raises(EndpointError, match="allowed are"):
        for_each(["fine"], ask, endpoint(server, dialect={"format": "xml"}))


def test_more_fields_go_along(server):
    for_each(["fine"], ask, endpoint(server, extra={"chat_template_kwargs": {"enable_thinking": False}}))
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


FATES = { # first word of a question: what becomes of it, and in how many requests
    "fine": ("", 1), "throttled": ("", 2), "throttled-ms": ("", 2), "throttled-date": ("", 2), "broken": ("", 3),
    "cut": ("", 2), "half": ("", 2), "html": ("", 2), "deep": ("", 2), "plain": ("", 1), "empty": ("", 2),
    "down": ("failed", 3), "hang": ("failed", 3), "drip": ("failed", 3), "refused": ("refused", 1),
    "flood": ("invalid", 1), "zipped": ("invalid", 1),
}


def test_every_request_is_accounted_for(server, tmp_path):
    here = endpoint(server, workers=len(FATES), price_in=1.0, price_out=2.0, largest=1_000_000)
    replies, account = for_each(FATES, ask, here, tmp_path / "a.jsonl")
    for (text, (fate, tries)), reply in zip(FATES.items(), replies, strict=True):
        assert server.asked[text] == tries, text
        assert (reply.kind if fate else reply.answer.content) == (fate or VERDICT), (text, str(reply))
        assert fate or reply.tries == tries
    assert account.calls == server.asked.total() == sum(tries for _, tries in FATES.values())
    assert (account.prompt_tokens, account.completion_tokens) == (server.tokens["prompt"], server.tokens["completion"])
    metered = (server.tokens["prompt"] + 2 * server.tokens["completion"]) / 1e6
    assert account.cost - account.unmetered_cost == pytest.approx(metered)
    assert account.unmetered == 1 and account.unmetered_cost > 0 # the plain one counts as the most that it can cost
    whole = sum(not fate for fate, _ in FATES.values())
    assert account.answers == whole == len(AnswerFile(tmp_path / "a.jsonl"))
    assert account.faults["status 429"] == 3 and account.faults["status 500"] == 2 and account.faults["status 503"] == 3
    assert account.faults["time-out"] == 6 and account.faults["too large"] == 2 and account.faults["cut answer"] == 1
    assert "slow down" in account.words["status 429"]
    for text, least in {"throttled": 1.0, "throttled-ms": 0.7, "throttled-date": 0.9}.items(): # Retry-After was heeded
        assert server.times[text][1] - server.times[text][0] >= least, text
    assert server.sent < 40_000_000 # of a hundred: the rest was not read


def test_nothing_is_paid_twice_and_equal_keys_share_an_answer(server, tmp_path):
    texts = [f"fine {i}" for i in range(20)]
    for_each(texts, ask, endpoint(server), tmp_path / "a.jsonl")
    replies, account = for_each([*texts, "more"], ask, endpoint(server), tmp_path / "a.jsonl")
    assert [r.cached for r in replies] == [True] * 20 + [False] and account.calls == 1 and account.cached == 20
    assert max(server.asked.values()) == 1


def test_the_cap_on_requests_holds_over_workers_and_retries(server):
    texts = [f"{word} {i}" for i in range(10) for word in ("fine", "broken")]
    replies, account = for_each(texts, ask, endpoint(server, max_calls=17, workers=8))
    assert server.asked.total() == account.calls == 17
    capped = [r for r in replies if isinstance(r, Unanswered)]
    assert capped and all(r.kind == "capped" and "cap of 17" in str(r) for r in capped)


def test_the_cap_on_the_cost_is_never_passed(server):
    def spent(cap):
        here = endpoint(server, price_in=1000.0, price_out=1000.0, max_cost=cap, workers=8)
        return for_each([f"fine {cap} {i}" for i in range(20)], ask, here)
    replies, account = spent(1.0) # an answer costs 0.055, and may cost 0.45
    assert 0.5 < account.cost <= 1.0 and sum(isinstance(r, Unanswered) for r in replies) >= 2
    assert "cap of 1 on the cost" in str(replies[-1])
    unmetered = [f"plain {i}" for i in range(20)] # whose server tells no tokens
    here = endpoint(server, price_in=1000.0, price_out=1000.0, max_cost=1.0, workers=8)
    replies, account = for_each(unmetered, ask, here)
    assert 0 < sum(not isinstance(r, Unanswered) for r in replies) < 4 and account.cost <= 1.0
    replies, account = spent(3.0)
    assert not any(isinstance(r, Unanswered) for r in replies) and account.cost == pytest.approx(20 * 0.055)


@pytest.mark.parametrize("text, said", [("locked", "answers 401"), ("moved", "at elsewhere.invalid"),
                                        ("broke", "quota")])
def test_no_access_ends_the_run_at_once_and_keeps_what_was_paid(text, said, server, tmp_path):
    server.script = lambda to, body, asked: to.answer(f"to {to.headers.get('Authorization')}")
    if text == "broke":
        DIALECTS["broke"] = lambda to, body: to.said == "broke" and (to.reply(
            429, {"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}) or True)
        server.dialect = "broke"
    texts = ["fine 0", "fine 1", text, *[f"later {i}" for i in range(60)]]
    with pytest.raises(EndpointError, match=said) as raised:
        for_each(texts, ask, endpoint(server, workers=2), tmp_path / "a.jsonl")
    DIALECTS.pop("broke", None)
    assert len(str(raised.value)) <= 400 and "\n" not in str(raised.value) and KEY not in str(raised.value)
    assert server.asked["fine 0"] == 1 and server.asked.total() < 60
    assert len(AnswerFile(tmp_path / "a.jsonl")) == server.asked.total() - server.asked[text]


def test_no_secret_gets_out(server, tmp_path):
    "A server that echoes key and query, in answers, faults and refusals."
    def echo(to, body, text):
        leaked = f"{to.headers.get('Authorization')} {to.path} sk-somebodyelses"
        return to.refuse(leaked) if text.startswith("no") else to.answer(leaked, reasoning_content=leaked)
    server.script = echo
    here = Endpoint(f"{server.url}?sig=hushhush/1", "toy", KEY)
    replies, account = for_each(["yes", "no"], ask, here, tmp_path / "a.jsonl")
    shown = " ".join(map(str, replies)) + str(account) + json.dumps(account.summary()) + repr(here) + str(here.address)
    shown += (tmp_path / "a.jsonl").read_text() + repr(account)
    assert "[redacted]" in shown and "sig=hushhush" in server.paths[0]
    for secret in (KEY, "hushhush", "somebodyelses"):
        assert secret not in shown, secret


def test_keys_come_from_the_environment_alone(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[judge]\napi_key = in-a-file\n")
    with pytest.raises(EndpointError, match="COTMI_JUDGE_API_KEY") as raised:
        Endpoint.from_settings("judge", load_settings(tmp_path, {}), base_url="http://h/v1", model="m")
    assert "in-a-file" not in str(raised.value)
    own = load_settings(tmp_path, {"COTMI_TEACHER_API_KEY": "of the teacher".replace(" ", "-")})
    assert Endpoint.from_settings("teacher", own, model="m").api_key == "of-the-teacher"
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai")
    none = load_settings(tmp_path, {})
    assert Endpoint.from_settings("teacher", none, model="m").api_key == "of-openai"
    assert Endpoint.from_settings("teacher", none, model="m", base_url="http://localhost:1/v1").api_key == ""
    assert find_key(none, "teacher", "me.openai.azure.com", {"AZURE_OPENAI_API_KEY": "az"}) == "az"


@pytest.mark.parametrize("changes", [
    {"api_key": "clé"}, {"api_key": "line\nend"}, {"base_url": "http://[::1"}, {"base_url": "http://h:port/v1"},
    {"base_url": "http://user:hushhush@h/v1"}, {"base_url": "file:///etc/passwd"}, {"base_url": "http://hô/v1"},
    {"model": ""}, {"max_calls": -1}, {"timeout": 0}, {"workers": 0}, {"max_cost": 1.0}, {"price_in": float("nan")},
])
def test_an_endpoint_that_cannot_be_asked_is_refused_in_one_line(changes):
    with pytest.raises(CotmiError) as raised:
        Endpoint(**{"base_url": "http://h/v1", "model": "m", **changes})
    text = str(raised.value)
    assert len(text) <= 400 and "\n" not in text and "hushhush" not in text and "clé" not in text


def test_addresses_keep_their_query_behind_the_path():
    with Server("azure", question=last_words) as server:
        base = server.url.removesuffix("/v1") + "/openai/deployments/d?api-version=2024-10-21"
        for_each(["fine"], ask, Endpoint(base, "toy", KEY))
        assert server.paths == ["/openai/deployments/d/chat/completions?api-version=2024-10-21"]
    assert read_address("http://[::1]:8000/v1").host == "::1"


def test_nobody_listens():
    (lost,), account = for_each(["x"], ask, Endpoint("http://127.0.0.1:9/v1", "toy", attempts=2, timeout=2))
    assert lost.kind == "failed" and "connection" in str(lost) and account.calls == 2


def test_halves_of_character_pairs_are_no_reason_to_stop(server):
    (reply,), _ = for_each(["fine \ud83d"], ask, endpoint(server))
    assert reply.answer.content == VERDICT


def test_prompts_go_to_the_old_protocol(server):
    server.script = lambda to, body, said: to.reply(200, {"choices": [{"text": " 7", "finish_reason": "length"}]})
    async def complete(client, text):
        return await client.ask(Wish((("prompt", text),)))
    (reply,), _ = for_each(["fine"], complete, endpoint(server))
    assert server.paths == ["/v1/completions"] and reply.answer == Answer(" 7", finish="length")


def test_the_file_of_answers_reads_around_rubbish(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"key": "c", "answer": {"content": "x\u2028y"}}, ensure_ascii=False)
    rubbish = [b"", b"\xff\xfe", b"[1]", b'{"key": "a"}', b'{"key": "b", "answer": {"content": 9}}',
               b'{"key": 1, "answer": {}}', b"[" * 100_000, b'{"dialect": {"length": "bits"}}', good.encode()]
    path.write_bytes(b"\n".join([*rubbish, b'{"key": "d", "ans']))
    file = AnswerFile(path)
    assert len(file) == 1 and file.get("c").content == "x\u2028y" and file.skipped == 8 and file.dialect is None
    file.keep("e", Answer("línea\nnueva"))
    assert AnswerFile(path).get("e").content == "línea\nnueva"


CHILD = """
import sys
from cotmi.llm import client
from cotmi.llm.client import for_each
from cotmi.llm.dialects import Wish
from cotmi.llm.endpoint import Endpoint
async def ask(client, text):
    return await client.ask(Wish((("user", text),)))
client._APART = float(sys.argv[3])
replies, account = for_each([f"text {i}" for i in range(40)], ask, Endpoint(sys.argv[1], "toy", workers=4), sys.argv[2])
print(sum(r.cached for r in replies), flush=True)
"""


def child(server, cache, apart=0.001):
    return subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(cache), str(apart)], stdout=subprocess.PIPE,
                            text=True, stderr=subprocess.PIPE)


def test_what_is_on_disk_is_never_asked_again_after_a_kill(server, tmp_path):
    "Only what was under way when the kill came is asked again."
    cache, kept = tmp_path / "a.jsonl", set()
    server.latency = 0.02
    for wanted in (5, 25):
        process = child(server, cache)
        while server.asked.total() < wanted + 2:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before, kept = Counter(server.asked), {r["key"] for r in map(json.loads, _whole_lines(cache)) if "key" in r}
    process = child(server, cache)
    assert int(process.communicate(timeout=60)[0]) == len(kept)
    assert (server.asked - before).total() == 40 - len(kept) and server.asked.total() <= 40 + 2 * 4
    assert len(AnswerFile(cache)) == 40


def _whole_lines(path):
    return [line for line in path.read_bytes().split(b"\n")[:-1] if line.startswith(b"{") and line.endswith(b"}")]


@pytest.mark.parametrize("apart", [0.001, 0.15], ids=["all are under way", "some wait for their turn"])
def test_control_c_waits_for_what_is_under_way(server, tmp_path, apart):
    server.latency = 0.3
    process = child(server, tmp_path / "a.jsonl", apart)
    while server.asked.total() < 6:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode and "waiting for the answers under way" in err
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert len(AnswerFile(tmp_path / "a.jsonl")) == server.paid.total() == server.asked.total() < 40


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_an_error_of_the_work_waits_for_what_is_under_way(server, tmp_path, kind):
    server.latency = 0.3
    async def work(client, text):
        if text == "text 5":
            raise kind(text)
        return await client.ask(Wish((("user", text),)))
    with pytest.raises(kind, match="text 5"):
        for_each([f"text {i}" for i in range(40)], work, endpoint(server, workers=4), tmp_path / "a.jsonl")
    assert len(AnswerFile(tmp_path / "a.jsonl")) == server.paid.total() == server.asked.total() < 10


def test_many_questions_at_once_use_little_memory(server, tmp_path):
    server.script = lambda to, body, said: to.answer("x" * 100_000)
    async def length(client, text):
        return len((await client.ask(Wish((("user", text),)))).answer.content)
    tracemalloc.start()
    lengths, account = for_each([f"fine {i}" for i in range(250)], length,
                                endpoint(server, workers=32, timeout=60), tmp_path / "a.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lengths == [100_000] * 250 and account.calls == 250 == len(AnswerFile(tmp_path / "a.jsonl"))
    assert peak < 20e6, f"{peak / 1e6:.1f} MB for 25 MB of answers"
