"""Nothing good is overwritten by something wrong: what is refused, what is left, and how files are read and shared."""

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import httpx2
import pytest
import torch
from helpers_small_run import content, figures, lock_is_free, refused, small_config, small_run
from safetensors.torch import load_file, save_file

from cotmi.core import (
    CotmiError,
    DataError,
    RunError,
    RunFile,
    StudentError,
    find_settings,
    load_settings,
    read_json,
    read_json_lines,
    write_json,
)
from cotmi.evaluation.evaluator import evaluate_student
from cotmi.llm.endpoint import Endpoint
from cotmi.runs.comparison import compare_runs
from cotmi.runs.evaluating import evaluate
from cotmi.runs.judging import judge_run
from cotmi.runs.run_files import FORMATS, read_file
from cotmi.runs.run_folder import Run, list_runs, runs_table
from cotmi.students.loading import load_student
from cotmi.training.run_config import load_run_data

WEIGHTS, TOKENIZER = "student/model.safetensors", "student/tokenizer.json"
SOME_WEIGHT = "decoder.block.0.layer.0.SelfAttention.q.weight"


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def pipe(path: Path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def change_weights(change):
    def harm(path: Path):
        weights = load_file(path)
        change(weights)
        save_file(weights, path, {"format": "pt"})
    return harm


def lose_tokenizer(path: Path):
    path.unlink()
    path.with_name("tokenizer_config.json").unlink()


# A file of a run, what befalls it, and what `cotmi evaluate` then says.
EVALUATION = {
    "configuration cut": (RunFile.CONFIG, cut, "does not say how its student was trained"),
    "configuration gone": (RunFile.CONFIG, Path.unlink, "does not say how its student was trained"),
    "configuration a list": (RunFile.CONFIG, lambda p: p.write_text("[1]"), "expected an object"),
    "configuration of nothing": (RunFile.CONFIG, lambda p: write_json(p, {"values": {}}), "lacks dataset, method"),
    "configuration deep": (RunFile.CONFIG, lambda p: p.write_text("[" * 100_000), "nested too deeply"),
    "configuration a pipe": (RunFile.CONFIG, pipe, "a pipe and no file"),
    "data on no record": (RunFile.DATA_REPORT, Path.unlink, "does not say what data"),
    "record of data cut": (RunFile.DATA_REPORT, cut, "does not say what data"),
    "other data": (RunFile.CONFIG, lambda p: write_json(p, {"values": {**read_json(p)["values"], "demo_size": 70}}),
                   "other data than are in place now"),
    "tokenizer gone": (TOKENIZER, lose_tokenizer, "has no tokenizer"),
    "tokenizer's file gone": (TOKENIZER, Path.unlink, "has no tokenizer"),
    "tokenizer cut": (TOKENIZER, cut, "no whole student"),
    "tokenizer deep": (TOKENIZER, lambda p: p.write_text("[" * 100_000), "nested too deeply"),
    "weights gone": (WEIGHTS, Path.unlink, "no whole student"),
    "weights empty": (WEIGHTS, lambda p: p.write_bytes(b""), "no whole student"),
    "weights cut": (WEIGHTS, cut, "no whole student"),
    "a weight gone": (WEIGHTS, change_weights(lambda w: w.pop(SOME_WEIGHT)), f"lacks {SOME_WEIGHT}"),
    "a weight too many": (WEIGHTS, change_weights(lambda w: w.update(more=torch.ones(2))), "the model has not, more"),
    "a weight of another shape": (WEIGHTS, change_weights(lambda w: w.update({SOME_WEIGHT: torch.ones(3, 3)})),
                                  f"in another shape {SOME_WEIGHT}"),
    "student a list": ("student/config.json", lambda p: p.write_text("[1]"), "no whole student"),
    "student gone": ("student", shutil.rmtree, "holds no student"),
}


@pytest.mark.parametrize("case", EVALUATION)
def test_an_evaluation_that_cannot_be_trusted_changes_nothing(case, run_copy, command):
    name, harm, said = EVALUATION[case]
    harm(run_copy / name)
    before = {n: data for n, data in content(run_copy).items() if n != name} if "pipe" in case else content(run_copy)
    assert said in refused(command, "evaluate", run_copy)
    assert {n: data for n, data in content(run_copy).items() if n in before} == before
    assert len(content(run_copy)) == len(before) and lock_is_free(run_copy)
    assert read_json(run_copy / RunFile.METRICS)["status"] == "complete"


def test_a_local_student_is_held_to_the_same(run_copy):
    change_weights(lambda w: w.pop(SOME_WEIGHT))(run_copy / WEIGHTS)
    with pytest.raises(StudentError, match=f"lacks {SOME_WEIGHT}"):
        load_student(str(run_copy / "student"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("by accident")], ids=repr)
def test_an_evaluation_that_stops_leaves_the_former_results(error, run_copy, monkeypatch):
    before = content(run_copy)
    def stop(*_, **__): raise error
    monkeypatch.setattr("cotmi.evaluation.evaluator.score_predictions", stop)
    with pytest.raises(type(error)):
        evaluate(run_copy, progress=False)
    assert content(run_copy) == before and lock_is_free(run_copy)


class Killed(BaseException):
    "In the place of a kill: nothing catches it but what would be gone anyway."


def test_a_kill_at_any_move_is_whole_or_said(run_copy, monkeypatch):
    before, complete, replace, moves = content(run_copy), figures(Run(run_copy)), os.replace, 0
    evaluation = evaluate_student(Run(run_copy).load_student(), load_run_data(small_config()), small_config(), False)
    monkeypatch.setattr("cotmi.evaluation.evaluator.evaluate_student", lambda *_: evaluation)
    write_json(run_copy / RunFile.METRICS, {**read_json(run_copy / RunFile.METRICS), "test/old": 1})
    old = content(run_copy)
    for kill_at in range(1, 30):
        for name, data in old.items():
            (run_copy / name).write_bytes(data)
        moves = 0
        def count(source, target, kill_at=kill_at):
            nonlocal moves
            moves += Path(target).parent == run_copy
            if moves == kill_at and Path(target).parent == run_copy:
                raise Killed
            replace(source, target)
        with monkeypatch.context() as patched:
            patched.setattr("os.replace", count)
            try:
                evaluate(run_copy, progress=False)
            except Killed:
                pass
            else:
                break # as many moves as there are, and none was cut off
        run = Run(run_copy)
        said = run.status == "stopped" and "`cotmi evaluate` makes them anew" in run.problems[-1]
        assert said or content(run_copy) == old
        assert run.metrics["test/old"] == 1, "the former figures stand until the new ones do"
        if kill_at == 3:
            evaluate(run_copy, progress=False)
            assert figures(Run(run_copy)) == complete
    assert kill_at > 4 and figures(Run(run_copy)) == complete
    assert set(content(run_copy)) == set(before)


def always(score: int, status: int = 200) -> Endpoint:
    answer = {"choices": [{"message": {"content": json.dumps({"score": score})}}]}
    return Endpoint("http://judge/v1", f"of {score}", attempts=1, workers=1,
                 transport=httpx2.MockTransport(lambda _: httpx2.Response(status, json=answer)))


def test_judge_scores_stay_with_their_texts(run_copy):
    table = Run(run_copy).predictions.assign(generated_rationale="So it is.")
    FORMATS[RunFile.PREDICTIONS].write(run_copy / RunFile.PREDICTIONS, table)
    judge_run(run_copy, always(4), progress=False)
    assert Run(run_copy).metrics["test/rationale_judge"] == 4
    before = content(run_copy)
    judge_run(run_copy, always(1, status=500), progress=False)
    assert content(run_copy) == before, "a judge that is gone takes no earlier mean away"
    evaluate(run_copy, progress=False) # writes other rationales than the ones put there
    run = Run(run_copy)
    assert "test/rationale_judge" not in run.metrics and "cotmi judge" in run.metrics["test/notes"]
    assert not (run_copy / RunFile.JUDGEMENT).exists() and read_json(run_copy / RunFile.EARLIER_JUDGEMENT)["model"]
    judge_run(run_copy, always(2), progress=False)
    verdicts, mean = (run_copy / RunFile.VERDICTS).read_bytes(), Run(run_copy).metrics["test/rationale_judge"]
    evaluate(run_copy, progress=False) # the same texts again
    run = Run(run_copy)
    assert run.metrics["test/rationale_judge"] == mean and (run_copy / RunFile.JUDGEMENT).exists()
    assert (run_copy / RunFile.VERDICTS).read_bytes() == verdicts and run.status == "complete"


def no_permission(path: Path):
    "What a colleague's private file answers; root may read it, so it is said for it."
    path.write_text("{}")
    real = Path.open
    def closed(self, *arguments, **named):
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(self, *arguments, **named)
    return closed


ACCIDENTS = {
    "cut": lambda p: p.write_bytes(b'{"a": [1, '), "empty": lambda p: p.write_bytes(b""),
    "binary": lambda p: p.write_bytes(bytes(range(256))), "deep": lambda p: p.write_bytes(b"[" * 200_000),
    "digits": lambda p: p.write_bytes(b"9" * 5000), "another encoding": lambda p: p.write_bytes("{ü}".encode("utf-16")),
    "half a pair": lambda p: p.write_bytes(b'{"a": "\\ud800"}'), "a list": lambda p: p.write_text("[[1]]"),
    "a word": lambda p: p.write_text("nonsense"), "pipe": pipe, "folder": Path.mkdir,
    "socket": lambda p: socket.socket(socket.AF_UNIX).bind(str(p)), "device": lambda p: p.symlink_to("/dev/zero"),
    "loop": lambda p: p.symlink_to(p), "nowhere": lambda p: p.symlink_to(p.with_name("gone")),
}
READERS = {
    "JSON": lambda p: read_json(p, DataError), "JSON lines": read_json_lines,
    "settings": lambda p: load_settings(p.parent, {}),
    **{f"run {name}": lambda p, form=form: read_file(p, form) for name, form in FORMATS.items()},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_every_reader_has_one_message_for_every_accident(reader, accident, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path) # the name of a socket is short
    path = Path("settings.ini" if reader == "settings" else "file")
    ACCIDENTS[accident](path)
    try:
        READERS[reader](path)
    except CotmiError as fault:
        assert len(str(fault)) <= 400 and "\n" not in str(fault) and path.name in str(fault), fault


@pytest.mark.parametrize("reader", ["JSON", "JSON lines", "settings"])
def test_a_file_without_permission_is_called_so(reader, tmp_path, monkeypatch):
    path = tmp_path / ("settings.ini" if reader == "settings" else "file")
    monkeypatch.setattr(Path, "open", no_permission(path))
    with pytest.raises(CotmiError, match="permission denied. Ask its owner"):
        READERS[reader](path)


def test_settings_may_begin_with_the_mark_of_windows(tmp_path):
    (tmp_path / "settings.ini").write_bytes(b"\xef\xbb\xbf[paths]\noutputs = here\n")
    assert load_settings(tmp_path, {})["paths.outputs"] == "here" and find_settings(tmp_path)


@pytest.mark.parametrize("accident", ["cut", "binary", "deep", "digits", "a list", "pipe", "folder", "device", "loop"])
def test_one_bad_folder_never_stops_a_list(accident, finished_run, tmp_path, command):
    for name in FORMATS:
        bad = tmp_path / "outputs" / "demo" / f"bad-{name}"
        shutil.copytree(finished_run.path, bad, ignore=shutil.ignore_patterns("student"))
        (bad / name).unlink(missing_ok=True)
        ACCIDENTS[accident](bad / name)
    shutil.copytree(finished_run.path, tmp_path / "outputs" / "demo" / "good")
    runs = list_runs(tmp_path)
    table = runs_table(runs)
    assert "good" in set(table["run"]) and len(table) >= len(FORMATS)
    assert all(isinstance(run.problems, list) and run.title for run in runs)
    assert "good" in command("list")[1]
    compare_runs(runs).to_markdown()


def test_odd_values_in_a_run_never_stop_a_list(finished_run, tmp_path):
    for i, odd in enumerate(([1], {"a": 1}, "x", None, 10**400, -1e308, True)):
        values = dict.fromkeys(("dataset", "method", "objective", "student", "seed"), odd)
        write_json(tmp_path / f"r{i}" / "config.json", {"values": values, "sources": odd})
        write_json(tmp_path / f"r{i}" / "metrics.json", dict.fromkeys(
            ("test/accuracy", "train/steps", "test/majority_accuracy", "error"), odd) | {"status": odd})
        shutil.copytree(tmp_path / f"r{i}", tmp_path / f"c{i}")
        write_json(tmp_path / f"c{i}" / "metrics.json", {**read_json(tmp_path / f"r{i}" / "metrics.json"),
                                                         "status": "complete"})
    shutil.copytree(finished_run.path, tmp_path / "good")
    runs = list_runs(tmp_path)
    assert len(runs_table(runs)) == 15 and all(run.problems or run.id == "good" for run in runs)
    compare_runs(runs).to_markdown()


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_everything_in_a_run_follows_the_umask(umask, tmp_path, monkeypatch):
    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
    before = os.umask(umask)
    try:
        run = small_run(tmp_path, method="mi", objective="infonce", max_steps=1)
        run_files = list(tmp_path.rglob("*"))
        judge_run(run.path, always(3), progress=False)
    finally:
        os.umask(before)
    assert {"model.safetensors", "critic.safetensors", "features.safetensors"} <= {p.name for p in run_files}
    for path in tmp_path.rglob("*"):
        if not path.name.endswith(".lock"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_evaluation_into_another_folder_needs_no_record(run_copy, tmp_path):
    (run_copy / RunFile.DATA_REPORT).unlink()
    before = content(run_copy)
    evaluate(run_copy, folder=tmp_path / "elsewhere", progress=False)
    assert content(run_copy) == before
    written = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert written == {"predictions.parquet", "features.safetensors", "mi.json"}


def test_a_run_of_an_earlier_version_is_known_by_its_counts(run_copy):
    report = read_json(run_copy / RunFile.DATA_REPORT)
    write_json(run_copy / RunFile.DATA_REPORT, {**report, "fingerprint": ""})
    assert evaluate(run_copy, progress=False)["test/examples"] == len(Run(run_copy).predictions)
    report["splits"]["train"]["used"] += 1
    write_json(run_copy / RunFile.DATA_REPORT, {**report, "fingerprint": ""})
    with pytest.raises(RunError, match="other data"):
        evaluate(run_copy, config=small_config(), progress=False)
