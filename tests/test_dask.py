"""A sweep on a real Dask cluster of two workers, one of which is killed in the middle."""

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import helpers_sweep as small
import pytest
from helpers_ports import free_ports

from cotmi.core import RunError
from cotmi.runs.dask_engine import run_dask
from cotmi.runs.local_engine import EngineOptions

pytestmark = [pytest.mark.slow, *small.PATIENCE, pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="the worker that has a run is found in /proc")]


@contextmanager
def cluster(place: Path):
    "A scheduler, its file, and two workers without a nanny that would start them anew."
    file, processes = place / "scheduler.json", []
    env = small.environment(place)
    with (place / "daemons.log").open("w") as log:
        def start(*words: str) -> None:
            processes.append(subprocess.Popen([str(small.TOOLS / "dask"), *words], cwd=place, env=env, stdout=log,
                                              stderr=log))
        try:
            start("scheduler", "--host", "127.0.0.1", "--port", str(free_ports(1)[0]), "--no-dashboard",
                  "--scheduler-file", str(file))
            small.wait_until("the scheduler", file.is_file)
            for name in ("one", "two"):
                start("worker", "--scheduler-file", str(file), "--name", name, "--no-nanny", "--nthreads", "1",
                      "--no-dashboard", "--resources", "GPU=1", "--local-directory", str(place / name))
            yield file, processes[1:]
        finally:
            for process in processes:
                process.kill()
                process.wait(30)


def descendants(number: int) -> list[int]:
    "The processes that a process has started, those that they have started, and so on."
    files = Path(f"/proc/{number}/task").glob("*/children")
    own = [int(word) for file in files for word in file.read_text().split()]
    return [*own, *(other for child in own for other in descendants(child))]


def has_open(number: int, file: Path) -> bool:
    "Whether a process has a file open; False for one that is gone."
    with suppress(OSError):
        return any(os.readlink(link) == str(file) for link in Path(f"/proc/{number}/fd").iterdir())
    return False


def busy_one(workers: list[subprocess.Popen], runs: list) -> tuple[subprocess.Popen, Path] | None:
    "A worker one of whose processes holds the lock of a run that can be resumed, and the folder of that run."
    for run in filter(small.begun, runs):
        lock = run.folder.parent / f".{run.folder.name}.lock"
        for worker in workers:
            if any(has_open(number, lock.resolve()) for number in descendants(worker.pid)):
                return worker, run.folder
    return None


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    "A sweep of which one worker was killed with a run under way; with that run."
    pytest.importorskip("distributed")
    place = tmp_path_factory.mktemp("dask")
    path = small.write_sweep(place)
    runs = small.planned(path, place / "outputs")
    with cluster(place) as (file, workers), (place / "told").open("w") as told:
        words = [small.TOOLS / "cotmi", "sweep", "small.yaml", "--on", file.name, "-o", "GPU", "1", "--every", "1"]
        command = subprocess.Popen(words, cwd=place, env=small.environment(place), stderr=told, stdout=told)
        found: list[tuple[subprocess.Popen, Path]] = []
        small.wait_until("a run under way", lambda: found.extend(filter(None, [busy_one(workers, runs)])) or found)
        worker, folder = found[0]
        worker.send_signal(signal.SIGKILL)
        assert command.wait(3000 if small.MANY else 900) == 0, (place / "told").read_text()
        yield place, runs, folder, (place / "told").read_text()


def test_every_run_is_done_once_and_as_by_itself(swept, tmp_path):
    place, runs, cut_off, _ = swept
    small.make_reference(place / "small.yaml", tmp_path, 1)
    small.check_done_once(runs, tmp_path, {cut_off})


def test_it_tells_how_far_and_shows_one_table(swept):
    _, runs, _, said = swept
    assert "running" in said and f"complete {len(runs)}/{len(runs)}" in said
    assert sum("complete" in line and line.endswith(run.folder.name) for line in said.splitlines() for run in runs
               ) == 2 * len(runs) # once when it ended, once in the table


def test_a_scheduler_that_is_not_there_is_said(tmp_path):
    pytest.importorskip("distributed")
    nobody = EngineOptions(tmp_path, f"tcp://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(RunError, match="No Dask scheduler answers"):
        list(run_dask([], nobody, timeout=1))
    with pytest.raises(RunError, match="dask scheduler --scheduler-file"):
        list(run_dask([], EngineOptions(tmp_path, "gone.json")))
