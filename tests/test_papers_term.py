"""The paper's term laid open: bounds that hold, figures that agree with a plain computation, words that carry it."""
import math

import numpy as np
import pytest
import torch

from cotmi.core import RunFile, read_json_lines
from cotmi.data.loading import load_data
from cotmi.training.losses import max_probabilities, paper_surrogate, plain_vocabulary_pass, term_weights
from cotmi.training.objectives import OBJECTIVES
from cotmi.training.papers_term import GRADIENT_SHARE, TERM_FIGURES, gradient_share, term_figures, term_words
from cotmi.training.run_config import RunConfig
from cotmi.training.trainer import train


def pooled(seed: int, sharpness: float, words: int, positions: int) -> torch.Tensor:
    "[16, words] pooled probabilities."
    generator = torch.Generator().manual_seed(seed)
    return max_probabilities(sharpness * torch.randn(16, positions, words, generator=generator))


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 30.0])
@pytest.mark.parametrize(("words", "positions"), [(5, 2), (60, 6), (1000, 40)])
def test_the_term_never_leaves_its_strip(sharpness, words, positions):
    z = pooled(0, sharpness, words, 2)
    for v in (pooled(1, sharpness, words, positions), z, torch.zeros_like(z)):
        found = term_figures(z, v, torch.tensor(positions))
        low, term, high = (float(x) for x in (found["mi/term_floor"], paper_surrogate(z, v), found["mi/term_ceiling"]))
        assert low - 1e-4 <= term <= high + 1e-4
        assert 0 <= found["mi/overlap"] <= 1


def test_the_term_is_mass_times_normaliser_less_overlap():
    z, v = pooled(0, 3, 50, 2), pooled(1, 3, 50, 6)
    overlap = term_figures(z, v, torch.tensor(6))["mi/overlap"]
    laid_open = (z.sum(1) * v.logsumexp(1)).mean() - overlap * z.sum(1).mean()
    assert math.isclose(float(laid_open), float(paper_surrogate(z, v)), rel_tol=1e-5)


@pytest.mark.parametrize("pool", ["target", "all"])
@pytest.mark.parametrize("mi_gradient", ["rationale", "both"])
def test_the_share_is_that_of_whole_gradients(pool, mi_gradient):
    "Against gradients of the terms one by one, padding included."
    torch.manual_seed(0)
    states, head, ids = torch.randn(2, 5, 6, 8), torch.randn(40, 8), torch.randint(40, (2, 5, 6))
    ids[:, :3, 4:] = -100
    weights = term_weights(alpha=0.3, beta=0.2)
    norms = []
    for names in (["mi"], ["predict", "explain"]):
        leaves = [states[i].clone().requires_grad_() for i in (0, 1)]
        only = {name: weights[name] * (name in names) for name in ("predict", "explain", "mi")}
        plain_vocabulary_pass(leaves[0], ids[0], leaves[1], ids[1], head, pool=pool, mi_gradient=mi_gradient,
                              weights=only).total.backward()
        norms.append(torch.cat([leaf.grad.flatten() for leaf in leaves]).norm())
    found = gradient_share((states[0], ids[0]), (states[1], ids[1]), (head, None), pool, mi_gradient, weights)
    assert math.isclose(float(found), float(norms[0] / (norms[0] + norms[1])), rel_tol=1e-4)


@pytest.mark.parametrize("objective", ["paper-masked", "paper-code"])
def test_every_line_of_the_log_lays_the_term_open(objective, tmp_path):
    config = RunConfig(student="builtin:tiny", objective=objective, max_steps=11, eval_steps=11, logging_steps=1,
                       batch_size=8, learning_rate=1e-3, generation_max_length=4)
    train(config, load_data("demo", demo_size=60), tmp_path, progress=False)
    rows = [row for row in read_json_lines(tmp_path / RunFile.HISTORY) if "loss" in row]
    assert len(rows) == 11 and set(OBJECTIVES[objective].logs) == {"loss/mi", *TERM_FIGURES, GRADIENT_SHARE}
    for row in rows:
        assert row["mi/term_floor"] <= row["loss/mi"] <= row["mi/term_ceiling"]
        assert 0 <= row["mi/overlap_without_end"] <= 1 and 0 <= row["mi/overlap"] <= 1
    assert [row["step"] for row in rows if GRADIENT_SHARE in row] == [1, 11] # every tenth step, of which it is the mean
    assert all(0 < row[GRADIENT_SHARE] < 1 for row in rows if GRADIENT_SHARE in row)


def test_words_of_a_class_are_those_of_its_examples():
    rng = np.random.default_rng(0)
    z, v, labels = rng.random((30, 4)), rng.random((30, 4)), np.repeat(["a", "b", "c"], [15, 10, 5])
    whole, *classes = term_words(z, v, list("wxyz"), labels.tolist(), top=4, classes=2)
    assert [row["label"] for row in (whole, *classes)] == [None, "a", "b"] # the most frequent
    for row, rows in ((whole, slice(None)), (classes[0], labels == "a"), (classes[1], labels == "b")):
        for name, of in (("shared", z * v), ("missing", z * (1 - v))):
            means = dict(zip("wxyz", of[rows].mean(0), strict=True))
            assert [word for word, _ in row[name]] == sorted(means, key=means.get, reverse=True)
            assert all(math.isclose(value, means[word], abs_tol=1e-4) for word, value in row[name])
