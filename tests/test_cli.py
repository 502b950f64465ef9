"""The command line: what it refuses, in one message and before anything runs, and what it prints."""

import json
import sys
from pathlib import Path

import nbformat
import pytest

from cotmi import cli
from cotmi.cli import main
from cotmi.runs import run_process
from cotmi.runs.experiments import check_parameters, experiment_parameters, find_experiment, planned_config
from cotmi.runs.run_folder import run_folder, start_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, request):
    "Whatever is refused must be refused before a notebook starts."
    if "may_run" not in request.keywords:
        monkeypatch.setattr(cli, "run_experiment", lambda *a, **k: pytest.fail("a notebook was started"))


@pytest.fixture
def cotmi(capsys, monkeypatch, tmp_path):
    "Run a command in an empty outputs folder; gives its exit code, output and errors."
    monkeypatch.setenv("COTMI_PATHS_OUTPUTS", str(tmp_path / "outputs"))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err
    return call


def refused(answer: tuple[int, str, str], *texts: str):
    "One readable message, no traceback, a non-zero exit."
    code, _, err = answer
    assert code == 1
    assert err.startswith("cotmi: ") and "Traceback" not in err
    for text in texts:
        assert text in err, err


@pytest.mark.parametrize("words, texts", [
    (["-p", "max_stepss", "5"], ["No parameter 'max_stepss'", "Did you mean 'max_steps'?"]),
    (["-p", "demo_sizes", "5"], ["Did you mean 'demo_size'?"]),
    (["-p", "max_steps", "many"], ["max_steps is 'many'; expected int"]),
    (["-p", "max_steps", "1.5"], ["max_steps is '1.5'; expected int"]),
    (["-p", "paper_protocol", "maybe"], ["paper_protocol is 'maybe'; expected bool"]),
    (["-p", "method", "dds"], ["method is 'dds'", "Did you mean 'dss'?"]),
    (["-p", "objective", "papermasked"], ["paper-masked"]),
    (["-p", "alpha", "2"], ["alpha is 2.0; expected 0 to 1"]),
    (["-p", "batch_size", "0"], ["batch_size is 0; expected 1 to 100,000"]),
    (["-p", "features", "encoder"], ["features", "vocab"]),
    (["-p", "seed", "1", "-p", "seed", "2"], ["seed is given twice"]),
    (["-p", "overrides", "{}"], ["No parameter 'overrides'"]),
    (["-p", "samples", "few"], ["samples is 'few'; expected int"]),
    (["-p", "columns", "{broken"], ["columns is '{broken'"]),
    (["-p", "seed"], ["-p seed lacks its value"]),
])
def test_parameters_are_refused_before_anything_runs(cotmi, tmp_path, words, texts):
    refused(cotmi("run", "demo", *words), *texts)
    assert not (tmp_path / "outputs").exists()


def test_unknown_experiment(cotmi):
    refused(cotmi("run", "smavp"), "no experiment 'smavp'", "Did you mean 'svamp'?", "anli1, compare, cqa, demo, esnli")


def test_values_that_a_shell_makes_hard(cotmi):
    parameters = {"dataset": "x", "overrides": {}}
    given = [("columns", '{"input": "a = b"}'), ("learning_rate", "3e-4"), ("patience", "none"), ("bf16", "yes")]
    values = check_parameters(given, parameters)["overrides"]
    assert values == {"columns": {"input": "a = b"}, "learning_rate": 3e-4, "patience": None, "bf16": True}


def test_false_is_false():
    "`--flag False` of the published code is true."
    assert check_parameters([("paper_protocol", "False")], {"overrides": {}}) == {
        "overrides": {"paper_protocol": False}}


def test_setting_of_the_wrong_type(cotmi, monkeypatch):
    monkeypatch.setenv("COTMI_TRAIN_BETA", "much")
    refused(cotmi("run", "svamp"), "train.beta in environment COTMI_TRAIN_BETA is 'much'; expected float")


def test_unknown_setting(cotmi, monkeypatch, tmp_path):
    (tmp_path / "settings.ini").write_text("[train]\nbatchsize = 3\n")
    monkeypatch.chdir(tmp_path)
    refused(cotmi("run", "svamp"), "train.batchsize", "Did you mean 'train.batch_size'?")


def planned(name: str, *pairs: tuple[str, str]):
    defaults = experiment_parameters(find_experiment(name))
    return planned_config(defaults, check_parameters(pairs, defaults))


def test_precedence(monkeypatch, tmp_path):
    "-p over environment over settings.ini over the default."
    monkeypatch.chdir(tmp_path)
    assert planned("svamp").batch_size == 64 and planned("svamp").sources["batch_size"] == "default"
    (tmp_path / "settings.ini").write_text("[train]\nbatch_size = 8\nbeta = 0.7\n")
    assert planned("svamp").batch_size == 8
    monkeypatch.setenv("COTMI_TRAIN_BATCH_SIZE", "16")
    config = planned("svamp", ("beta", "0.2"), ("weight_decay", "0.01"))
    assert (config.batch_size, config.beta, config.weight_decay) == (16, 0.2, 0.01)
    assert config.sources["batch_size"] == "environment COTMI_TRAIN_BATCH_SIZE"
    assert config.sources["weight_decay"] == "given" and config.sources["alpha"] == "default"


def test_any_parameter_can_be_a_setting(cotmi, monkeypatch, tmp_path):
    "Whatever RunConfig knows, typed as it says; `cotmi parameters` tells where each value comes from."
    (tmp_path / "settings.ini").write_text("[train]\nbf16 = yes\npatience = none\ncolumns = {\"input\": \"q\"}\n"
                                           "objective = matching:matched\ntokens_per_batch = 900\n")
    (tmp_path / "matching.py").write_text("from cotmi.training.objectives import Objective\n"
                                          "matched = Objective('matched', 'Matched', lambda z, v: z.sum())\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTMI_TRAIN_CRITIC", "concat")
    config = planned("svamp")
    assert (config.bf16, config.patience, config.columns) == (True, None, {"input": "q"})
    assert (config.objective, config.critic) == ("matching:matched", "concat")
    code, out, _ = cotmi("parameters")
    assert code == 0 and f"[900, from {tmp_path / 'settings.ini'}]" in out
    assert "[concat, from environment COTMI_TRAIN_CRITIC]" in out and "int [64]" in out


@pytest.mark.parametrize("name, text, said", [
    ("BETTA", "1", "sets COTMI_TRAIN_BETTA, which is no parameter of a run. Did you mean 'COTMI_TRAIN_BETA'?"),
    ("SOURCES", "{}", "COTMI_TRAIN_SOURCES"),
    ("METHOD", "dds", "train.method in environment COTMI_TRAIN_METHOD is 'dds'"),
    ("CRITIC", "my module:deep", "or your own as package.module:attribute"),
    ("ALPHA", "2", "train.alpha in environment COTMI_TRAIN_ALPHA is 2.0; expected 0 to 1"),
])
def test_settings_are_refused_before_anything_runs(cotmi, monkeypatch, name, text, said):
    monkeypatch.setenv(f"COTMI_TRAIN_{name}", text)
    refused(cotmi("run", "demo"), said)


@pytest.mark.parametrize("name", ["demo", "svamp", "cqa", "anli1", "esnli"])
def test_experiments_plan_their_own_dataset(name):
    assert planned(name).dataset == name


def test_real_experiments_have_the_published_values():
    config = planned("svamp")
    assert (config.student, config.learning_rate, config.batch_size) == ("google/t5-v1_1-small", 5e-5, 64)
    assert (config.max_steps, config.eval_steps, config.alpha, config.beta) == (10_000, 250, 0.5, 0.1)


def test_experiments_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_experiment("demo") == ROOT / "nbs" / "experiments" / "demo.ipynb"
    own = tmp_path / "nbs" / "experiments" / "demo.ipynb"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert find_experiment("demo") == own


@pytest.mark.parametrize("text, said", [
    ("", "not valid JSON"), ("{}", "no notebook"), ('{"cells": [{"metadata"', "not valid JSON"),
    (nbformat.writes(nbformat.v4.new_notebook()), "0 cells tagged"),
])
def test_broken_notebooks(cotmi, tmp_path, text, said):
    path = tmp_path / "own.ipynb"
    path.write_text(text)
    refused(cotmi("run", str(path)), said)


@pytest.fixture
def finished(tmp_path):
    run = start_run(planned("demo"), tmp_path / "outputs")
    return run.finish({"test/accuracy": 0.75, "test/accuracy_low": 0.7, "test/accuracy_high": 0.8,
                       "test/majority_accuracy": 0.1})


def test_complete_run_is_shown_or_refused(cotmi, finished):
    refused(cotmi("run", "demo"), str(finished.path), "--force", "--reuse")
    code, out, _ = cotmi("run", "demo", "--reuse")
    assert code == 0
    assert "0.750" in out and "0.700 – 0.800" in out and "0.100" in out and str(finished.path) in out
    assert "Next:" in out and "cotmi compare" in out


def test_list(cotmi, finished, tmp_path):
    code, out, _ = cotmi("list", str(tmp_path / "outputs"))
    assert code == 0 and finished.id in out and "complete" in out
    refused(cotmi("list", str(tmp_path / "gone")), "no folder", "cotmi run demo")
    (tmp_path / "empty").mkdir()
    refused(cotmi("list", str(tmp_path / "empty")), "No runs in")


def test_evaluate_needs_a_student(cotmi, finished, tmp_path):
    refused(cotmi("evaluate", str(finished.path)), "holds no student")
    refused(cotmi("evaluate", str(tmp_path / "gone")), "no folder")


def test_parameters(cotmi):
    code, out, _ = cotmi("parameters", "demo")
    assert code == 0 and "[builtin:tiny, from experiment demo]" in out and "Optimiser steps." in out
    assert "samples [4]" in out


@pytest.mark.parametrize("words, code", [
    (["--help"], 0), (["run", "--help"], 0), (["sweep", "--help"], 0), (["--version"], 0),
    (["run"], 2), (["rnu"], 2), (["run", "demo", "--fast"], 2),
])
def test_exit_codes(cotmi, words, code):
    assert cotmi(*words)[0] == code


def test_data(cotmi, tmp_path):
    code, out, _ = cotmi("data", "demo", "-p", "demo_size", "60", "--samples", "1")
    assert code == 0 and "majority" in out and "rationale:" in out
    refused(cotmi("data", "dmeo"), "Did you mean 'demo'?")
    refused(cotmi("data", "demo", "extra"), "takes no second name")
    refused(cotmi("data", "fetch", "imagenet"), "cotmi data fetch dss")
    refused(cotmi("data", "svamp", "-p", "augmnt", "true"), "Did you mean 'augment'?")


def test_missing_data_names_file_place_and_command(cotmi, monkeypatch, tmp_path):
    monkeypatch.setenv("COTMI_PATHS_DATA", str(tmp_path / "nowhere"))
    refused(cotmi("data", "cqa"), "cqa_train.json", str(tmp_path / "nowhere"), "cotmi data fetch dss")


@pytest.mark.parametrize("text, said", [
    ("grid: {seed: [0]}", "names no experiment"),
    ("experiment: demo\ngird: {seed: [0]}", "Did you mean 'grid'?"),
    ("experiment: demo\ngrid: {seed: 0}", "expected a list"),
    ("experiment: demo\ngrid: {sed: [0]}", "Did you mean 'seed'?"),
    ("experiment: demo\ngrid: {seed: [a]}", "seed is 'a'; expected int"),
    ("experiment: [demo", "cannot be read as YAML"),
    ("- demo", "holds no mapping"),
    ("experiment: demo\nruns: [3]", "a run is 3"),
    ("experiment: dmeo", "Did you mean 'demo'?"),
])
def test_sweep_files(cotmi, tmp_path, text, said):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    refused(cotmi("sweep", str(path)), said)
    refused(cotmi("sweep", str(tmp_path / "gone.yaml")), "does not exist")


def test_sweep_skips_what_is_complete(cotmi, tmp_path, monkeypatch, finished):
    path = tmp_path / "sweep.yaml"
    path.write_text("experiment: demo\ngrid: {method: [mi, dss, dss], seed: [0, 1]}")
    code, out, err = cotmi("sweep", str(path), "--dry-run")
    assert code == 0 and "4 runs, 1 of them complete" in err
    assert out.count("due ") == 3 and f"complete {finished.path}" in out
    ran = []

    def run_once(job, force, threads, gpu):
        given = [tuple(word.split("=")) for word in job.words if "=" in word]
        ran.append(dict(given))
        if ran[-1] == {"seed": "1", "method": "dss"}:
            return 1, "no luck"
        defaults = experiment_parameters(find_experiment("demo"))
        start_run(planned_config(defaults, check_parameters(given, defaults))).finish({"test/accuracy": 0.5})
        return 0, ""

    monkeypatch.setattr(run_process, "run_once", run_once)
    code, out, err = cotmi("sweep", str(path), "--workers", "2")
    assert len(ran) == 3 and code == 1
    assert "no luck" in err and "1 of 4 runs failed" in err and out.count("complete") == 3
    ran.clear()
    assert cotmi("sweep", str(path))[0] == 1 and len(ran) == 1


def test_unforeseen_errors_are_named_and_traced_on_demand(cotmi, monkeypatch):
    def fall(*_):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cli, "find_experiment", fall)
    code, _, err = cotmi("run", "demo")
    assert code == 1 and err == "cotmi: unforeseen ZeroDivisionError: by zero. --debug shows where; please report it.\n"
    code, _, err = cotmi("run", "demo", "--debug")
    assert code == 1 and "Traceback" in err and "in fall" in err


def test_command_is_recorded(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_experiment", lambda path, parameters, config, out, command: seen.append(command))
    monkeypatch.setattr(cli, "_show_run", lambda run: None)
    monkeypatch.setattr(cli, "Run", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["cotmi", "run", "demo", "-p", "seed", "77", "-p", "student", "my student"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert seen == ["cotmi run demo -p seed 77 -p student 'my student'"]


def test_run_folder_is_known_in_advance(tmp_path):
    config = planned("demo", ("seed", "4"))
    run = start_run(config, tmp_path)
    assert run.path == run_folder(config, tmp_path)
    assert json.loads((run.path / "config.json").read_text())["values"]["seed"] == 4
    run.finish({})


@pytest.mark.parametrize("words, server", [([], "jupyterlab"), (["--voila"], "voila")])
def test_dashboard_opens_a_notebook_over_the_runs(cotmi, finished, tmp_path, words, server):
    code, out, _ = cotmi("dashboard", "--dry-run", "--no-browser", "--port", "8899", *words)
    path = tmp_path / "outputs" / "notebooks" / "dashboard.ipynb"
    assert code == 0 and f"-m {server} {path}" in out and "--port=8899" in out and "--no-browser" in out
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    sources = [c.source for c in notebook.cells]
    assert sources == ["from cotmi import RunDashboard", f"RunDashboard({str(finished.path)!r})"]
    start_run(planned("demo", ("seed", "9")), tmp_path / "outputs").finish({})
    assert cotmi("dashboard", str(tmp_path / "outputs"), "--dry-run")[0] == 0
    assert "CompareDashboard(" in nbformat.read(path, 4).cells[1].source
    refused(cotmi("dashboard", str(tmp_path / "gone")), "no folder")


def test_dashboard_says_which_extra_is_missing(cotmi, finished, monkeypatch):
    monkeypatch.setattr("cotmi.core.find_spec", lambda name: None)
    refused(cotmi("dashboard"), "`cotmi dashboard` needs jupyterlab", "pip install 'cotmi[notebooks]'")
    refused(cotmi("dashboard", "--voila"), "needs voila", "pip install 'cotmi[dashboards]'")


def test_compare_says_what_it_lacks(cotmi, finished, tmp_path):
    refused(cotmi("compare", "--latex", "--csv"), "exclude each other")
    refused(cotmi("compare", str(tmp_path / "gone")), "no folder")
    (tmp_path / "empty").mkdir()
    refused(cotmi("compare", str(tmp_path / "empty")), "no complete run")
    code, out, _ = cotmi("compare", "--save", str(tmp_path / "table"))
    assert code == 0 and "75.0" in out and (tmp_path / "table" / "comparison.csv").exists()
