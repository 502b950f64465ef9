"""A sweep as a job array of a real SLURM: one job killed, one cut off by the cluster's signal, the terminal closed."""

import os
import signal
import subprocess
from pathlib import Path

import helpers_sweep as small
import pytest
from helpers_slurm import MISSING, tiny_slurm

from cotmi.core import RunError
from cotmi.runs import slurm_engine
from cotmi.runs.local_engine import EngineOptions
from cotmi.runs.run_folder import Run
from cotmi.runs.run_process import as_job
from cotmi.runs.sweep import sweep_folder

pytestmark = [
    pytest.mark.slow, *small.PATIENCE,
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM's programs are not all here: {', '.join(MISSING)}"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="SLURM's daemons are started as root"),
]


def ask(slurm: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=slurm, capture_output=True, text=True, check=True).stdout


def job_of(slurm: dict[str, str], folder: Path, place: Path) -> str:
    "The number of the job that has a run of the first array under way, by the order of the runs."
    runs = [run.folder for run in small.planned(place / "small.yaml", place / "outputs")]
    array = min(int(line.split("_")[0]) for line in ask(slurm, "squeue", "-h", "-r", "-o", "%i").split())
    return f"{array}_{runs.index(folder)}"


def cut_off_one(slurm: dict[str, str], sign: str, place: Path, runs: list, cut_off: list[Path]) -> bool:
    "Send a signal to the job of a run under way; False where there is none."
    for run in runs:
        if run.folder not in cut_off and small.begun(run):
            number = job_of(slurm, run.folder, place)
            # its exit code is of no use: the job may be back in the queue before scancel has its answer
            subprocess.run(["scancel", f"--signal={sign}", number], env=slurm, capture_output=True)
            cut_off.append(run.folder)
            return True
    return False


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    "A sweep that had one job killed and one cut off, and whose command was killed while it waited."
    pytest.importorskip("submitit")
    place = tmp_path_factory.mktemp("slurm")
    path = small.write_sweep(place)
    runs = small.planned(path, place / "outputs")
    words = [small.TOOLS / "cotmi", "sweep", "small.yaml", "--on", "slurm", "-o", "time", "30", "-o", "partition",
             "short"]
    with tiny_slurm(place / "daemons") as slurm, pytest.MonkeyPatch.context() as patched:
        patched.setenv("SLURM_CONF", slurm["SLURM_CONF"])
        with (place / "told").open("w") as told:
            command = subprocess.Popen(words, cwd=place, env=small.environment(place), stderr=told, stdout=told)
        cut_off: list[Path] = []
        for sign in ("KILL", "USR2"): # the second is what SLURM sends before a time limit, and when it preempts
            small.wait_until("a run under way", lambda sign=sign: cut_off_one(slurm, sign, place, runs, cut_off))
        small.wait_until("the killed job", lambda: len(list(place.rglob("*_submission.sh"))) == 2)
        command.send_signal(signal.SIGKILL) # the terminal is closed
        command.wait()
        again = small.cotmi(place, "sweep", "small.yaml", "--on", "slurm")
        small.wait_until("the queue", lambda: not ask(slurm, "squeue", "-h", "-o", "%i").strip(), 300 * small.RUNS)
        yield place, runs, set(cut_off), again, slurm


def test_every_run_is_done_once_and_as_by_itself(swept, tmp_path):
    place, runs, cut_off, _, _ = swept
    small.make_reference(place / "small.yaml", tmp_path, 3)
    assert len(runs) == small.RUNS and len(cut_off) == 2
    small.check_done_once(runs, tmp_path, cut_off)


def test_a_sweep_in_the_queue_is_not_put_there_twice(swept):
    _, _, _, again, _ = swept
    assert again.returncode == 1 and "in the queue already" in again.stderr, again.stderr


def test_the_table_is_there_later(swept):
    place, runs, _, _, _ = swept
    done = small.cotmi(place, "sweep", "small.yaml", "--status")
    assert done.returncode == 0 and f"{len(runs)} runs: {len(runs)} complete" in done.stdout
    assert done.stdout.count("120/120") == len(runs)


def test_whoever_waits_gets_every_run_back(swept, monkeypatch):
    place, runs, _, _, _ = swept
    options = EngineOptions(sweep_folder(place / "small.yaml", place / "outputs"), "slurm")
    jobs = {f"1_{number}": as_job(run) for number, run in enumerate(runs)}
    lost = as_job(runs[0].__class__(**{**vars(runs[0]), "folder": place / "outputs" / "demo" / "gone"}))
    monkeypatch.setattr(slurm_engine, "submit",
                        lambda *_, again=False: {"9_9": lost} if again else {**jobs, "9_8": lost})
    ended = list(slurm_engine.run_slurm([*jobs.values(), lost], options))
    assert [message for job, message in ended if job != lost] == [None] * len(runs)
    (said,) = [message for job, message in ended if job == lost]
    assert "is not begun" in said and "9_9" in said


def test_what_sbatch_refuses_is_said(swept, tmp_path):
    place, runs, _, _, _ = swept
    options = EngineOptions(tmp_path, "slurm", options={"partition": "nowhere"})
    with pytest.raises(RunError, match="nowhere|partition"):
        slurm_engine.submit([as_job(runs[0])], options)
    assert Run(runs[0].folder).status == "complete"


@pytest.mark.skipif(not small.MANY, reason="a run of minutes: COTMI_SWEEP_RUNS=12 makes it as well")
def test_a_run_gets_on_under_a_time_limit_that_it_exceeds(tmp_path):
    "SLURM ends the job at its shortest limit, as often as it takes, and the run is as one without a limit."
    pytest.importorskip("submitit")
    path = small.write_sweep(tmp_path, "long.yaml", 1, max_steps=4000, eval_steps=100)
    (run,) = small.planned(path, tmp_path / "outputs")
    # SLURM looks every half minute whom to warn: any longer notice takes half of the minute.
    words = ("--on", "slurm", "-o", "time", 1, "-o", "signal_delay_s", 5)
    with tiny_slurm(tmp_path / "daemons") as slurm:
        done = small.cotmi(tmp_path, "sweep", path.name, *words, seconds=3000, SLURM_CONF=slurm["SLURM_CONF"])
        assert done.returncode == 0, done.stderr
        (job,) = ask(slurm, "scontrol", "show", "job", "--oneliner").splitlines()
    facts = dict(word.split("=", 1) for word in job.split() if "=" in word)
    assert (facts["TimeLimit"], facts["JobState"]) == ("00:01:00", "COMPLETED")
    assert 2 <= small.starts(run) <= 1 + int(facts["Restarts"]) # a start may be cut off before the run is begun
    small.make_reference(path, tmp_path / "reference", 1)
    made, place = Run(run.folder), tmp_path / "reference" / "demo" / run.folder.name
    assert (made.status, made.problems) == ("complete", [])
    small.check_equal(made, Run(place))
    print(f"ended by the limit {facts['Restarts']} times, begun {small.starts(run)} times")
