"""A sweep whose runs have several processes each."""

import helpers_sweep as small
import pytest

from cotmi.runs.run_folder import Run

pytestmark = [pytest.mark.slow, *small.PATIENCE]


def test_a_run_of_a_sweep_may_have_several_processes(tmp_path):
    path = small.write_sweep(tmp_path, runs=1, max_steps=20)
    (run,) = small.planned(path, tmp_path / "outputs")
    done = small.cotmi(tmp_path, "sweep", path.name, "--processes", 2)
    assert done.returncode == 0, done.stderr
    made = Run(run.folder)
    assert (made.status, made.environment["processes"]) == ("complete", 2)
    assert made.history["step"].max() == 20
    again = small.cotmi(tmp_path, "sweep", path.name, "--processes", 3, "--dry-run")
    assert "1 runs, 1 of them complete already." in again.stderr
    refused = small.cotmi(tmp_path, "sweep", path.name, "--processes", 5, "--force", "--dry-run")
    assert refused.returncode == 1 and "There are 5 processes for a batch_size of 4" in refused.stderr
