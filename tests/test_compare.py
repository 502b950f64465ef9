"Comparison tables over made-up run folders: what is grouped, tested, printed in bold and left out."
import io
import re

import numpy as np
import pandas as pd
import pytest

from cotmi import compare_runs as at_the_top
from cotmi.core import RunError, write_json
from cotmi.evaluation.metrics import COMPARED
from cotmi.evaluation.statistics import compare_methods, holm, mcnemar_exact, paired_bootstrap
from cotmi.runs.comparison import compare_runs
from cotmi.runs.comparison_tables import compare_pair
from cotmi.runs.grouping import group_runs
from cotmi.runs.published_figures import PUBLISHED
from cotmi.runs.run_folder import Run
from cotmi.students.methods import METHODS

N = 600
HARD = np.random.default_rng(0).random(N) # how hard each example is, for every run


def make_run(folder, dataset, method, seed, rate, ids=None, status="complete", metrics=(), **config):
    "A run folder whose student gets each example right if it is easy enough, with some chance of its own."
    stream = np.random.default_rng([[*METHODS].index(method), seed, *map(ord, dataset)])
    right = HARD + stream.normal(0, 0.15, N) + stream.normal(0, 0.01) < rate
    values = {"dataset": dataset, "method": method, "student": "builtin:tiny", "seed": seed, "max_steps": 100,
              "objective": "paper-masked", "beta": 0.1, "eval_batch_size": 64, **config}
    path = folder / dataset / f"{method}-{seed}-{abs(hash(str(sorted(config.items()))))}"
    write_json(path / "config.json", {"values": values, "sources": {}})
    table = pd.DataFrame({"id": ids if ids is not None else [f"t{i}" for i in range(N)],
                          "input": [f"question {i}" for i in range(N)], "gold_label": "1", "predicted_label": "1",
                          "correct": right, "rationale_rouge_l": 0.3 + 0.2 * right + 0.05 * stream.random(N)})
    if method == "finetune":
        table = table.drop(columns="rationale_rouge_l")
    else:
        table["faithful"] = pd.array(np.where(stream.random(N) < 0.2, None, right), dtype="boolean")
    table.to_parquet(path / "predictions.parquet")
    half = 1.96 * (right.mean() * (1 - right.mean()) / N) ** 0.5
    flat = {"status": status, "test/accuracy": right.mean(), "test/accuracy_low": right.mean() - half,
            "test/accuracy_high": right.mean() + half, "test/majority_accuracy": 0.2, "test/teacher_accuracy": 0.74,
            "test/ece": 0.05 + 0.01 * seed, "test/mi": 1.0 + seed, "test/mi_ceiling": 6.9, "test/examples": N}
    if method != "finetune":
        flat |= {"test/rationale_rouge_l": float(table.rationale_rouge_l.mean())}
    write_json(path / "metrics.json", {**flat, **dict(metrics)})
    return Run(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Three methods on two datasets, three seeds: a clear winner on cqa, none on svamp."
    folder = tmp_path_factory.mktemp("outputs")
    rates = {"cqa": {"finetune": 0.4, "dss": 0.45, "mi": 0.62}, "svamp": {"finetune": 0.5, "dss": 0.5, "mi": 0.5}}
    return [make_run(folder, dataset, method, seed, rate) for dataset, part in rates.items()
            for method, rate in part.items() for seed in range(3)]


def test_the_table_holds_means_over_seeds(runs):
    found = at_the_top(runs)
    for dataset in ("cqa", "svamp"):
        for method in ("finetune", "dss", "mi"):
            mine = [r.metrics["test/accuracy"] for r in runs
                    if r.config["dataset"] == dataset and r.config["method"] == method]
            row = found.table[(found.table.dataset == dataset) & found.table.method.str.startswith(method)
                              & (found.table.metric == "test/accuracy")].iloc[0]
            assert (row.value, row.low, row.high) == pytest.approx((np.mean(mine), min(mine), max(mine)))
            assert (row.seeds, row.basis, list(row.seed_values)) == (3, "range of seeds", mine)


def test_bold_only_where_the_difference_holds(runs):
    found = compare_runs(runs)
    accuracy = found.table[found.table.metric == "test/accuracy"]
    assert accuracy[accuracy.bold][["dataset", "method"]].to_numpy().tolist() == [["cqa", "mi paper-masked"]]
    assert accuracy.best.sum() == 2 # svamp has a best one too, by chance
    assert not found.table[found.table.metric.isin(["test/ece", "test/mi"])].bold.any()
    # one pair that does not hold is enough to stay plain
    mine = [r for r in runs if r.config["dataset"] == "cqa"]
    twin = [r for r in mine if r.config["method"] == "mi"]
    for run in twin:
        copy = run.path.parent / f"twin-{run.path.name}"
        copy.mkdir(exist_ok=True)
        for name in ("metrics.json", "predictions.parquet"):
            (copy / name).write_bytes((run.path / name).read_bytes())
        write_json(copy / "config.json", {"values": {**run.config, "beta": 0.5}, "sources": {}})
        mine.append(Run(copy))
    again = compare_runs(mine)
    assert {"mi paper-masked, beta=0.1", "mi paper-masked, beta=0.5"} <= set(again.table.method)
    assert not again.table[again.table.metric == "test/accuracy"].bold.any()


def test_p_values_are_those_of_the_tests(runs):
    found = compare_runs(runs)
    accuracy = found.pairs[found.pairs.metric == "test/accuracy"]
    assert len(accuracy) == 6 # three pairs on each of two datasets
    assert set(found.pairs.metric) == {"test/accuracy", "test/rationale_rouge_l", "test/faithful"}
    assert found.pairs.p_holm.to_numpy() == pytest.approx(holm(found.pairs.p_value)) # datasets and figures together
    alone = compare_runs(runs, metrics=COMPARED[:1]).pairs
    assert (alone.p_holm.to_numpy() <= accuracy.p_holm.to_numpy()).all()
    text = found.to_markdown(everything=True)
    assert f"over all {len(found.pairs)} comparisons" in text
    shown = sum(line.count("t test over examples") for line in text.splitlines())
    assert shown == len(found.pairs) # what is corrected for is what is shown
    right = {m: np.stack([r.predictions.correct for r in runs if r.config["dataset"] == "cqa"
                          and r.config["method"] == m]).astype(float) for m in ("finetune", "dss")}
    expected = compare_methods(right["finetune"], right["dss"])
    row = accuracy[(accuracy.dataset == "cqa") & (accuracy.a == "finetune") & (accuracy.b == "dss")].iloc[0]
    assert (row.difference, row.low, row.high, row.p_value) == pytest.approx(
        (expected.value, expected.low, expected.high, expected.p_value))
    assert 0 < row.smallest < 0.1 and row.examples == N
    rouge = found.pairs[found.pairs.metric == "test/rationale_rouge_l"]
    assert set(rouge.a) | set(rouge.b) == {"dss", "mi paper-masked"} # finetune writes no rationales
    assert "test/ece" not in set(found.pairs.metric)


def test_single_seeds_use_mcnemar_and_say_so(runs):
    ours = [r for r in runs if r.config["dataset"] == "cqa" and r.config["seed"] == 0]
    found = compare_runs(ours)
    row = found.pairs[(found.pairs.metric == "test/accuracy") & (found.pairs.b == "mi paper-masked")].iloc[0]
    a, b = (next(r for r in ours if r.config["method"] == m).predictions.correct for m in ("finetune", "mi"))
    assert row.p_value == pytest.approx(mcnemar_exact(a, b).p_value) and "McNemar" in row.test
    text = found.to_markdown(everything=True)
    assert re.search(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", text) and "±" not in text.split("\n- ")[0]
    assert row.p_holm < 0.001 and not found.table.bold.any() # these runs differ; their methods are not known to


def test_single_runs_have_the_bootstrap_beside_mcnemar(runs):
    a, b = (next(r for r in runs if r.config["dataset"] == "cqa" and r.config["method"] == m) for m in ("dss", "mi"))
    pairs = compare_runs([a, b]).pairs.set_index("metric")
    right, rouge = ([r.predictions[c].to_numpy(float) for r in (a, b)] for c in ("correct", "rationale_rouge_l"))
    for metric, scores in (("test/accuracy", right), ("test/rationale_rouge_l", rouge)):
        expected, row = paired_bootstrap(*scores), pairs.loc[metric]
        assert (row.difference, row.low, row.high) == pytest.approx(
            (expected.value, expected.low, expected.high), abs=1e-3) # the examples come in another order
    assert pairs.loc["test/rationale_rouge_l"].p_value == pytest.approx(paired_bootstrap(*rouge).p_value)


def test_equal_methods_are_seldom_bold(tmp_path):
    "Twenty tables of two equal methods: at the 5 % level at most 4 of them claim a winner (binomial 99.7 %)."
    bold = 0
    for i in range(20):
        pair = [make_run(tmp_path / str(i), "demo", method, 10 * i + seed, 0.5)
                for method in ("dss", "finetune") for seed in range(3)]
        bold += compare_runs(pair, metrics=COMPARED[:1]).table.bold.any()
    assert bold <= 4


@pytest.fixture
def mute(tmp_path):
    "Two methods of three seeds that are always wrong and never sure."
    nothing = dict.fromkeys(["test/accuracy", "test/accuracy_low", "test/valid_label", "test/ece", "test/nll"], 0.0)
    return [make_run(tmp_path, "svamp", method, seed, -1, metrics=nothing) for method in ("finetune", "dss")
            for seed in range(3)]


def test_seeds_that_agree_are_no_certainty(mute):
    found = compare_runs(mute)
    row = found.table[found.table.metric == "test/accuracy"].iloc[0]
    assert (row.value, row.low, row.seeds) == (0, 0, 3) and row.high == pytest.approx(1 - 0.025 ** (1 / N))
    difference = found.pairs[found.pairs.metric == "test/accuracy"].iloc[0]
    assert difference.p_value == 1 and difference.low < 0 < difference.high
    lines = {x.split("|")[1].strip(): x for x in found.to_markdown(everything=True).splitlines() if x.startswith("|")}
    assert "0.0 [0.0, 0.6] (3 seeds)" in lines["accuracy (%)"]
    assert "0.0 [0.0, 0.6] (3 seeds)" in lines["valid labels (%)"]
    assert "0.0 (3 seeds) †" in lines["ECE (%)"] # no share, and no spread
    assert "| 6.90 " in lines["ceiling of I(Z;V) (nats)"] # known, not estimated


def test_calibration_of_a_student_that_answers_nothing_is_never_the_best(mute, tmp_path):
    speaks = [make_run(tmp_path, "svamp", "single_task", s, 0.5, metrics={"test/valid_label": 1.0}) for s in range(3)]
    found = compare_runs([*mute, *speaks])
    ece = found.table[found.table.metric == "test/ece"].set_index("method")
    assert ece.caution.to_dict() == {"finetune": True, "single_task": False, "dss": True}
    assert ece.best.to_dict() == {"finetune": False, "single_task": True, "dss": False} and not ece.bold.any()
    assert not found.table[found.table.metric == "test/accuracy"].caution.any()
    assert not compare_runs(mute).table.query("metric == 'test/ece'").best.any()
    text, latex = found.to_markdown(everything=True), found.to_latex()
    assert "† Right no more often than the majority label, or fewer than 50 % valid labels" in text
    assert "†" not in re.sub(r"(?m)^%.*", "", latex) and r"$\dagger$" in latex
    assert "†" not in compare_runs(speaks).to_markdown(everything=True)
    # half of the labels must be valid, however many of them are right
    garbled = make_run(tmp_path, "demo", "dss", 0, 0.6, metrics={"test/valid_label": 0.4})
    assert compare_runs([garbled]).table.query("metric == 'test/ece'").caution.all()


def test_groups_and_what_is_left_out(runs, tmp_path):
    same = [make_run(tmp_path, "demo", "dss", s, 0.5, eval_batch_size=size) for s, size in ((0, 64), (1, 8), (0, 32))]
    failed = make_run(tmp_path, "demo", "dss", 7, 0.5, status="failed")
    longer = make_run(tmp_path, "demo", "dss", 0, 0.5, max_steps=500)
    irrelevant = make_run(tmp_path, "demo", "dss", 3, 0.5, beta=0.9, objective="infonce") # dss has neither
    groups, notes = group_runs([*same, failed, longer, irrelevant])
    assert [(g.name, len(g.runs)) for g in groups] == [("dss, max_steps=100", 3), ("dss, max_steps=500", 1)]
    assert sum("same seed" in n for n in notes) == 1 and sum("it is failed" in n for n in notes) == 1
    assert "it is failed" in compare_runs([*same, failed]).to_markdown()
    infonce = make_run(tmp_path, "demo", "mi", 0, 0.5, objective="infonce")
    names = [g.name for g in group_runs([*runs, infonce])[0]]
    assert names == ["finetune", "dss", "mi paper-masked", "mi infonce", "finetune", "dss", "mi paper-masked"]


def test_only_shared_examples_are_compared(tmp_path):
    a = make_run(tmp_path, "demo", "dss", 0, 0.5)
    part = make_run(tmp_path, "demo", "mi", 0, 0.5, ids=[f"t{i}" if i < 400 else f"u{i}" for i in range(N)])
    found = compare_runs([a, part])
    assert found.pairs.examples.iloc[0] == 400 and any("share 400 test examples" in n for n in found.notes)
    other = make_run(tmp_path, "demo", "mi", 1, 0.5, ids=[f"z{i}" for i in range(N)])
    assert len(compare_runs([a, other]).pairs) == 0 # nothing to pair: no test, no bold
    with pytest.raises(RunError, match="share no test example"):
        compare_pair(a, other)


def test_a_pair_of_runs(runs):
    a, b = runs[6], runs[0]
    report = compare_pair(a, b)
    assert report.bootstrap.value == pytest.approx(a.metrics["test/accuracy"] - b.metrics["test/accuracy"])
    assert report.mcnemar.p_value == mcnemar_exact(a.predictions.correct, b.predictions.correct).p_value
    assert report.smallest < abs(report.bootstrap.value)
    assert a.title in str(report) and "McNemar" in str(report)
    assert compare_pair(a, a).bootstrap.p_value == 1


def test_published_figures_stand_beside_ours_with_their_source(runs, tmp_path):
    found = compare_runs(runs)
    assert set(found.published.dataset) == {"cqa", "svamp"}
    whole = found.to_markdown(everything=True)
    lines = {line.split("|")[1].strip(): line for line in whole.splitlines() if line.startswith("|")}
    assert "62.19 [1], 60.20 [3]" in lines["finetune"] and "62.63 [1]" in lines["finetune"]
    assert "63.88 [2]" in lines["mi paper-masked"] and "68.00 [2]" in lines["mi paper-masked"]
    assert "61.37 [1]" in lines["single_task"] # published, not run by us
    text = found.to_markdown(everything=True)
    for source in ("Hsieh et al. 2023, arXiv 2305.02301", "Chen et al. 2024, arXiv 2403.03348", "independent rerun"):
        assert source in text
    assert "20.0" in lines["majority"] and "74.0" in lines["teacher"]
    # another objective is not what was published
    infonce = make_run(tmp_path, "cqa", "mi", 0, 0.5, objective="infonce")
    row = next(x for x in compare_runs([infonce]).to_markdown().splitlines() if x.startswith("| mi infonce"))
    assert "63.88" not in row
    alone = compare_runs([make_run(tmp_path, "demo", "dss", 0, 0.5)])
    assert len(alone.published) == 0 and "published" not in alone.to_markdown() # nor a column of dashes


def test_published_table():
    assert len(PUBLISHED) == 19 and {p.dataset for p in PUBLISHED} == {"esnli", "anli1", "cqa", "svamp"}
    small = {(p.dataset, p.accuracy) for p in PUBLISHED if p.student == "T5-small"}
    assert small == {("esnli", 83.23), ("anli1", 43.70)}
    assert all(0 < p.accuracy < 100 and p.method in METHODS and p.source for p in PUBLISHED)


def test_csv_and_latex(runs):
    found = compare_runs(runs)
    table = pd.read_csv(io.StringIO(found.to_csv()))
    assert len(table) == len(found.table) + len(found.published)
    ours = table[table.source == "this workbench"]
    assert ours.value.to_numpy() == pytest.approx(found.table.value.to_numpy())
    assert table[table.source.str.startswith("Chen")].value.max() == pytest.approx(0.68)
    latex = found.to_latex()
    # accuracies, all figures of two datasets, differences of three figures
    assert latex.count(r"\begin{tabular}") == 6 == latex.count(r"\bottomrule")
    body = re.sub(r"%.*", "", latex.replace(r"\%", ""))
    assert "±" not in body and not re.search(r"(?<!\\)_", body)
    for block in re.findall(r"\\begin{tabular}{(l r*|lr*)}\n(.*?)\\end{tabular}", latex, re.S):
        rows = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert {row.count("&") for row in rows} == {len(block[0]) - 1} # every row has every column


def test_figure_and_files(runs, tmp_path):
    found = compare_runs(runs)
    figure = found.figure()
    ours = [t for t in figure.data if t.name == "ours"]
    assert len(ours) == 2 and list(ours[0].y) == ["finetune", "dss", "mi paper-masked"]
    part = found.table[(found.table.dataset == "cqa") & (found.table.metric == "test/accuracy")]
    assert np.allclose(ours[0].x, 100 * part.value)
    assert np.allclose(ours[0].error_x.array, 100 * (part.high - part.value))
    assert list(ours[0].marker.symbol) == ["circle", "circle", "star"]
    assert [t.name for t in found.figure("test/mi").data] == ["ours", "each seed"] * 2 # no published figures of it
    seeds = [t for t in figure.data if t.name == "each seed"]
    assert len(seeds[0].x) == 9 and set(seeds[0].y) == set(ours[0].y) # three are too few for an interval
    with pytest.raises(RunError, match="Did you mean 'test/accuracy'"):
        found.figure("test/acuracy")
    found.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"comparison.md", "comparison.tex", "comparison.csv",
                                                              "pairs.csv", "comparison.html"}
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count('<script src="http') + page.count('<link ') == 0 # opens without a network


def test_a_folder_and_no_runs(runs, tmp_path):
    folder = runs[0].path.parent.parent
    assert set(compare_runs(str(folder)).datasets) == {"cqa", "svamp"}
    with pytest.raises(RunError, match="no complete run among the 0"):
        compare_runs(tmp_path)
    with pytest.raises(RunError, match="it is failed.*cotmi list"):
        compare_runs([make_run(tmp_path, "demo", "dss", 0, 0.5, status="failed")])


def test_a_run_without_predictions_is_shown_but_not_tested(runs, tmp_path):
    lone = make_run(tmp_path, "cqa", "single_task", 0, 0.9)
    (lone.path / "predictions.parquet").unlink()
    found = compare_runs([*[r for r in runs if r.config["dataset"] == "cqa"], Run(lone.path)])
    assert "single_task" in set(found.table.method) and "single_task" not in {*found.pairs.a, *found.pairs.b}
    best = found.table[(found.table.metric == "test/accuracy") & found.table.best].iloc[0]
    assert best.method == "single_task" and not best.bold
