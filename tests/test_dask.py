"""A sweep on a real Dask cluster of two workers, one of which is killed in the middle."""

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import helpers_sweep as small
import pytest
from helpers_slurm import free_ports

from cotmi.core import RunError
from cotmi.runs.dask_engine import run_dask
from cotmi.runs.local_engine import EngineOptions

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals are sent as on POSIX")]


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


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    "A sweep whose first busy worker was killed."
    pytest.importorskip("distributed")
    place = tmp_path_factory.mktemp("dask")
    path = small.write_sweep(place)
    runs = small.planned(path, place / "outputs")
    with cluster(place) as (file, workers), (place / "told").open("w") as told:
        words = [small.TOOLS / "cotmi", "sweep", "small.yaml", "--on", file.name, "-o", "GPU", "1", "--every", "1"]
        command = subprocess.Popen(words, cwd=place, env=small.environment(place), stderr=told, stdout=told)
        small.wait_until("a run under way", lambda: any(map(small.begun, runs)))
        under_way = {run.folder for run in runs if small.begun(run)}
        workers[0].send_signal(signal.SIGKILL)
        assert command.wait(900) == 0, (place / "told").read_text()
        yield place, runs, under_way, (place / "told").read_text()


def test_every_run_is_done_once_and_as_by_itself(swept, tmp_path):
    place, runs, under_way, _ = swept
    small.make_reference(place / "small.yaml", tmp_path, 1)
    again = {run.folder for run in runs if "earlier" in (run.folder / "environment.json").read_text()}
    assert len(again) <= 1 and again <= under_way | {run.folder for run in runs}
    small.check_done_once(runs, tmp_path, again)


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
