"Evaluation against plain loops over the model, hand-worked predictions and whole run folders."
import json
import os
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from scipy.special import log_softmax, softmax
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from cotmi import evaluate as evaluate_run
from cotmi.core import RunError, StorageError, read_json, write_json
from cotmi.data.examples import SEGMENT_SEPARATOR
from cotmi.data.loading import load_data
from cotmi.evaluation.answers import answer, confidences, label_targets
from cotmi.evaluation.evaluator import evaluate_student
from cotmi.evaluation.faithfulness import rationale_effect
from cotmi.evaluation.scoring import score_predictions
from cotmi.runs.run_files import write_predictions
from cotmi.runs.run_folder import Run, open_run
from cotmi.students.builtin import builtin_student
from cotmi.students.encoder_decoder import token_log_likelihoods
from cotmi.students.generation import generate, generate_ids, target_log_likelihoods
from cotmi.students.methods import METHODS
from cotmi.students.student import Student
from cotmi.students.tasks import tokenize_examples
from cotmi.training.run_config import RunConfig

TEXTS = ["Ann has 3 pens and finds 4 more.", "Where does a fish live? river bank, mall", "3 + 4 = 7.", "answer: 7"]
INPUTS = ["Ann has 3 pens.", "Where does a fish live?", "Ann has 3 pens and finds 4 more, then 5 more.", "3"]
CONFIG = RunConfig(dataset="demo", method="dss", student="builtin:tiny", generation_max_length=10, demo_size=120,
                   estimate_mi=False, eval_batch_size=16)


@pytest.fixture(scope="module")
def tiny():
    return builtin_student("tiny", TEXTS * 3, seed=3)


@pytest.fixture(scope="module")
def students(tiny):
    "T5 v1.1, T5 with its scaled decoder and BART with its bias, all random."
    size = dict(vocab_size=len(tiny.tokenizer), d_model=16, pad_token_id=0, eos_token_id=1)
    t5 = T5Config(**size, d_kv=4, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    bart = BartConfig(**size, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, bos_token_id=2,
                      decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_start_token_id=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = [T5ForConditionalGeneration(t5), BartForConditionalGeneration(bart)]
        other[1].final_logits_bias.normal_()
    return [tiny, *(Student(m.eval(), tiny.tokenizer, "random") for m in other)]


@pytest.fixture
def no_embedder(monkeypatch):
    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")


def ids_of(student, texts): return student.tokenizer(texts)["input_ids"] if texts else []


def plain_score(student, input_ids, target, start=0):
    "Sum of log-probabilities of a target from `start`, by one forward pass of its own."
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([input_ids]), labels=torch.tensor([target])).logits[0]
    steps = logits.double().log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
    return steps[start:].sum().item()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_generation_keeps_its_order_whatever_the_batch(students, batch_size):
    for student in students:
        ids = ids_of(student, INPUTS)
        single = [generate(student, [i], max_new_tokens=7)[0] for i in ids]
        assert generate(student, ids, max_new_tokens=7, batch_size=batch_size) == single
        assert all(len(t) <= 7 for t in generate_ids(student, ids, max_new_tokens=7).token_ids)
    assert generate(students[0], []) == []


def test_likelihoods_are_those_of_the_model(students):
    for student in students:
        inputs = ids_of(student, INPUTS)
        targets = [ids_of(student, words) for words in (["river bank", "mall"], [], ["7"], ["bank", "mall", "3 + 4"])]
        starts = [[0, 1], [], [0], [0, 2, 1]]
        for batch_size in (1, 3, 64):
            found = target_log_likelihoods(student, inputs, targets, starts, batch_size)
            for i, row in enumerate(found):
                expected = [plain_score(student, inputs[i], t, s) for t, s in zip(targets[i], starts[i], strict=True)]
                assert row == pytest.approx(expected, abs=1e-4)


def test_positions_in_slices_agree(tiny):
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(50, 8, generator=rng), torch.randn(30, 8, generator=rng)
    labels, bias = torch.randint(0, 30, (50,), generator=rng), torch.randn(30, generator=rng)
    whole = (hidden @ weight.T + bias).log_softmax(-1)[torch.arange(50), labels]
    for numbers in (1, 100, 10**9):
        assert torch.allclose(token_log_likelihoods(hidden, labels, weight, bias, numbers), whole, atol=1e-5)


def test_the_encoder_runs_once_an_example(tiny, monkeypatch):
    seen = []
    encoder = tiny.model.get_encoder()
    hook = encoder.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(kwargs["input_ids"])),
                                         with_kwargs=True)
    target_log_likelihoods(tiny, ids_of(tiny, INPUTS), [ids_of(tiny, ["mall", "bank", "7"])] * 4, batch_size=2)
    hook.remove()
    assert seen == [2, 2]


@pytest.mark.parametrize("method", METHODS)
def test_confidence_of_a_free_label_is_that_of_the_whole_sequence(tiny, method):
    rows = [{"id": str(i), "input": text, "label": "7", "rationale": "3 + 4 = 7.", "gold_label": "7",
             "teacher_label": "7", "choices": []} for i, text in enumerate(INPUTS)]
    examples = Dataset.from_list(rows).cast_column("choices", Dataset.from_dict({"c": [["x"]]}).features["c"])
    config = RunConfig(dataset="demo", method=method, student="builtin:tiny", generation_max_length=6)
    table = answer(tiny, examples, config)
    tokens = tokenize_examples(examples, tiny.tokenizer, method)
    for i, row in table.iterrows():
        ids = tokens["predict_input_ids"][i]
        if method == "single_task": # the label after the rationale that was written
            (target,), (start,) = label_targets(tiny.tokenizer, [row.predicted_label], method, row.generated_rationale)
        else:
            target, start = generate_ids(tiny, [ids], max_new_tokens=6).token_ids[0], 0
        assert row.sequence_probability == pytest.approx(np.exp(plain_score(tiny, ids, target, start)), rel=1e-3)
    assert confidences(table) == pytest.approx(table.sequence_probability.to_numpy())
    assert table.generated_rationale.isna().all() == (method == "finetune")
    assert table.label_probabilities.map(len).eq(0).all()


@pytest.mark.parametrize("method", ["dss", "single_task"])
def test_candidates_get_a_distribution(tiny, method):
    choices = ["river bank", "mall", "a bank of the river"]
    rows = [{"id": "0", "input": INPUTS[1], "label": "mall", "rationale": "r", "gold_label": "mall",
             "teacher_label": "mall", "choices": choices}]
    config = RunConfig(dataset="demo", method=method, student="builtin:tiny", generation_max_length=6)
    row = answer(tiny, Dataset.from_list(rows), config).iloc[0]
    ids = tokenize_examples(Dataset.from_list(rows), tiny.tokenizer, method)["predict_input_ids"][0]
    targets, starts = label_targets(tiny.tokenizer, choices, method, row.generated_rationale)
    scores = np.array([plain_score(tiny, ids, t, s) for t, s in zip(targets, starts, strict=True)])
    lengths = np.array([len(t) - s for t, s in zip(targets, starts, strict=True)])
    assert row.label_scores == pytest.approx(scores, abs=1e-4)
    assert row.label_probabilities == pytest.approx(softmax(scores), abs=1e-4)
    assert row.label_probabilities_normalised == pytest.approx(softmax(scores / lengths), abs=1e-4)


def test_a_closed_label_set_serves_every_row(tiny):
    rows = Dataset.from_list([{"id": "0", "input": f"It rains.{SEGMENT_SEPARATOR}It is wet.", "label": "neutral",
                               "rationale": "r", "gold_label": "neutral", "teacher_label": "", "choices": [""]}])
    rows = rows.remove_columns("choices").add_column("choices", [[]])
    table = answer(tiny, rows, CONFIG, labels=("entailment", "neutral"))
    assert table.choices[0] == ["entailment", "neutral"] and sum(table.label_probabilities[0]) == pytest.approx(1)


def marks(faithful):
    "1 for faithful, 0 for not, -1 for undecided."
    return [-1 if pd.isna(x) else int(x) for x in faithful]


def hand_table(**columns):
    "Four predictions over three candidates whose figures can be worked out on paper."
    p = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]]
    base = {"id": list("abcd"), "input": ["q"] * 4, "gold_label": ["x", "y", "y", "z"],
            "teacher_label": ["x", "y", "x", ""], "rationale": ["So x.", "So y.", "So y.", "So z."],
            "predicted_label": ["x", "x", "y", "w"], "generated_rationale": ["So x.", "So y.", "Nothing.", "So z."],
            "choices": [["x", "y", "z"]] * 4, "label_scores": [np.log(r).tolist() for r in p],
            "label_probabilities": p, "label_probabilities_normalised": p,
            "sequence_probability": [0.6, 0.4, 0.7, 0.05]}
    return pd.DataFrame({**base, **columns})


def test_figures_by_hand():
    table, found = score_predictions(hand_table(), "choices", resamples=50)
    assert table.correct.tolist() == [True, False, True, False]
    assert table.teacher_correct.tolist() == [True, True, False, False]
    assert table.confidence.tolist() == pytest.approx([0.7, 0.5, 0.8, 0.05]) # w is no candidate
    assert marks(table.faithful) == [1, 0, -1, 0]
    expected = {
        "test/examples": 4, "test/accuracy": 0.5, "test/majority_accuracy": 0.5, "test/teacher_accuracy": 0.5,
        "test/valid_label": 0.75, "test/accuracy_likelihood": 0.5, "test/faithful": 1 / 3,
        "test/faithful_decided": 0.75, "test/ece": (0.3 + 0.5 + 0.2 + 0.05) / 4, "test/mce": 0.5,
        "test/brier": (0.14 + (0.25 + 0.49 + 0.04) + 0.06 + (0.16 + 0.1225 + 0.5625)) / 4,
        "test/nll": -np.log([0.7, 0.3, 0.8, 0.25]).mean(), "test/rationale_rouge_l": (1 + 1 + 0 + 1) / 4}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    for name in ("accuracy", "ece", "ece_mass", "brier", "nll", "rationale_bleu", "faithful"):
        assert found[f"test/{name}_low"] <= found[f"test/{name}"] <= found[f"test/{name}_high"]
    assert "test/temperature" not in found # there was no valid


def test_equations_count_by_value():
    empty = {"choices": [[]] * 4, "label_scores": [[]] * 4, "label_probabilities": [[]] * 4,
             "label_probabilities_normalised": [[]] * 4}
    table = hand_table(**empty, gold_label=["( 3.0 + 4.0 )"] * 3 + ["( 1.0 / 3.0 )"],
                       predicted_label=["( 4.0 + 3.0 )", "7", "( 1.0 / 0.0 )", "( 9 ** 9 )"], teacher_label=["7"] * 4,
                       generated_rationale=["3 + 4 = 7.", "It is 8.", "None.", ""])
    scored, found = score_predictions(table, "equation", valid=table, resamples=50)
    assert scored.correct.tolist() == [True, True, False, False]
    assert found["test/majority_accuracy"] == 0.75 and found["test/valid_label"] == 0.5 # no value: 1 / 0, 9 ** 9
    assert marks(scored.faithful) == [1, 0, -1, -1]
    assert scored.confidence.tolist() == pytest.approx([0.6, 0.4, 0.7, 0.05])
    assert found["test/brier"] == pytest.approx(np.mean([0.4**2, 0.6**2, 0.7**2, 0.05**2]))
    assert "test/temperature" in found and "test/accuracy_likelihood" not in found


def test_all_wrong_has_an_honest_interval():
    _, found = score_predictions(hand_table(predicted_label=["w"] * 4), "choices", resamples=50)
    assert (found["test/accuracy"], found["test/accuracy_low"]) == (0, 0) and found["test/accuracy_high"] > 0.3
    assert (found["test/valid_label"], found["test/valid_label_low"]) == (0, 0) # not 1e-18


def test_no_teacher_and_no_rationales():
    scored, found = score_predictions(hand_table(generated_rationale=[None] * 4), "choices", taught=False, resamples=50)
    assert "test/teacher_accuracy" not in found and "teacher_correct" not in scored
    assert not any("rationale" in name or "faithful" in name for name in found)


def test_an_overconfident_student_is_cooled_by_valid():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1, (600, 3))
    rows = []
    for i, row in enumerate(true):
        scores = log_softmax(3 * row)
        rows.append({"id": str(i), "input": "q", "gold_label": "xyz"[rng.choice(3, p=softmax(row))],
                     "teacher_label": "x", "predicted_label": "xyz"[scores.argmax()], "rationale": "",
                     "generated_rationale": None, "choices": list("xyz"), "label_scores": scores.tolist(),
                     "label_probabilities": np.exp(scores).tolist(),
                     "label_probabilities_normalised": np.exp(scores).tolist(), "sequence_probability": 0.5})
    table = pd.DataFrame(rows)
    _, found = score_predictions(table.iloc[300:], "choices", valid=table.iloc[:300], resamples=100)
    assert found["test/temperature"] == pytest.approx(3, abs=0.6)
    assert found["test/ece_scaled"] < found["test/ece"] / 2 and found["test/nll_scaled"] < found["test/nll"]


def test_rationale_effect_is_own_less_shuffled(tiny):
    table = hand_table(generated_rationale=["So x.", "So y.", "", "So z."])
    for method in ("dss", "single_task"):
        config = RunConfig(dataset="demo", method=method, student="builtin:tiny")
        found = rationale_effect(tiny, table, config, seed=1)
        order = np.random.default_rng(1).permutation(3)
        known = table[table.generated_rationale != ""].iloc[order].reset_index(drop=True)
        def score(row, rationale, method=method):
            single = method == "single_task"
            text = row.input if single else f"predict: {row.input}{tiny.tokenizer.eos_token}{rationale}"
            (target,), (start,) = label_targets(tiny.tokenizer, [row.gold_label], method, rationale if single else "")
            return plain_score(tiny, ids_of(tiny, [text])[0], target, start)
        expected = [score(row, row.generated_rationale) - score(row, known.generated_rationale[(i + 1) % 3])
                    for i, row in known.iterrows()]
        assert found == pytest.approx(expected, abs=1e-3)
    assert len(rationale_effect(tiny, table, RunConfig(dataset="demo", method="finetune", student="builtin:tiny"))) == 0


@pytest.fixture(scope="module")
def data(): return load_data("demo", demo_size=120)


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_evaluation_of_every_method(tiny, data, method, tmp_path, no_embedder):
    config = RunConfig(**{**CONFIG.to_dict(), "method": method})
    figures = evaluate_run(tiny, data, config, tmp_path, progress=False)
    write_json(tmp_path / "metrics.json", {"status": "complete", **figures})
    run = Run(tmp_path)
    table = run.predictions
    assert table.id.tolist() == list(data.examples["test"]["id"]) and not [p for p in run.problems if "lacks" in p]
    assert table.correct.mean() == pytest.approx(figures["test/accuracy"])
    assert figures["test/teacher_accuracy"] == 1 # the demo's teacher makes no slips unless asked to
    assert ("test/rationale_bleu" in figures) == (method != "finetune")
    assert run.features["z"].shape == run.features["v"].shape and run.features["kind"] == "vocab"
    assert run.features["z"].shape[1] == len(run.features["names"]) <= 512
    assert set(run.features["ids"]) <= set(table.id)
    assert {name: run.mi[name] for name in ("estimates", "correlation", "notes")} == {
        "estimates": [], "correlation": {}, "notes": ["mutual information is not estimated (estimate_mi=False)"]}
    assert "embedding model" in figures.get("test/notes", "") or method == "finetune"
    assert not list(tmp_path.glob(".*")) # nothing half-written is left
    again = evaluate_student(tiny, data, config, progress=False)
    assert again.metrics() == figures and again.predictions.id.tolist() == table.id.tolist()


def test_features_are_bounded_and_the_same_rows_for_every_run(tiny, data, tmp_path, no_embedder):
    ids = []
    for method in ("dss", "finetune"):
        config = RunConfig(**{**CONFIG.to_dict(), "method": method, "mi_pairs": 7, "features": "decoder", "seed": 5})
        evaluate_run(tiny, data, config, tmp_path / method, progress=False)
        with safe_open(tmp_path / method / "features.safetensors", "np") as file:
            assert file.get_tensor("z").shape == (7, 64) and file.metadata()["features"] == "decoder"
            ids.append(json.loads(file.metadata()["ids"]))
    assert ids[0] == ids[1]


def test_mutual_information_is_estimated_or_its_absence_noted(tiny, tmp_path, no_embedder):
    for size, estimated in ((250, True), (100, False)):
        small = load_data("demo", demo_size=size)
        config = RunConfig(**{**CONFIG.to_dict(), "demo_size": size, "estimate_mi": True, "mi_bounds": "gaussian"})
        figures = evaluate_run(tiny, small, config, tmp_path / str(size), progress=False)
        stored = read_json(tmp_path / str(size) / "mi.json")
        assert bool(stored["estimates"]) == estimated == ("test/mi" in figures)
        if estimated:
            assert figures["test/mi"] == figures["test/mi_gaussian"] == stored["estimates"][0]["value"]
            assert figures["test/mi_low"] <= figures["test/mi"] <= figures["test/mi_high"]
            assert {"test/correlation_pearson", "test/correlation_pearson_p", "test/correlation_cka"} <= set(figures)
        else:
            assert "mutual information by gaussian left out" in figures["test/notes"]


def test_a_run_folder_is_evaluated_where_it_lies(tiny, data, tmp_path, no_embedder):
    folder = tmp_path / "run"
    tiny.save(folder / "student")
    write_json(folder / "config.json", {"values": CONFIG.to_dict(), "sources": {}})
    write_json(folder / "data_report.json", data.report.to_dict())
    write_json(folder / "metrics.json", {"status": "complete", "train/steps": 7, "test/old": 1,
                                            "valid/best_accuracy": 0.5, "test/rationale_judge": 3.0})
    figures = evaluate_run(folder, progress=False)
    assert figures == evaluate_run(tiny, data, CONFIG, progress=False) # a bare student, files thrown away
    metrics = read_json(folder / "metrics.json")
    assert (metrics["train/steps"], metrics["valid/best_accuracy"], metrics["status"]) == (7, 0.5, "complete")
    assert not {"test/old", "test/rationale_judge"} & set(metrics) # a judge's score is of the old rationales
    assert metrics["test/accuracy"] == figures["test/accuracy"]
    # the predictions are those of the plain checkpoint
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "student")
    table = pd.read_parquet(folder / "predictions.parquet")
    for row in table.head(5).itertuples():
        ids = torch.tensor([tiny.tokenizer("predict: " + row.input)["input_ids"]])
        text = tiny.tokenizer.decode(model.generate(ids, max_new_tokens=10)[0], skip_special_tokens=True)
        assert text.strip() == row.predicted_label
    shutil.rmtree(folder / "student")
    with pytest.raises(RunError, match="holds no student"):
        evaluate_run(folder)
    with pytest.raises(RunError, match="pass its data"):
        evaluate_run(tiny)


def test_a_run_is_evaluated_through_its_lock(tiny, data, tmp_path, no_embedder):
    folder = tmp_path / "run"
    tiny.save(folder / "student")
    write_json(folder / "config.json", {"values": CONFIG.to_dict(), "sources": {}})
    write_json(folder / "data_report.json", data.report.to_dict())
    write_json(folder / "metrics.json", {"status": "stopped"})
    opened = open_run(folder)
    with pytest.raises(RunError, match="another process"):
        evaluate_run(folder, data, progress=False)
    assert not (folder / "predictions.parquet").exists()
    evaluate_run(opened, data, progress=False) # whoever holds the lock may
    assert Run(folder).status == "stopped" and not opened.is_open # its training has not come to an end
    figures = evaluate_run(Run(folder), data, folder=tmp_path / "elsewhere", progress=False)
    assert Run(folder).metrics["test/accuracy"] == figures["test/accuracy"]
    assert (tmp_path / "elsewhere" / "mi.json").exists() and not (tmp_path / "elsewhere" / "metrics.json").exists()


def test_files_may_be_read_by_whom_the_umask_says(tiny, data, tmp_path, no_embedder):
    before = os.umask(0o027)
    try:
        evaluate_run(tiny, data, CONFIG, tmp_path, progress=False)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("predictions.parquet", "features.safetensors", "mi.json"), 0o640)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "predictions.parquet"
    write_predictions(path, hand_table())
    before = path.read_bytes()
    def full_disk(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr("pyarrow.parquet.write_table", full_disk)
    with pytest.raises(StorageError, match="the disk is full"):
        write_predictions(path, hand_table(predicted_label=["z"] * 4))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["predictions.parquet"]


def generated_predictions(count):
    rng = np.random.default_rng(0)
    nouns = [a + b for a in ("river", "stone", "cloud", "paper") for b in ("bank", "side", "house", "yard", "work")]
    def text(low, high): return " ".join(rng.choice(nouns, rng.integers(low, high)))
    rows = []
    for i in range(count):
        choices = rng.choice(nouns, 5, replace=False).tolist()
        scores = log_softmax(rng.normal(0, 2, 5))
        rows.append({"id": str(i), "input": text(10, 30), "gold_label": choices[rng.integers(5)],
                     "teacher_label": choices[0], "predicted_label": choices[scores.argmax()],
                     "rationale": text(10, 25), "generated_rationale": text(10, 25), "choices": choices,
                     "label_scores": scores.tolist(),
                     "label_probabilities": np.exp(scores).tolist(),
                     "label_probabilities_normalised": np.exp(scores).tolist(), "sequence_probability": 0.5})
    return pd.DataFrame(rows)


@pytest.mark.slow
def test_scoring_takes_time_in_proportion_to_the_predictions():
    table = generated_predictions(10_000)
    score_predictions(table.iloc[:50], "choices", valid=table.iloc[:50]) # what it needs is imported
    def seconds(count): # of this process; both counts share a busy machine, which makes a second's work less
        start = time.process_time()
        found = score_predictions(table.iloc[:count], "choices", valid=table.iloc[:500])[1]
        return time.process_time() - start, found
    some, (all_of_them, found) = seconds(1_000)[0], seconds(10_000)
    assert all_of_them < 3 * 10 * some # quadratic work takes a hundred times as long
    assert {"test/ece_mass_high", "test/rationale_bleu_low", "test/rouge_l_vs_correct_spearman"} <= set(found)
