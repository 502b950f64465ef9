"""A whole run, trained in two steps, and what its folder holds: for the tests of what is written when."""

from pathlib import Path
from typing import Any

from cotmi.runs.execution import execute
from cotmi.runs.run_folder import Run, open_run
from cotmi.training.run_config import RunConfig


def small_config(**changes: Any) -> RunConfig:
    "A configuration that is trained in a second or two."
    return RunConfig(**{"dataset": "demo", "demo_size": 60, "method": "dss", "student": "builtin:tiny", "max_steps": 2,
                        "eval_steps": 1, "batch_size": 8, "estimate_mi": False, "generation_max_length": 8, **changes})


def small_run(out: Path, **changes: Any) -> Run:
    "A complete run."
    return execute(small_config(**changes), out=out)


def content(folder: Path) -> dict[str, bytes]:
    "Every file below a folder, hidden ones included."
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def figures(run: Run) -> dict[str, Any]:
    "The results of a run that two runs of one configuration share."
    run.refresh()
    return {name: value for name, value in run.metrics.items()
            if name.startswith(("test/", "valid/")) or name in ("status", "train/steps", "train/best_step")}


def lock_is_free(folder: Path) -> bool:
    "Whether the next writer may have the run; raises what it would be told."
    open_run(folder).close()
    return True


def refused(cotmi: Any, *words: object) -> str:
    "What a command says that ends in one message of one line, no traceback and a code of failure."
    code, _, err = cotmi(*words)
    said = [line for line in err.splitlines() if line.startswith("cotmi: ")]
    assert code != 0 and len(said) == 1 and "Traceback" not in err, err
    assert "unforeseen" not in said[0] and len(said[0]) <= len("cotmi: ") + 400, said[0]
    return said[0]
