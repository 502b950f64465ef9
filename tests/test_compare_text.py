"What `cotmi compare` says to people: little, first what everybody asks, and soon."

import pytest
from test_compare import make_run

SETTINGS = [("finetune", 0.1, 0.4), ("dss", 0.1, 0.45), *(("mi", round(0.1 * i, 1), 0.5 + 0.01 * i) for i in range(11))]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    "Thirteen methods of three seeds each."
    folder = tmp_path_factory.mktemp("many")
    for method, beta, rate in SETTINGS:
        for seed in range(3):
            make_run(folder, "demo", method, seed, rate, beta=beta)
    return folder


def test_thirteen_methods_fit_on_a_screen_or_two(command, outputs):
    code, out, _ = command("compare", outputs)
    lines = out.splitlines()
    assert code == 0 and len(lines) <= 60, f"{len(lines)} lines"
    assert [line for line in lines if line.startswith("## ")] == [
        "## Accuracy (%)", "## Which differences hold", "## To read it"]
    said = [line for line in lines if line.startswith("- On demo, ")]
    best = next(line for line in said if line.startswith("- On demo, mi paper-masked, beta=1.0 is better in accuracy"))
    assert "finetune (by " in best and "of 78 differences in accuracy hold (p (Holm) < 0.05)" in said[-1]
    assert "no evidence that they are equal" in said[-1]


def test_what_is_asked_for_and_everything(command, outputs):
    short, asked, whole = (command("compare", outputs, *words) for words in ([], ["--metrics", "ece,mi"], ["--all"]))
    assert short[0] == asked[0] == whole[0] == 0
    table = asked[1].split("## Asked for, demo")[1]
    assert "| method" in table and "ECE (%)" in table and "I(Z;V) (nats)" in table
    assert "ECE" not in short[1] and "ROUGE" not in asked[1]
    assert "## All figures, demo" in whole[1] and "## Differences of ROUGE-L" in whole[1]
    assert len(whole[1].splitlines()) > len(asked[1].splitlines()) > len(short[1].splitlines())


@pytest.mark.parametrize("words, said", [
    (["--metrics", "eec"], "Did you mean 'ece'?"), (["--metrics", ""], "accuracy"), (["--metrics", ","], "No figure"),
    (["--all", "--metrics", "ece"], "Leave --metrics out"),
])
def test_figures_that_cannot_be_meant(command, outputs, words, said):
    code, out, err = command("compare", outputs, *words)
    assert said.lower() in (err or out).lower() and (code == 1 or words[1] == "")


def test_one_seed_is_said_to_be_one_student(command, tmp_path):
    for method, rate in (("dss", 0.3), ("mi", 0.7)):
        make_run(tmp_path / "runs", "demo", method, 0, rate)
    out = command("compare", tmp_path / "runs")[1]
    assert "mi paper-masked is better in accuracy than dss" in out and "about the one student" in out


def test_each_run_is_read_once(command, outputs, monkeypatch):
    "Of a thousand runs in thirteen methods each would else be read twelve times."
    from cotmi.runs import comparison_tables

    read, scores = [], comparison_tables._scores
    monkeypatch.setattr(comparison_tables, "_scores", lambda run, columns: read.append(run.id) or scores(run, columns))
    command("compare", outputs)
    assert len(read) == len(set(read)) == 39
