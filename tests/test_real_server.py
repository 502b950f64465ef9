"""A teacher that is a real model: `transformers serve` on loopback, and the same checkpoint in this process.

The model is tiny and random, so what it says is nonsense; what counts is that it is asked, kept and accounted for.
"""
import importlib.util
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers_ports import free_ports

from cotmi.llm.answers import AnswerFile
from cotmi.llm.dialects import Wish
from cotmi.llm.endpoint import Endpoint, EndpointError
from cotmi.llm.local_models import answer_here
from cotmi.llm.teaching import Teaching, teach

SERVING = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai"))
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    "A chat model of a few thousand random weights, with a tokenizer of bytes."
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["</s>", "<pad>", *letters])}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="</s>", pad_token="<pad>",
                                        chat_template=TEMPLATE)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, eos_token_id=0, pad_token_id=1, bos_token_id=None))
    folder = tmp_path_factory.mktemp("model") / "tiny-chat"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "colours.csv"
    rows = [f"What colour is thing {i}?,{('red', 'blue')[i % 2]}\n" for i in range(40)]
    path.write_text("input,label\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def served(checkpoint):
    "The address of `transformers serve` with the checkpoint."
    if not SERVING:
        pytest.skip("transformers serve needs fastapi and uvicorn: pip install 'cotmi[serving]'")
    port = free_ports(1)[0]
    command = [Path(sys.executable).parent / "transformers", "serve", checkpoint, "--host", "127.0.0.1", "--port",
               str(port), "--device", "cpu"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    until = time.monotonic() + 180
    try:
        while True:
            assert process.poll() is None and time.monotonic() < until, process.stderr.read().decode()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def small(data) -> Teaching:
    return Teaching(str(data), max_tokens=6)


def start_teaching(url: str, model: str, data: str, out: str):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    teach(small(data), Endpoint(url, model, workers=2, timeout=60), out, progress=False)


@pytest.mark.slow
def test_a_real_server_teaches_through_ten_kills(served, checkpoint, data, tmp_path):
    "What comes out is what an uninterrupted teacher gives, and no answer is bought twice."
    rng, forked = random.Random(0), multiprocessing.get_context("fork")
    here = Endpoint(served, str(checkpoint), workers=2, timeout=60)
    whole = teach(small(data), here, tmp_path / "whole", progress=False)
    kills, answers = 0, tmp_path / "killed" / "answers.jsonl"
    for _ in range(10):
        child = forked.Process(target=start_teaching, args=(served, str(checkpoint), str(data),
                                                            str(tmp_path / "killed")))
        before, until = answers.stat().st_size if answers.exists() else 0, time.monotonic() + 30
        child.start()
        while child.is_alive() and time.monotonic() < until:
            if answers.exists() and answers.stat().st_size > before: # killed a random moment after its first answer
                time.sleep(rng.random() * 0.1)
                break
            time.sleep(0.002)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
    kept = len(AnswerFile(answers)) if answers.exists() else 0
    killed = teach(small(data), here, tmp_path / "killed", progress=False)
    assert kills >= 5 and killed.account.startswith(f"{36 - kept} calls"), (kills, kept, killed.account)
    lines = [json.loads(line) for line in answers.read_bytes().split(b"\n") if line.endswith(b"}")]
    keys = [line["key"] for line in lines if "key" in line]
    assert len(keys) == len(set(keys)) == 36
    assert killed.report == whole.report and whole.report["completion_tokens"] > 0
    assert sum(whole.report["splits"]["train"]["fates"].values()) == 32
    for name in ("train.parquet", "valid.parquet", "test.parquet", "teacher.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_a_real_server_is_judged_by_what_it_says(served, checkpoint):
    from cotmi.llm.judge import judge_rationales

    rows = [{"id": "a", "input": "3 + 4?", "gold_label": "7", "generated_rationale": "It is 7."}]
    report = judge_rationales(rows, Endpoint(served, str(checkpoint), attempts=2, timeout=60))
    assert report.table.status.tolist() == ["invalid"] and report.summary["calls"] == 2 # nonsense, and no crash


def test_the_same_checkpoint_teaches_in_this_process(checkpoint, data, tmp_path):
    greedy = teach(small(data), f"hf:{checkpoint}", tmp_path / "greedy", progress=False)
    again = teach(small(data), f"hf:{checkpoint}", tmp_path / "again", progress=False)
    assert greedy.report == again.report and greedy.report["splits"]["train"]["samples"] == 32
    assert greedy.report["completion_tokens"] == 36 * 6 and greedy.report["cost"] is None
    several = Teaching(str(data), samples=2, temperature=1.0, max_tokens=6)
    drawn = teach(several, f"hf:{checkpoint}", tmp_path / "drawn", progress=False)
    lines = (tmp_path / "drawn" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 72 and len({json.loads(line)["answer"]["content"] for line in lines}) > 36
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / "answers.jsonl").write_bytes(b"".join(lines[:21]) + lines[21][:30]) # killed in the middle
    resumed = teach(several, f"hf:{checkpoint}", tmp_path / "resumed", progress=False)
    assert resumed.report == drawn.report
    made = [tmp_path / name / "train.parquet" for name in ("resumed", "drawn")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_a_completion_model_and_one_that_is_not_there(checkpoint, data, tmp_path):
    text = teach(Teaching(str(data), max_tokens=4, completion=True, limit=3), f"hf:{checkpoint}", tmp_path / "t",
                 progress=False)
    assert text.report["completion"] and text.report["splits"]["train"]["questions"] == 3
    with pytest.raises(EndpointError, match="cannot be loaded") as raised:
        teach(small(data), f"hf:{tmp_path}/nothing", tmp_path / "u", progress=False)
    assert len(str(raised.value)) <= 400 and "\n" not in str(raised.value)


def test_a_text_that_ends_an_answer_ends_it_here_too(checkpoint):
    plain = Wish((("prompt", "What colour is thing 3?"),), max_tokens=12)
    whole, = answer_here([plain], f"hf:{checkpoint}")
    stop = next(letter for letter in whole.content[1:] if letter.isascii()) # half a letter is none
    ended, = answer_here([replace(plain, stop=(stop,))], f"hf:{checkpoint}")
    assert ended.content == whole.content[:whole.content.index(stop)] and ended.finish == "stop"
    assert ended.completion_tokens < whole.completion_tokens and whole.finish == "length"


def test_vllm_is_asked_as_it_wants(monkeypatch, data, tmp_path):
    "Where vLLM is not installed a stand-in with its interface shows what it would be told."
    import types

    told = []

    class Engine:
        def __init__(self, model): told.append(model)
        def get_tokenizer(self): return types.SimpleNamespace(chat_template=None)
        def generate(self, prompts, how):
            told.append(how)
            said = types.SimpleNamespace(text="It is red.\nAnswer: red", token_ids=[1, 2], finish_reason="stop")
            return [types.SimpleNamespace(outputs=[said], prompt_token_ids=[1] * 5) for _ in prompts]

    stand_in = types.ModuleType("vllm")
    stand_in.LLM, stand_in.SamplingParams = Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr("cotmi.llm.local_models.is_installed", lambda *_: True)
    report = teach(small(data), "vllm:my/model", tmp_path / "t", progress=False).report
    assert told[0] == "my/model" and told[1]["max_tokens"] == 6 and told[1]["temperature"] == 0
    red = (tmp_path / "t" / "train.parquet")
    assert report["splits"]["train"]["right_samples"] == (pd.read_parquet(red).label == "red").sum() > 0
    assert (report["prompt_tokens"], report["completion_tokens"]) == (36 * 5, 36 * 2)
