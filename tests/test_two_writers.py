"""Two processes and one run: the second is told so, the first is not harmed, and nothing is lost."""

import json
import subprocess
import sys
import threading

import httpx2
import pytest
from helpers_small_run import content, figures, lock_is_free, refused, small_config

from cotmi.core import RunError, RunFile
from cotmi.llm.endpoint import Endpoint
from cotmi.runs.evaluating import evaluate
from cotmi.runs.execution import execute
from cotmi.runs.judging import judge_run
from cotmi.runs.run_folder import Run, open_run, run_folder

# A process that trains and, after its first step, waits for a line before it goes on.
TRAINER = """
import os, sys
sys.path.insert(0, sys.argv[2])
os.environ["COTMI_EVALUATE_EMBEDDING_MODEL"] = ""
from helpers_small_run import small_config
from transformers import TrainerCallback
from cotmi.runs.execution import execute

class Wait(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            print("one step", flush=True)
            sys.stdin.readline()

execute(small_config(), out=sys.argv[1], callbacks=[Wait()])
"""


@pytest.fixture
def trainer(tmp_path, request):
    "Another process in the middle of its training."
    command = [sys.executable, "-c", TRAINER, str(tmp_path / "outputs"), str(request.path.parent)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout.readline() == b"one step\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def judge_that(answer) -> Endpoint:
    return Endpoint("http://judge/v1", "toy", workers=1, transport=httpx2.MockTransport(answer))


def three(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={"choices": [{"message": {"content": json.dumps({"score": 3})}}]})


def test_while_one_process_trains_nobody_else_writes(trainer, finished_run, tmp_path, command, monkeypatch):
    folder = run_folder(small_config(), tmp_path / "outputs")
    assert folder.name == finished_run.id and Run(folder).status == "running"
    before = content(folder)
    for attempt in (lambda: execute(small_config(), out=tmp_path / "outputs"),
                    lambda: execute(small_config(), out=tmp_path / "outputs", force=True),
                    lambda: judge_run(folder, judge_that(three), progress=False),
                    lambda: evaluate(folder, progress=False), lambda: open_run(folder)):
        with pytest.raises(RunError, match="written by another process"):
            attempt()
    assert "another process" in refused(command, "evaluate", folder)
    assert "running" in command("list")[1], "a list is read while it trains"
    assert content(folder) == before
    trainer.communicate(b"on\n", timeout=120)
    assert trainer.returncode == 0 and lock_is_free(folder)
    assert figures(Run(folder)) == figures(finished_run), "it came to the same as a run that nobody disturbed"
    assert not Run(folder).problems


def test_while_a_run_is_evaluated_nobody_judges_it(run_copy, monkeypatch):
    from cotmi.evaluation import evaluator

    began, go_on, score = threading.Event(), threading.Event(), evaluator.score_predictions
    def slow(*arguments, **named):
        began.set()
        assert go_on.wait(60)
        return score(*arguments, **named)
    monkeypatch.setattr(evaluator, "score_predictions", slow)
    before, whole = content(run_copy), figures(Run(run_copy))
    evaluation = threading.Thread(target=evaluate, args=[run_copy], kwargs={"progress": False})
    evaluation.start()
    try:
        assert began.wait(60)
        for attempt in (lambda: judge_run(run_copy, judge_that(three), progress=False),
                        lambda: evaluate(run_copy, progress=False)):
            with pytest.raises(RunError, match="another process"):
                attempt()
        assert content(run_copy) == before
    finally:
        go_on.set()
        evaluation.join()
    assert figures(Run(run_copy)) == whole and lock_is_free(run_copy)


def test_while_a_run_is_judged_nobody_evaluates_it(run_copy, command):
    began, go_on = threading.Event(), threading.Event()
    def slow(request):
        began.set()
        assert go_on.wait(60)
        return three(request)
    judging = threading.Thread(target=judge_run, args=[run_copy, judge_that(slow)], kwargs={"progress": False})
    before = content(run_copy)
    judging.start()
    try:
        assert began.wait(60)
        assert "another process" in refused(command, "evaluate", run_copy)
        with pytest.raises(RunError, match="another process"):
            judge_run(run_copy, judge_that(three), progress=False)
        assert content(run_copy) == before
    finally:
        go_on.set()
        judging.join()
    metrics = Run(run_copy).metrics
    assert metrics["test/rationale_judge"] and metrics["status"] == "complete" and lock_is_free(run_copy)
    assert (run_copy / RunFile.JUDGEMENT).exists()


def test_a_judge_that_is_interrupted_keeps_what_was_paid_for(run_copy):
    judge_run(run_copy, judge_that(three), progress=False, examples=2)
    before = content(run_copy)
    def interrupted(_: httpx2.Request) -> httpx2.Response: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        judge_run(run_copy, judge_that(interrupted), progress=False)
    assert content(run_copy) == before and lock_is_free(run_copy)
