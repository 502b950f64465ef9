"""What the code promises about itself, counted: `python tests/house_figures.py -v` prints every case."""

import statistics

import house_figures as figures

# Comparisons that look like a record's name and are none, each with what it is.
NO_RECORD = {
    ("cli", "what != 'dss'"): "an archive",
    ("dashboards.intervals", "{'mi', 'accuracy'} <= set(runs.columns)"): "columns of a table",
    ("information.estimate", "start == 'gaussian'"): "a way to start a critic",
    ("runs.search_ranges", "'choices' in said"): "a key of a sweep file",
    ("training.step", "name != 'mi'"): "a term of the loss",
    ("training.step", "name in ('mi', 'bottleneck')"): "terms of the loss",
}
# Modules whose business the names are: their records are written there.
RECORDS = ("data.labels", "students.methods", "information.bounds", "information.critics", "training.objectives")
# Imports inside functions, each with its reason.
TORCH = "brings torch, which takes seconds to import, and readers of runs do without it"
EXTRA = "needs packages of the extra `dashboards`"
COMMAND = "only this command needs it, and help has to come at once"
LATE = {
    ("__init__", "core"): "only where an extra is missing",
    **{("cli", module): COMMAND for module in (
        "data.dataset", "data.fetch", "dashboards.dashboard_notebook", "dashboards.data_page", "dashboards.report",
        "evaluation.metrics",
        "llm.agreement", "llm.commands", "llm.endpoint", "runs.comparison", "runs.evaluating", "runs.experiments",
        "runs.judging", "runs.results", "runs.run_folder", "runs.second_opinions", "runs.sharing",
        "runs.execution", "runs.planning", "runs.progress", "runs.sweep_command", "runs.sweep_file", "runs.workspace",
        "training.run_config")},
    ("dashboards.asking", "evaluation.answers"): TORCH, ("dashboards.asking", "students.features"): TORCH,
    ("dashboards.asking", "students.tasks"): TORCH, ("dashboards.asking", "training.run_lengths"): TORCH,
    ("dashboards.calibration_figures", "evaluation.calibration"): TORCH,
    ("dashboards.in_experiments", "dashboards.curves"): EXTRA,
    ("dashboards.in_experiments", "dashboards.live_monitor"): EXTRA,
    ("dashboards.information_view", "information.bounds"): TORCH,
    ("dashboards.reestimate", "information.bounds"): TORCH, ("dashboards.reestimate", "information.critics"): TORCH,
    ("dashboards.reestimate", "information.estimate"): TORCH,
    ("dashboards.reestimate", "information.cross_fitting"): TORCH,
    ("dashboards.slices", "information.estimate"): TORCH,
    ("dashboards.run_dashboard", "evaluation.calibration"): "in the background, for the views that come next",
    ("dashboards.run_dashboard", "information.bounds"): "in the background, for the views that come next",
    ("dashboards.playground", "training.run_config"): "only a loaded student needs it",
    ("dashboards.playground", "evaluation.attribution"): TORCH,
    ("runs.comparison", "runs.comparison_figure"): EXTRA,
    ("runs.evaluating", "evaluation.evaluator"): TORCH, ("runs.execution", "evaluation.evaluator"): TORCH,
    ("runs.execution", "training.trainer"): TORCH, ("runs.execution", "training.run_lengths"): TORCH,
    ("runs.run_folder", "students.loading"): TORCH,
    ("runs.run_folder", "data.loading"): "datasets takes a second to import",
    ("training.run_config", "data.loading"): "datasets takes a second to import",
    ("training.run_config", "information.bounds"): TORCH, ("training.run_config", "information.critics"): TORCH,
    ("training.run_config", "training.objectives"): TORCH, ("training.run_config", "students.precision"): TORCH,
}


def test_only_records_compare_names():
    compared = {(name, text) for name, tree in figures.modules().items() if name not in RECORDS
                for _, text in figures.compared_names(tree)}
    assert compared == set(NO_RECORD), "ask the record instead of comparing its name"


def test_no_method_is_glued_on():
    assert figures.patches() == [], "write the class whole"


def test_late_imports_have_a_reason():
    assert figures.hidden_imports() == [], "import by name, not by a string"
    assert figures.late_imports() == set(LATE), "name the late import here with its reason, or make it at the top"


def test_cells_are_short():
    cells = figures.export_cells()
    large = [(lines, where, body[:60]) for lines, where, body in cells if lines > 40 and not figures.is_table(body)]
    assert not large, f"over 40 lines and no table of data: {large}"
    median = statistics.median(lines for lines, *_ in cells)
    assert median <= 12, f"the median export cell has {median} lines"


def test_functions_are_short():
    long = [case for case in figures.functions() if case[0] > 60]
    assert not long, f"over 60 lines: {long}"


def test_parameters_are_described():
    described, every, lacking = figures.described_parameters()
    assert described >= 0.95 * every, lacking


def test_public_names_have_a_docstring():
    assert figures.without_docstring() == []
