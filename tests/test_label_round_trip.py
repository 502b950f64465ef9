"""Labels that a tokenizer cannot give back: one comparison while training and after it, and nobody is fooled."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from cotmi import RunConfig
from cotmi.core import StudentError
from cotmi.data.data_report import DataReport, SplitReport
from cotmi.data.dataset import Dataset as Facts
from cotmi.data.examples import LoadedData
from cotmi.data.labels import get_label_kind
from cotmi.evaluation.scoring import right_answers
from cotmi.runs.execution import execute
from cotmi.students.methods import METHODS
from cotmi.students.written_labels import meant_label, right_labels, unwritable_labels, written_labels
from cotmi.training.trainer import WatchedSplit

LEGIBLE = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;?!'-+=/()"
STRANGE = ["two  spaces", "a < b", "f{x}", "line\nbreak", "tab\there", "half</s>gone", "<pad>", "<unk> seen", "plain",
           " outer ", "ﬁne print", "naïve", "x  <  y", "answer: 3", "not answer: 3", "{}", "<", "日本", "3</s>", "<3"]

NUMBERS = ["7", "12.50", " 8 ", "(3 + 4)  * 2", "3 / 4", "9 - 2"]


def sentencepiece_like(size: int = 300) -> PreTrainedTokenizerFast:
    "A Unigram tokenizer that folds white space and knows no `<`, no `{`, no line break, as T5's."
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " "),
                                             normalizers.Replace("\t", " "), normalizers.Strip(),
                                             normalizers.Replace("  ", " ")])
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
                                      initial_alphabet=list(LEGIBLE.replace(" ", "")), show_progress=False)
    words = ["predict explain answer", "the state is north south east west open shut", LEGIBLE, "two spaces break gone"]
    inner.train_from_iterator(words * 20, trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


TOKENIZER = sentencepiece_like()


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory):
    "A small T5 with such a tokenizer, as a folder holds it."
    config = T5Config(vocab_size=len(TOKENIZER), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, pad_token_id=0,
                      eos_token_id=1, decoder_start_token_id=0)
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    torch.nn.init.normal_(model.lm_head.weight, std=config.d_model**-0.5)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def states(labels: list[str], kind: str = "text", choices: bool = False) -> LoadedData:
    "Questions that are answered by a label each: the third word decides."
    names = ("north", "south", "east", "west", "open", "shut", "two", "gone")
    def part(name: str, count: int) -> Dataset:
        rows = [{"id": f"{name}-{i}", "input": f"the state {names[i % len(labels)]} is {'open shut'.split()[i % 2]}",
                 "label": labels[i % len(labels)], "rationale": f"the state is {names[i % len(labels)]}.",
                 "gold_label": labels[i % len(labels)], "teacher_label": labels[i % len(labels)],
                 "choices": labels if choices else []} for i in range(count)]
        return Dataset.from_list(rows)
    sizes = {"train": 128, "valid": 33, "test": 35}
    counts = {name: SplitReport(n, n, {}, {}, 0, n, 0, labels[0], 1 / len(labels), {}) for name, n in sizes.items()}
    closed = tuple(labels) if kind == "choice" else ()
    facts = Facts("states", "States", lambda *_: None, label_kind=kind, labels=closed)
    return LoadedData(DatasetDict({name: part(name, n) for name, n in sizes.items()}),
                      DataReport("states", "States", kind, "gold", counts, {}), facts)


@pytest.mark.parametrize("method, kind, choices, steps", [
    ("dss", "choice", False, 120), ("single_task", "text", False, 30), ("finetune", "choices", True, 30)])
def test_valid_after_training_is_valid_in_training(method, kind, choices, steps, student_folder, tmp_path, monkeypatch,
                                                   caplog):
    "To the last digit, and a student that has learnt its labels is right."
    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
    labels = ["two  spaces", "x < 3", "plain", "line\nbreak", "f{y}"]
    config = RunConfig(dataset="states", method=method, student=str(student_folder), batch_size=16,
                       max_steps=steps, eval_steps=steps // 2, learning_rate=3e-3, logging_steps=30,
                       estimate_mi=False)
    with caplog.at_level(logging.WARNING):
        run = execute(config, states(labels, kind, choices), tmp_path)
    watched = run.history["valid/accuracy"].dropna().tolist()
    assert run.metrics["valid/accuracy"] == run.metrics["valid/best_accuracy"] == max(watched)
    predictions = run.predictions
    if steps > 100: # it has learnt its labels, four of five of which it cannot write as they are
        assert run.metrics["test/accuracy"] == run.metrics["test/valid_label"] == 1
        assert run.metrics["test/accuracy_likelihood"] == 1 and predictions.confidence.mean() > 0.5
        assert (predictions.predicted_label == predictions.gold_label).mean() < 0.5
    lost = run.report.lengths["unwritable"]
    assert lost["count"] == 4 and lost["labels"]["two  spaces"] == "two spaces" and "plain" not in lost["labels"]
    assert lost["rows"]["train"] == sum(label != "plain" for label in states(labels).examples["train"]["label"])
    lines = [r.getMessage() for r in caplog.records if "cannot write" in r.getMessage()]
    assert len(lines) == 1 and "4 label(s)" in lines[0] and "'two spaces'" in lines[0] and "\n" not in lines[0]


def test_labels_that_become_one_are_refused(student_folder, tmp_path):
    for labels, said in ((["a < b", "a { b", "plain"], "cannot tell 'a < b' from 'a { b'"),
                         (["<", "plain"], "cannot write '<' at all"),
                         (["two  words", "two words"], "cannot tell 'two  words' from 'two words'")):
        with pytest.raises(StudentError, match="Rename labels") as fault:
            execute(RunConfig(dataset="states", method="dss", student=str(student_folder), max_steps=1, batch_size=8),
                    states(labels, "choice"), tmp_path)
        assert said in str(fault.value) and len(str(fault.value)) <= 400


def test_a_lost_marker_is_refused():
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "yes": 3, "no": 4}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    assert unwritable_labels(bare, ["yes"], "dss", "text") == {}
    with pytest.raises(StudentError, match="choose|Choose"):
        unwritable_labels(bare, ["yes"], "single_task", "text")


def answered(label: str, method: str, rationale: str = "so it is.") -> str:
    "What a student that learnt a target perfectly writes, decoded as answers are."
    text = f"{rationale} answer: {label}" if METHODS[method].joined_target else label
    ids = TOKENIZER(text)["input_ids"]
    return TOKENIZER.batch_decode([ids[:ids.index(1)]], skip_special_tokens=True)[0].strip()


def both_ways(labels: list[str], texts: list[str], method: str, kind: str) -> tuple[float, float]:
    "Accuracy as training has it, and as evaluation has it."
    written = written_labels(TOKENIZER, labels, method)
    split = WatchedSplit([[1]] * len(labels), labels, kind, METHODS[method], written)
    table = pd.DataFrame({"predicted_label": [METHODS[method].split(text)[1] for text in texts], "gold_label": labels,
                          "written_label": written})
    return split.accuracy(texts), float(np.mean(right_answers(table, get_label_kind(kind))))


@pytest.mark.parametrize("method", ["finetune", "dss", "single_task", "mi"])
@pytest.mark.parametrize("kind, labels", [("text", STRANGE), ("choice", STRANGE), ("choices", STRANGE),
                                          ("number", NUMBERS), ("equation", NUMBERS)])
def test_a_perfect_student_is_right(method, kind, labels):
    "Whatever the label, unless nothing of it can be written."
    for label in labels:
        training, evaluation = both_ways([label], [answered(label, method)], method, kind)
        assert training == evaluation
        assert training == bool(written_labels(TOKENIZER, [label], method)[0]), label


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.text(alphabet="ab3 <{\n\t/s>:é", min_size=1, max_size=8).filter(str.strip),
                          st.text(alphabet="ab3 <{\n", max_size=8)),
                min_size=1, max_size=6), st.sampled_from(["dss", "single_task"]), st.sampled_from(["text", "number"]))
def test_training_and_evaluation_agree(pairs, method, kind):
    "For any labels and any answers."
    labels = [gold for gold, _ in pairs]
    texts = [answered(told, method) for _, told in pairs]
    training, evaluation = both_ways(labels, texts, method, kind)
    assert training == evaluation
    perfect, _ = both_ways(labels, [answered(label, method) for label in labels], method, kind)
    lost = sum(not back for back in written_labels(TOKENIZER, labels, method))
    assert perfect == pytest.approx(1 - lost / len(labels))


def test_a_wrong_answer_stays_wrong():
    text = get_label_kind("text")
    assert right_labels(text, ["", "south", "3 < 4"], ["<", "north", "3 < 5"], ["", "north", "3  5"]) == [False] * 3
    written = {"a < b": "a b", "plain": "plain"}
    assert meant_label("a b", list(written), written) == "a < b"
    assert meant_label("b", list(written), written) == "b" and meant_label("plain", list(written), written) == "plain"
