"""The experiments as a user starts them: in their own processes, on tiny sizes, and what they say when they cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from cotmi.runs.execution import execute
from cotmi.runs.run_files import RUN_FILES
from cotmi.runs.run_folder import Run, list_runs
from cotmi.training.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
TINY = {"max_steps": 8, "eval_steps": 4, "demo_size": 120, "batch_size": 16, "mi_pairs": 12,
        "generation_max_length": 24}
DATA = os.environ.get("COTMI_PATHS_DATA", "")
needs_data = pytest.mark.skipif(not Path(DATA, "svamp").is_dir() or not DATA,
                                reason="COTMI_PATHS_DATA names no folder with the published teacher data")


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "COTMI_PATHS_OUTPUTS": str(folder / "outputs"), "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", **more}


def options(parameters: dict) -> list[str]:
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


def cotmi(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    "Run a command in an empty folder, as a user would."
    return subprocess.run([str(TOOLS / "cotmi"), *words], cwd=folder, env=environment(folder, **more),
                          capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "A complete run of the demo, with what the command printed."
    folder = tmp_path_factory.mktemp("demo")
    done = cotmi(folder, "run", "demo", *options(TINY))
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(folder / "outputs")
    return folder, done, run


def test_demo_leaves_a_whole_run_folder(demo):
    _, _, run = demo
    values = run.predictions, run.features, run.history, run.report, run.mi
    assert all(value is not None for value in values)
    assert (run.status, run.problems) == ("complete", [])
    assert {p.name for p in run.path.iterdir()} >= {*RUN_FILES, "notebook.ipynb", "student"}
    assert not (run.path / "checkpoints").exists()
    assert [p.name for p in run.path.parent.iterdir() if not p.name.endswith(".lock")] == [run.id]
    assert run.config["max_steps"] == 8 and run.config_sources["max_steps"] == "given"
    assert run.environment["command"].startswith("cotmi run demo -p max_steps 8")
    assert run.history["valid/accuracy"].count() == 2 and run.history["loss/mi"].count() > 0
    assert {"test/accuracy_low", "test/majority_accuracy", "test/ece", "train/steps"} <= set(run.metrics)
    assert len(run.predictions) == run.metrics["test/examples"] == 12


def test_demo_prints_table_folder_and_next_step(demo):
    _, done, run = demo
    for text in ("demo · mi paper-masked · builtin:tiny · seed 0", "student", "majority label", "95 % interval",
                 str(run.path), "Next: "):
        assert text in done.stdout
    for text in ("Data …", "Train …", "8/8", "Evaluate …"):
        assert text in done.stderr, "progress is shown as it comes"


def test_executed_notebook_is_whole(demo):
    _, _, run = demo
    notebook = nbformat.read(run.path / "notebook.ipynb", 4)
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "error"]
    assert sum("application/vnd.plotly.v1+json" in o.get("data", {}) for o in outputs) == 2
    assert any("injected-parameters" in c.metadata.get("tags", ()) for c in notebook.cells)
    assert (run.path / "notebook.ipynb").stat().st_size < 1_000_000
    progress = [o.text for o in outputs if o.output_type == "stream" and "8/8" in o.text]
    assert len(progress) == 1 and "1/8" not in progress[0], "a progress bar is one line in the saved notebook"


def test_student_is_a_plain_checkpoint(demo):
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    _, _, run = demo
    model = AutoModelForSeq2SeqLM.from_pretrained(run.path / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(run.path / "student")
    rows = run.predictions
    batch = tokenizer(["predict: " + text for text in rows["input"]], padding=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=run.config["generation_max_length"], do_sample=False, num_beams=1)
    assert [t.strip() for t in tokenizer.batch_decode(ids, skip_special_tokens=True)] == list(rows["predicted_label"])


def test_plain_papermill_does_as_well(tmp_path):
    parameters = {**TINY, "method": "finetune", "out": str(tmp_path / "runs")}
    overrides = {k: parameters.pop(k) for k in ("mi_pairs", "generation_max_length")} | {"estimate_mi": False}
    parameters = options(parameters) + ["-y", json.dumps({"overrides": overrides})]
    done = subprocess.run(
        [str(TOOLS / "papermill"), str(ROOT / "nbs" / "experiments" / "demo.ipynb"), str(tmp_path / "out.ipynb"),
         *parameters, "--no-progress-bar"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    assert run.status == "complete" and run.config["method"] == "finetune"
    assert run.config["estimate_mi"] is False


EQUATIONS = [{"input": f"A shelf holds {n} jars and {n + 1} bowls. How many things?", "label": f"( {n}.0 + {n + 1}.0 )"}
             for n in range(2, 12)]


def broken_data(folder: Path) -> dict[str, list[str]]:
    "Data that cannot be used, and the command that meets it."
    rows = [{"input": f"{n} and 1?", "label": str(n + 1), "rationale": f"{n} + 1 = {n + 1}."} for n in range(40)]
    own = {"empty.jsonl": "", "norationale.jsonl": "\n".join(json.dumps({**r, "rationale": ""}) for r in rows),
           "nocolumn.jsonl": "\n".join(json.dumps({"question": r["input"], "label": r["label"]}) for r in rows)}
    for name, text in own.items():
        (folder / name).write_text(text)
    svamp = folder / "data" / "svamp"
    (svamp / "llm").mkdir(parents=True)
    for split in ("train", "test"):
        (svamp / f"svamp_{split}.json").write_text("\n".join(map(json.dumps, EQUATIONS)))
        said = json.dumps(["Jars and bowls add up. The answer is (2 + 3)."] * len(EQUATIONS))
        (svamp / "llm" / f"{split}_CoT_0.json").write_text(said[: len(said) // 2] if split == "train" else said)
    return {"missing": ["cqa"], "cut": ["svamp"], **{
        name.removesuffix(".jsonl"): ["demo", "-p", "dataset", str(folder / name)] for name in own}}


SAID = {"missing": ["cqa_train.json", "does not exist", "cotmi data fetch dss"], "cut": ["train_CoT_0.json"],
        "empty": ["empty.jsonl"], "nocolumn": ["nocolumn.jsonl"],
        "norationale": ["norationale", "no usable row", "empty rationale"]}


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    "What the commands say to broken data."
    folder = tmp_path_factory.mktemp("broken")
    commands = broken_data(folder)
    with ThreadPoolExecutor(2) as pool:
        tiny = options({"student": "builtin:tiny", "max_steps": 2})
        done = pool.map(lambda words: cotmi(folder, "run", *words, *tiny, COTMI_PATHS_DATA=str(folder / "data")),
                        commands.values())
        return folder, dict(zip(commands, done, strict=True))


@pytest.mark.parametrize("kind", SAID)
def test_broken_data_gets_one_message_and_no_run(failures, kind):
    folder, answers = failures
    done = answers[kind]
    assert done.returncode == 1
    messages = [line for line in done.stderr.splitlines() if line.startswith("cotmi: ")]
    assert len(messages) == 1 and "unforeseen" not in done.stderr, done.stderr
    # Not "no traceback at all": now and then an ipykernel that is shut down logs that its event loop is closed.
    assert "/cotmi/cli.py" not in done.stderr and done.stderr.splitlines()[-1] == messages[0], done.stderr
    for text in SAID[kind]:
        assert text in done.stderr
    assert "Run folder" not in done.stdout
    outputs = folder / "outputs"
    assert not outputs.exists() or (list_runs(outputs) == [] and not list(outputs.rglob("*.ipynb")))


def test_compare_experiment(demo):
    folder, _, _ = demo
    outputs, table = str(folder / "outputs"), str(folder / "table")
    done = cotmi(folder, "run", "compare", "-p", "folders", outputs, "-p", "save", table)
    assert done.returncode == 0, done.stderr
    assert (folder / "outputs" / "notebooks" / "compare.ipynb").exists()
    assert "mi" in (folder / "table" / "comparison.md").read_text()
    for form, text in (("--markdown", "| "), ("--latex", "toprule"), ("--csv", "dataset,")):
        done = cotmi(folder, "compare", str(folder / "outputs"), form)
        assert done.returncode == 0 and text in done.stdout, done.stderr


def test_evaluate_again_gives_the_same(demo):
    folder, _, run = demo
    before, table = dict(run.metrics), run.predictions
    done = cotmi(folder, "evaluate", str(run.path))
    assert done.returncode == 0 and "majority label" in done.stdout, done.stderr
    again = Run(run.path)
    changed = {k for k in before if again.metrics.get(k) != before[k]}
    assert changed <= {"ended"} and again.predictions.equals(table) and not again.problems


def test_failed_run_says_so_in_its_folder(demo, tmp_path):
    "A sweep over a complete run and one whose student is broken: the first is kept, the second fails readably."
    folder, _, whole = demo
    broken, sweep = tmp_path / "broken-student", tmp_path / "sweep.yaml"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    sweep.write_text(json.dumps({"experiment": "demo", "parameters": TINY,
                                 "grid": {"student": ["builtin:tiny", str(broken)]}}))
    before = (whole.path / "metrics.json").stat().st_mtime_ns
    done = cotmi(folder, "sweep", str(sweep))
    assert done.returncode == 1 and "2 runs, 1 of them complete already" in done.stderr
    assert "1 of 2 runs failed" in done.stderr and "Traceback" not in done.stderr
    assert (whole.path / "metrics.json").stat().st_mtime_ns == before
    (run,) = [r for r in list_runs(folder / "outputs") if r.id != whole.id]
    assert run.status == "failed" and broken.name in run.metrics["error"]
    assert any(broken.name in problem for problem in run.problems)
    assert not (run.path / "predictions.parquet").exists() and not (run.path / "student").exists()
    kept = nbformat.read(run.path / "notebook.ipynb", 4)
    assert any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", ()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on POSIX")
def test_interrupted_command_resumes(tmp_path):
    words = ["run", "demo", *options({**TINY, "max_steps": 60, "eval_steps": 4, "estimate_mi": False})]
    process = subprocess.Popen([str(TOOLS / "cotmi"), *words], cwd=tmp_path, env=environment(tmp_path),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               # a shell's background job ignores the signal, and so would all that it starts
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.time() + 120
    while not list(tmp_path.rglob("checkpoint-*/trainer_state.json")) and time.time() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "/cotmi/cli.py" not in said, said  # an interrupted kernel may log its own
    assert said.endswith("cotmi: Interrupted. The same command goes on where this one stopped.\n"), said
    (run,) = list_runs(tmp_path / "outputs")
    assert run.status == "stopped" and not (run.path / "predictions.parquet").exists()
    done = cotmi(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    run = Run(run.path)
    assert run.status == "complete" and run.metrics["train/steps"] == 60
    steps = run.history.loc[run.history["valid/accuracy"].notna(), "step"]
    assert list(steps) == list(range(4, 61, 4)), "no step is lost and none is trained twice"
    assert len(run.environment["earlier"]) == 1


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "single_task", "dss", "mi", "paper-code"])
@pytest.mark.parametrize("dataset", ["svamp", "cqa", "anli1"])
def test_real_data_through_every_method(tmp_path, dataset, method):
    config = RunConfig.resolve({
        "dataset": dataset, "method": "mi" if method == "paper-code" else method, "student": "builtin:tiny",
        "objective": "paper-code" if method == "paper-code" else None, "max_steps": 2, "batch_size": 4,
        "train_split": "valid" if dataset == "anli1" else None, "max_train_examples": 32, "max_valid_examples": 4,
        "max_test_examples": 6, "max_input_length": 64, "max_target_length": 64, "generation_max_length": 4,
        "estimate_mi": False})
    run = execute(config, out=tmp_path)
    assert (run.status, run.problems) == ("complete", [])
    assert len(run.predictions) == 6 and run.metrics["test/majority_accuracy"] > 0


@needs_data
@pytest.mark.slow
def test_real_experiment_as_a_command(tmp_path):
    done = cotmi(tmp_path, "run", "svamp", *options({
        "student": "builtin:tiny", "max_steps": 4, "batch_size": 8, "max_test_examples": 10, "max_valid_examples": 10,
        "estimate_mi": "false", "generation_max_length": 16}), COTMI_PATHS_DATA=str(Path(DATA).resolve()))
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path / "outputs")
    assert (run.status, run.problems) == ("complete", [])
    train = run.report.files["train"]
    assert (train.read, train.teacher_label_empty) == (800, 13)
