"""A full or read-only disk at every stage: the command says so, nothing is lost, the lock is gone, and with room the
same command completes. The disks are small ones in memory, mounted by the tests where that is allowed."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from helpers_small_run import content, figures, lock_is_free, refused, small_config

from cotmi.core import RunFile, StorageError, read_json, write_json
from cotmi.llm.endpoint import Endpoint
from cotmi.runs.evaluating import evaluate
from cotmi.runs.execution import execute
from cotmi.runs.judging import judge_run
from cotmi.runs.run_folder import Run, list_runs, run_folder, start_run


def _mount(*words: object):
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Iterator[Path]:
    "A disk of sixteen megabytes."
    if os.name != "posix" or os.geteuid():
        pytest.skip("only root may mount a disk")
    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
    (place := tmp_path / "disk").mkdir()
    _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, room: int = 0):
    "Leave so many bytes free, in whole pages."
    (filler := disk / "filler").unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, free - room))


def make_room(disk: Path):
    (disk / "filler").unlink()


@pytest.fixture
def run_on_disk(finished_run, disk) -> Path:
    "The folder of a complete run on the small disk."
    return Path(shutil.copytree(finished_run.path, disk / "demo" / finished_run.id))


def judge() -> Endpoint:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"choices": [{"message": {"content": json.dumps({"score": 3})}}]})
    return Endpoint("http://judge/v1", "toy", workers=1, transport=httpx2.MockTransport(answer))


def kept(folder: Path) -> dict[str, bytes]:
    "What is worth keeping: all but the filler and the locks, which are empty files."
    return {name: data for name, data in content(folder).items() if name != "filler" and not name.endswith(".lock")}


# Bytes that are free when it starts: none, enough for the small files, for a checkpoint, for a student, for all.
ROOM = [0, 4096, 20_000, 200_000, 1_500_000, 3_000_000, 5_000_000, 6_500_000, 8_000_000]


def test_training_and_evaluation_stop_at_a_full_disk_and_go_on(disk, finished_run):
    "With more room each time: every attempt fails readably or is whole, and the last one equals a run with room."
    folder, failed = run_folder(small_config(), disk), 0
    for room in ROOM:
        fill(disk, room)
        try:
            execute(small_config(), out=disk)
        except StorageError as fault:
            failed += 1
            assert "the disk is full. Make room" in str(fault) and len(str(fault)) <= 400
        make_room(disk)
        if folder.exists():
            assert lock_is_free(folder) and Run(folder).status in ("stopped", "failed", "unknown", "complete")
            assert not [name for name in content(folder.parent) if ".cotmi-" in name], "nothing half-written stays"
        if folder.exists() and Run(folder).status == "complete":
            break
    else:
        execute(small_config(), out=disk)
    assert failed >= 3, "the disk was never full"
    assert figures(Run(folder)) == figures(finished_run) and not Run(folder).problems


def full_or_read_only(disk: Path, how: str):
    fill(disk) if how == "full" else _mount("-o", "remount,ro", disk)


def usable(disk: Path, how: str):
    make_room(disk) if how == "full" else _mount("-o", "remount,rw", disk)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_an_evaluation_leaves_the_former_results(how, run_on_disk, disk, command):
    write_json(run_on_disk / RunFile.METRICS, {**read_json(run_on_disk / RunFile.METRICS), "test/old": 1})
    before = kept(disk)
    full_or_read_only(disk, how)
    said = refused(command, "evaluate", run_on_disk)
    assert ("the disk is full" if how == "full" else "the file system is read-only") in said
    assert "complete" in command("list", disk)[1], "reading goes on"
    usable(disk, how)
    assert kept(disk) == before and lock_is_free(run_on_disk)
    evaluate(run_on_disk, progress=False)
    assert "test/old" not in Run(run_on_disk).metrics and Run(run_on_disk).status == "complete"


@pytest.mark.parametrize("room", [0, 8192, 30_000, 45_000])
def test_an_evaluation_is_written_whole_or_not_at_all(room, run_on_disk, disk):
    write_json(run_on_disk / RunFile.METRICS, {**read_json(run_on_disk / RunFile.METRICS), "test/old": 1})
    before = kept(disk)
    fill(disk, room)
    with pytest.raises(StorageError):
        evaluate(run_on_disk, progress=False)
    make_room(disk)
    assert kept(disk) == before and lock_is_free(run_on_disk)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_judge_run_leaves_the_former_results(how, run_on_disk, disk):
    judge_run(run_on_disk, judge(), progress=False, examples=2)
    before = kept(disk)
    full_or_read_only(disk, how)
    with pytest.raises(StorageError):
        judge_run(run_on_disk, judge(), progress=False)
    usable(disk, how)
    after = kept(disk)
    assert {n for n in before if before[n] != after[n]} <= {n for n in before if n.endswith(RunFile.VERDICTS)}
    assert set(after) == set(before) and lock_is_free(run_on_disk)
    judge_run(run_on_disk, judge(), progress=False)
    summary = read_json(run_on_disk / RunFile.JUDGEMENT)
    assert summary["scored"] == summary["examples"] > 2 and Run(run_on_disk).metrics["test/rationale_judge"]


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_forced_run_that_cannot_begin_leaves_the_one_it_would_replace(how, run_on_disk, disk):
    before = kept(disk)
    full_or_read_only(disk, how)
    with pytest.raises(StorageError):
        start_run(small_config(), disk, force=True)
    usable(disk, how)
    assert kept(disk) == before and lock_is_free(run_on_disk)
    assert [run.status for run in list_runs(disk)] == ["complete"]


def test_a_run_that_fails_on_a_full_disk_says_why_and_lets_its_lock_go(disk):
    run = start_run(small_config(), disk)
    with pytest.raises(ZeroDivisionError), run:
        fill(disk)
        raise ZeroDivisionError("the first error is the one to see")
    make_room(disk)
    assert Run(run.path).status == "stopped" and lock_is_free(run.path)


@pytest.mark.parametrize("fault", [
    RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3"),
    OSError(28, "No space left on device"), OSError("Error writing bytes to file. Detail: [errno 28] No space left"),
], ids=["torch", "system", "pyarrow"])
def test_whichever_library_meets_the_full_disk_it_is_called_one(fault, tmp_path):
    run = start_run(small_config(), tmp_path)
    with pytest.raises(StorageError, match="the disk is full"), run:
        raise fault
    assert "the disk is full" in Run(run.path).metrics["error"] and lock_is_free(run.path)


def test_a_sweep_and_a_report_on_a_full_disk(run_on_disk, disk, command, tmp_path, monkeypatch):
    monkeypatch.setenv("COTMI_PATHS_OUTPUTS", str(disk))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("experiment: demo\nparameters: {student: 'builtin:tiny', demo_size: 60, max_steps: 1}\n"
                     "grid: {seed: [0]}\n")
    before = kept(disk)
    fill(disk)
    code, _, err = command("sweep", sweep, "--out", disk)
    assert code == 1 and "the disk is full" in err and "Traceback" not in err and "unforeseen" not in err, err
    assert command("compare", disk, "--save", tmp_path / "tables")[0] == 0 and (tmp_path / "tables").is_dir()
    assert "the disk is full" in refused(command, "compare", disk, "--save", disk / "tables")
    make_room(disk)
    assert kept(disk) == before
