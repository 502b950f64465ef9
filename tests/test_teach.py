# ruff: noqa: E701
"A scripted teacher whose answers are known: every figure of its folder worked out by hand, and what a run makes of it."
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections import Counter

import pandas as pd
import pytest
from helpers_server import Server, last_words

from cotmi.core import CotmiError, DataError, RunError
from cotmi.data.dataset import LoadOptions
from cotmi.data.loading import load_data
from cotmi.llm.answers import AnswerFile
from cotmi.llm.endpoint import Endpoint
from cotmi.llm.prompts import get_prompt
from cotmi.llm.teaching import Teaching, teach

PATTERNS = ("RRRR", "WRRR", "RRWR", "WWRR") # right and wrong samples of four questions: 12 of 16 are right


def question(number: int) -> str:
    return f"Box {number} holds {number % 5 + 1} red and {number % 7 + 2} blue beads. How many beads does it hold?"


def total(number: int) -> int:
    return number % 5 + number % 7 + 3


def number_of(said: str) -> int:
    return int(re.search(r"Box (\d+)", said)[1])


def adds(to, body, said):
    "Right or wrong as the pattern of the question and the number of times it was asked say."
    number, times = number_of(said), to.server.asked[said]
    found = total(number) + (PATTERNS[number % 4][(times - 1) % 4] == "W")
    to.answer(f"Counting {times} times gives {found}.\nAnswer: {found}", usage=(100, 10, 0))


@pytest.fixture
def server():
    with Server(question=last_words, script=adds) as server:
        yield server


@pytest.fixture
def data(tmp_path):
    "A folder of 40 questions to train on, 8 to choose by and 8 to test, without rationales."
    start = 0
    for split, count in {"train": 40, "valid": 8, "test": 8}.items():
        rows = [{"id": f"b{i}", "input": question(i), "label": str(total(i))} for i in range(start, start + count)]
        (tmp_path / "beads").mkdir(exist_ok=True)
        (tmp_path / "beads" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        start += count
    return tmp_path / "beads"


def teacher(server, **changes):
    return Endpoint(server.url, "toy", **{"workers": 1, "price_in": 1.0, "price_out": 2.0, **changes})


@pytest.mark.parametrize("reject", [False, True])
def test_figures_of_a_teacher_that_is_right_three_times_of_four(reject, server, data, tmp_path):
    taught = teach(Teaching(str(data), samples=4, reject=reject), teacher(server), tmp_path / "taught", progress=False)
    part = taught.report["splits"]["train"]
    assert (part["questions"], part["taught"], part["samples"], part["right_samples"]) == (40, 40, 160, 120)
    assert (part["right_majorities"], part["agreement"]) == (30, (1 + 3 / 4 + 3 / 4 + 1 / 2) / 4)
    expected = {"chosen": 40, "spare": 80, "wrong label": 40} if reject else {"chosen": 40, "spare": 120}
    assert part["fates"] == expected
    assert taught.report["splits"]["valid"]["questions"] == 8 and set(taught.report["splits"]) == {"train", "valid"}
    assert (taught.report["prompt_tokens"], taught.report["completion_tokens"]) == (192 * 100, 192 * 10)
    assert taught.report["cost"] == pytest.approx((19200 + 2 * 1920) / 1e6)
    assert server.asked.total() == 192
    table = pd.read_parquet(tmp_path / "taught" / "train.parquet")
    for i, row in table.iterrows():
        right = reject or i % 4 != 3
        assert row.label == row.gold_label == str(total(i)) and row.teacher_label == str(total(i) + (not right))
        assert row.majority_label == str(total(i) + (i % 4 == 3)) and len(row.completions) == 4
        first = PATTERNS[i % 4].index("R" if right else "W")
        assert row.chosen == first and row.rationale == f"Counting {first + 1} times gives {total(i) + (not right)}."
    assert table.agreement[:4].tolist() == [1, 0.75, 0.75, 0.5]
    assert set(table.prompt_hash) == {get_prompt("general").hash} and set(table.model) == {"toy"}


def test_a_run_takes_the_folder_as_it_is(server, data, tmp_path):
    from cotmi import RunConfig, train

    folder = teach(Teaching(str(data), samples=4), teacher(server), tmp_path / "taught", progress=False).folder
    loaded = load_data(str(folder))
    assert {s: len(e) for s, e in loaded.examples.items()} == {"train": 40, "valid": 8, "test": 8}
    assert loaded.report.label_kind == "number" and loaded.report.splits["train"].teacher_accuracy == 0.75
    assert loaded.report.splits["test"].teacher_accuracy is None # nobody asked about it
    told = str(loaded.report)
    assert "75.0% of 160 samples are right, 75.0% of the majority labels; agreement 0.75" in told and "toy" in told
    assert load_data(str(folder), label_source="teacher").examples["train"]["label"][3] == str(total(3) + 1)
    config = RunConfig(dataset=str(folder), method="dss", student="builtin:tiny", max_steps=2, batch_size=4)
    assert train(config, loaded, tmp_path / "run").student is not None


def sayings(to, body, said):
    "An answer of each kind."
    right = total(number_of(said))
    match number_of(said) % 9:
        case 0: to.answer(f"Red and blue make {right}.\nAnswer: {right}")
        case 1: to.answer("I'm sorry, I cannot help with beads.")
        case 2: to.answer("First the red ones, then", finish="length")
        case 3: to.answer(f"It is {right}.")
        case 4: to.answer(f"Answer: {right}")
        case 5: to.answer("They are many.\nAnswer: many")
        case 6: to.answer(f"As the answer given is {right}, it holds so many.\nAnswer: {right}")
        case 7: to.answer(f"Let me see.\nAnswer: {right}\nOr rather\nAnswer: {right}")
        case 8: to.answer("", finish="content_filter")


def test_every_dropped_sample_has_a_reason(data, tmp_path):
    with Server(question=last_words, script=sayings) as server:
        told = teach(Teaching(str(data), with_label=True), teacher(server), tmp_path / "taught", progress=False).report
    counts = Counter(i % 9 for i in range(40))
    expected = {"chosen": counts[0], "refusal": counts[1] + counts[8], "cut": counts[2], "no marker": counts[3],
                "empty rationale": counts[4], "not an equation": counts[5], "leak": counts[6],
                "several markers": counts[7]}
    assert told["splits"]["train"]["fates"] == expected
    assert "known to be" in server.bodies[0]["messages"][-1]["content"]
    loaded = load_data(str(tmp_path / "taught"))
    assert loaded.report.splits["train"].dropped == {"empty rationale": 40 - counts[0]}
    assert f"{expected['leak']} leak" in str(loaded.report) and "gold label shown" in str(loaded.report)
    assert loaded.report.splits["train"].teacher_accuracy is None # it was told


def test_equal_samples_are_dropped(data, tmp_path):
    def same(to, body, said):
        to.answer(f"Red and blue.\nAnswer: {total(number_of(said))}")
    with Server(question=last_words, script=same) as server:
        told = teach(Teaching(str(data), samples=3), teacher(server), tmp_path / "taught", progress=False).report
    assert told["splits"]["train"]["fates"] == {"chosen": 40, "duplicate": 80}


def test_what_is_missing_is_said_and_the_same_command_goes_on(server, data, tmp_path):
    with pytest.raises(RunError, match="30 of 48 answers are there.*--partial") as raised:
        teach(Teaching(str(data)), teacher(server, max_calls=30), tmp_path / "taught", progress=False)
    assert len(str(raised.value)) <= 400 and not (tmp_path / "taught" / "train.parquet").exists()
    partial = teach(Teaching(str(data), partial=True), teacher(server, max_calls=0), tmp_path / "taught",
                    progress=False)
    assert partial.report["splits"]["train"]["fates"] == {"chosen": 30, "capped": 10}
    whole = teach(Teaching(str(data)), teacher(server), tmp_path / "taught", progress=False)
    assert server.asked.total() == 48 and whole.report["splits"]["train"]["fates"] == {"chosen": 40}


def test_a_question_that_stands_twice_is_paid_for_once(server, data, tmp_path):
    with (data / "train.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"id": "again", "input": question(0), "label": str(total(0))}))
    report = teach(Teaching(str(data)), teacher(server), tmp_path / "taught", progress=False).report
    assert server.asked.total() == 48 and report["splits"]["train"]["questions"] == 41
    assert (report["prompt_tokens"], report["cost"]) == (48 * 100, pytest.approx((4800 + 2 * 480) / 1e6))


def test_a_folder_belongs_to_one_teacher(server, data, tmp_path):
    teach(Teaching(str(data), limit=4), teacher(server), tmp_path / "taught", progress=False)
    for how, who, said in (({}, {"model": "other"}, "model"), ({"prompt": "demo"}, {}, "prompt_hash"),
                           ({"samples": 2}, {}, "samples")):
        with pytest.raises(DataError, match=f"with {said}"):
            teach(Teaching(str(data), limit=4, **how), Endpoint(server.url, **{"model": "toy", **who}),
                  tmp_path / "taught", progress=False)


def test_a_prompt_of_your_own(server, data, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("=== version\n3\n=== ask\nCount: {input}\n=== reply\n{rationale} So, in all: {label}\n")
    server.script = lambda to, body, said: to.answer(f"Both colours. So, in all: {total(number_of(said))}")
    told = teach(Teaching(str(data), prompt=str(path)), teacher(server), tmp_path / "taught", progress=False).report
    assert told["prompt"].startswith("mine.txt 3 (") and told["splits"]["train"]["fates"] == {"chosen": 40}
    assert [m["role"] for m in server.bodies[0]["messages"]] == ["user"]


def test_the_published_layout_is_read_back(tmp_path):
    "Generated stories in the files of a published data set, taught and read as the published teacher is."
    root = tmp_path / "root" / "svamp"
    (root / "llm").mkdir(parents=True)
    for split, count in {"train": 700, "test": 6}.items():
        rows = [{"input": question(i), "label": f"({i % 5 + 1} + {i % 7 + 2})"} for i in range(count)]
        (root / f"svamp_{split}.json").write_text("\n".join(map(json.dumps, rows)))
        pieces = [["?"] * min(500, count - start) for start in range(0, count, 500)]
        for k, piece in enumerate(pieces):
            (root / "llm" / f"{split}_CoT_{k}.json").write_text(json.dumps(piece))
    def explain(to, body, said):
        i = number_of(said)
        to.answer(f"A: Red and blue beads are added. The answer is ({i % 5 + 1} + {i % 7 + 2}).")
    options = LoadOptions(data_root=tmp_path / "root")
    with Server(question=last_words, script=explain) as server:
        teaching = Teaching("svamp", layout=True, options=options)
        taught = teach(teaching, teacher(server, workers=8, max_calls=None), tmp_path / "taught", progress=False)
    assert load_data(str(taught.folder)).report.label_kind == "equation"
    for piece in (taught.folder / "llm").iterdir():
        piece.replace(root / "llm" / piece.name)
    again = load_data("svamp", data_root=tmp_path / "root")
    assert again.report.splits["train"].teacher_accuracy == 1 and again.report.files["train"].teacher_correct == 700
    with pytest.raises(DataError, match="without a limit"):
        teach(Teaching("svamp", layout=True, limit=3, options=options, partial=True),
              teacher(server, max_calls=0), tmp_path / "other", progress=False)


def start_teaching(url: str, data: str, out: str):
    os.setsid()
    teach(Teaching(data, samples=2), Endpoint(url, "toy", workers=4, timeout=30), out, progress=False)


def test_killed_at_random_moments_nothing_is_paid_twice(data, tmp_path):
    "An answer that is on disk is never asked for again, and what comes out is what an uninterrupted teacher gives."
    def steady(to, body, said):
        to.answer(f"Red and blue make {total(number_of(said))}.\nAnswer: {total(number_of(said))}")
    rng, forked = random.Random(0), multiprocessing.get_context("fork")
    with Server(question=last_words, script=steady) as server:
        server.latency = 0.03
        kept, kills = 0, 0
        for _ in range(10):
            child = forked.Process(target=start_teaching, args=(server.url, str(data), str(tmp_path / "killed")))
            before = server.asked.total()
            child.start()
            until = time.monotonic() + 20
            wanted = before + rng.randrange(1, 12)
            while server.asked.total() < wanted and child.is_alive() and time.monotonic() < until:
                time.sleep(0.002)
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
            child.join()
            kept = len(AnswerFile(tmp_path / "killed" / "answers.jsonl"))
        before = server.asked.total()
        killed = teach(Teaching(str(data), samples=2), Endpoint(server.url, "toy"), tmp_path / "killed", progress=False)
        assert server.asked.total() - before == 96 - kept # what was kept is not asked again
        assert kills >= 5 and server.asked.total() <= 96 + 4 * kills # four were under way at each kill
        lines = [json.loads(line) for line in (tmp_path / "killed" / "answers.jsonl").read_bytes().split(b"\n")
                 if line.endswith(b"}") and line.startswith(b'{"key"')]
        assert len(lines) == len({line["key"] for line in lines}) == 96
        whole = teach(Teaching(str(data), samples=2), Endpoint(server.url, "toy"), tmp_path / "whole", progress=False)
    assert killed.report == whole.report
    for name in ("train.parquet", "valid.parquet", "test.parquet", "teacher.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_command(server, data, cotmi, monkeypatch, tmp_path):
    monkeypatch.setenv("COTMI_TEACHER_API_KEY", "key-of-the-test")
    words = ["teach", data, "--model", "toy", "--base-url", server.url, "--limit", "4", "--samples", "2", "--out", "t",
             "--workers", "1", "--price-in", "1", "--price-out", "2"]
    code, out, err = cotmi(*words)
    assert code == 0 and "train: 4 of 4 questions have a rationale; of 8 samples 5 are right" in out
    assert "16 calls, 0 of them retries" in out and "cost 0.0019" in out and "cotmi run demo -p dataset t" in out
    assert {h["authorization"] for h in server.headers} == {"Bearer key-of-the-test"}
    assert "key-of-the-test" not in out + err + (tmp_path / "t" / "answers.jsonl").read_text()
    code, again, _ = cotmi(*words)
    assert code == 0 and "0 calls" in again and "16 answers were there already" in again
    code, out, _ = cotmi("data", "t", "--samples", "1")
    assert code == 0 and "Teacher: toy, prompt general 1" in out


def test_a_batch_that_lacks_answers_says_how_to_get_them(server, data, cotmi, tmp_path):
    words = ["teach", data, "--model", "toy", "--base-url", server.url, "--out", "t"]
    assert cotmi(*words, "--batch-file", "asked.jsonl")[0] == 0
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    said = {"choices": [{"message": {"content": "Red.\nAnswer: 3"}, "finish_reason": "stop"}]}
    lines = [{"custom_id": request["custom_id"], "response": {"body": said}} for request in asked[:20]]
    (tmp_path / "came.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _, err = cotmi(*words, "--from-batch", "came.jsonl")
    assert code == 1 and "20 of 48 answers are there" in err and "--batch-file writes the requests" in err
    assert cotmi(*words, "--batch-file", "rest.jsonl")[1].startswith("28 requests") and server.asked.total() == 0


@pytest.mark.parametrize("words, said", [
    (["nowhere.csv"], "unknown"), (["demo", "--prompt", "nowhere.txt"], "no built-in one"),
    (["demo", "--samples", "2", "--temperature", "0"], "above 0"), (["demo", "--split", "exam"], "allowed are"),
    (["demo", "--dialect", "[1]"], "JSON object"), (["demo", "--dialect", '{"format": "xml"}'], "allowed are"),
    (["demo", "--max-cost", "1"], "needs prices"), (["demo", "--base-url", "http://[::1"], "base URL"),
    (["demo", "--model", "hf:nowhere/at/all"], "--base-url is for a model behind"),
    (["demo", "--timeout", "nan"], "timeout"),
    (["demo", "--from-batch", "nowhere.jsonl"], "cannot be read"),
])
def test_the_command_says_what_is_wrong_in_one_line(words, said, server, cotmi):
    code, _, err = cotmi("teach", "--model", "toy", "--base-url", server.url, *words)
    line = err.strip().splitlines()[-1]
    assert code == 1 and line.startswith("cotmi: ") and said in line and len(line) <= 400, err
    assert "unforeseen" not in line and server.asked.total() == 0


def test_a_report_that_is_damaged_is_named(server, data, tmp_path):
    teach(Teaching(str(data), limit=4), teacher(server), tmp_path / "taught", progress=False)
    for text in ("{", "[]", '{"splits": 3}'):
        (tmp_path / "taught" / "teacher.json").write_text(text)
        with pytest.raises(CotmiError, match="teacher.json"):
            load_data(str(tmp_path / "taught"))
