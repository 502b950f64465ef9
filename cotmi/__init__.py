"A workbench for chain-of-thought distillation seen through mutual information."

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = ["CompareDashboard", "Run", "RunConfig", "RunDashboard", "compare_runs", "correlation", "estimate_mi",
           "evaluate", "list_runs", "load_data", "load_student", "train"]

# Name to module: a name is loaded when it is first used, since torch and transformers take seconds to import and
# `cotmi --help` needs neither.
_HOMES = {
    "CompareDashboard": "cotmi.dashboards.compare_dashboard", "Run": "cotmi.runs.run_folder",
    "RunConfig": "cotmi.training.run_config", "RunDashboard": "cotmi.dashboards.run_dashboard",
    "compare_runs": "cotmi.runs.comparison", "correlation": "cotmi.information.correlations",
    "estimate_mi": "cotmi.information.estimate", "evaluate": "cotmi.runs.evaluating",
    "list_runs": "cotmi.runs.run_folder", "load_data": "cotmi.data.loading",
    "load_student": "cotmi.students.loading", "train": "cotmi.training.trainer",
}

if TYPE_CHECKING: # the same names, for editors
    from cotmi.dashboards.compare_dashboard import CompareDashboard
    from cotmi.dashboards.run_dashboard import RunDashboard
    from cotmi.data.loading import load_data
    from cotmi.information.correlations import correlation
    from cotmi.information.estimate import estimate_mi
    from cotmi.runs.comparison import compare_runs
    from cotmi.runs.evaluating import evaluate
    from cotmi.runs.run_folder import Run, list_runs
    from cotmi.students.loading import load_student
    from cotmi.training.run_config import RunConfig
    from cotmi.training.trainer import train


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'cotmi' has no attribute {name!r}")
    if _HOMES[name].startswith("cotmi.dashboards."):
        from cotmi.core import require

        for package in ("plotly", "ipywidgets", "anywidget"):
            require(package, "dashboards", f"cotmi.{name}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
