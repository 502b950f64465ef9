"The plain losses against naive loops in float64, and against the numbers of the published trainer."
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from cotmi.core import ConfigError
from cotmi.training.fused_linear_loss import vocabulary_pass
from cotmi.training.losses import (
    IGNORED,
    combine,
    max_probabilities,
    paper_surrogate,
    plain_vocabulary_pass,
    term_weights,
    token_cross_entropy,
)
from cotmi.training.objectives import OBJECTIVES, Objective, get_objective

GOLDEN = Path(os.environ.get("COTMI_GOLDEN", Path(__file__).parents[1] / "../shared/data/golden"))
LENGTHS = {"mixed": ([1, 3, 2], [7, 1, 12]), "one token": ([1, 1], [1, 1]), "long": ([1, 2], [256, 3])}


def case(lengths, width=4, words=11, seed=0):
    "Hidden states and labels of both tasks with the target lengths given, and a head."
    generator = torch.Generator().manual_seed(seed)
    hidden, labels = [], []
    for task in lengths:
        hidden.append(torch.randn(len(task), max(task), width, generator=generator, dtype=torch.float64))
        ids = torch.randint(0, words, (len(task), max(task)), generator=generator)
        labels.append(torch.stack([torch.where(torch.arange(max(task)) < n, row, IGNORED)
                                   for n, row in zip(task, ids, strict=True)]))
    head = torch.randn(words, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(words, generator=generator, dtype=torch.float64)
    return [t.requires_grad_() for t in (*hidden, head, bias)], labels


def naive_cross_entropy(logits, labels):
    "The mean of -log p(label) over real positions, one position at a time."
    losses = [-(row[t, label] - row[t].logsumexp(0)) for row, ids in zip(logits, labels, strict=True)
              for t, label in enumerate(ids.tolist()) if label != IGNORED]
    return sum(losses) / len(losses)


def naive_features(logits, labels, masked):
    "For each example the maximum over its positions of exp(logit) / sum exp, one example at a time."
    rows = []
    for row, ids in zip(logits, labels, strict=True):
        p = row.exp() / row.exp().sum(1, keepdim=True)
        rows.append(p[ids != IGNORED].max(0).values if masked else p.max(0).values)
    return torch.stack(rows)


def naive_surrogate(z, v):
    "-(1/B) sum_b sum_w z log softmax(v), one example at a time."
    return sum(-(zb * (vb - vb.exp().sum().log())).sum() for zb, vb in zip(z, v, strict=True)) / len(z)


def naive_total(tensors, labels, pool, mi_gradient, weights):
    predict_hidden, explain_hidden, head, bias = tensors
    predict, explain = predict_hidden @ head.T + bias, explain_hidden @ head.T + bias
    total = (weights["predict"] * naive_cross_entropy(predict, labels[0])
             + weights["explain"] * naive_cross_entropy(explain, labels[1]))
    if pool is None:
        return total
    z, v = (naive_features(logits, ids, pool == "target")
            for logits, ids in ((predict, labels[0]), (explain, labels[1])))
    return total + weights["mi"] * naive_surrogate(z.detach() if mi_gradient == "rationale" else z, v)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("pool", [None, "target", "all"])
@pytest.mark.parametrize("mi_gradient", ["rationale", "both"])
def test_plain_pass_equals_the_naive_formula(lengths, pool, mi_gradient):
    tensors, labels = case(lengths)
    weights = term_weights(0.3, beta=5.0) # a large weight, so that the small term shows in the gradients
    expected = naive_total(tensors, labels, pool, mi_gradient, weights)
    terms = plain_vocabulary_pass(tensors[0], labels[0], tensors[1], labels[1], *tensors[2:],
                                  pool=pool, mi_gradient=mi_gradient, weights=weights)
    torch.testing.assert_close(terms.total, expected, rtol=1e-9, atol=1e-9)
    for got, want in zip(torch.autograd.grad(terms.total, tensors), torch.autograd.grad(expected, tensors),
                         strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_surrogate_gradient_stays_out_of_a_detached_z():
    z, v = (torch.rand(3, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (gradient,) = torch.autograd.grad(paper_surrogate(z.detach(), v), v)
    # d/dv of -sum z log softmax(v) = softmax(v) sum z - z
    expected = (v.softmax(-1) * z.sum(-1, keepdim=True) - z) / len(z)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-9, atol=1e-12)


def test_padding_changes_what_is_pooled_over_all_positions_alone():
    (hidden, _, head, bias), (labels, _) = case(([2, 5], [1, 1]))
    logits = hidden @ head.T + bias
    mask = labels != IGNORED
    alone = max_probabilities(logits[:1, :2])
    torch.testing.assert_close(max_probabilities(logits, mask)[:1], alone)
    assert not torch.allclose(max_probabilities(logits)[:1], alone)


def test_items_make_parts_add_up_to_the_whole():
    (hidden, _, head, bias), (labels, _) = case(([1, 4, 2, 3], [1, 1, 1, 1]))
    logits = hidden @ head.T + bias
    items = int((labels != IGNORED).sum())
    parts = sum(token_cross_entropy(logits[i:i + 1], labels[i:i + 1], items) for i in range(4))
    torch.testing.assert_close(parts, token_cross_entropy(logits, labels), rtol=1e-12, atol=0)


def test_half_precision_logits_are_widened():
    logits = torch.randn(2, 3, 50, dtype=torch.bfloat16)
    labels = torch.randint(0, 50, (2, 3))
    torch.testing.assert_close(token_cross_entropy(logits, labels), token_cross_entropy(logits.float(), labels))
    assert max_probabilities(logits).dtype == torch.float32


@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("explained", [True, False])
def test_combine_is_the_sum_of_the_paper(shares, explained):
    alpha, beta, gamma = 0.3, 0.2, 0.05
    terms = {name: torch.rand((), dtype=torch.float64, requires_grad=True)
             for name in ("predict", "explain", "mi", "critic", "bottleneck")}
    terms["explain"] = terms["explain"] if explained else None
    predict, explain, mi, critic, bottleneck = terms.values()
    tasks = alpha * predict + (1 - alpha) * explain if explained else predict
    expected = tasks + (beta * mi + critic + gamma * bottleneck) / shares
    total = combine(terms, term_weights(alpha, beta, gamma, explained, shares))
    present = [term for term in terms.values() if term is not None]
    for got, want in zip((total, *torch.autograd.grad(total, present)),
                         (expected, *torch.autograd.grad(expected, present)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_every_objective_tells_what_it_is():
    assert next(iter(OBJECTIVES)) == "paper-masked"
    for name, objective in OBJECTIVES.items():
        assert objective.name == name and objective.title and objective.paper
        assert objective.padded == (name == "paper-code")


def squared_distance(z, v):
    return ((z - v) ** 2).mean()


DISTANCE = Objective("distance", "Squared distance", squared_distance, features=("decoder", "encoder"))


def test_an_objective_of_ones_own_is_named_by_its_place():
    assert get_objective(f"{__name__}:DISTANCE") is DISTANCE
    with pytest.raises(ConfigError, match="Did you mean 'infonce'"):
        get_objective("infonze")
    with pytest.raises(ConfigError, match="has no 'NOTHING'"):
        get_objective(f"{__name__}:NOTHING")
    with pytest.raises(ConfigError, match="Wrap a function of z and v"):
        get_objective(f"{__name__}:squared_distance")


golden = pytest.mark.skipif(not (GOLDEN / "expected.json").is_file(),
                            reason=f"no numbers of the published trainer in {GOLDEN} (set COTMI_GOLDEN)")


def golden_batch(examples, side, target):
    "The collated batch of one task as the published trainer makes it: padded to the longest."
    def pad(name, value):
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(e[name]) for e in examples], True, value)
    inputs = pad(side, 0)
    return {"input_ids": inputs, "attention_mask": (inputs != 0).long(), "labels": pad(target, IGNORED)}


@golden
@pytest.mark.parametrize("implementation", ["plain", "fused"])
@pytest.mark.parametrize("run", ["dss", "mi_paper_code"])
def test_first_step_of_the_published_trainer(run, implementation):
    expected = json.loads((GOLDEN / "expected.json").read_text())[run]
    examples = json.loads((GOLDEN / "examples.json").read_text())[:8]
    model = AutoModelForSeq2SeqLM.from_pretrained(GOLDEN / "initial").train()
    passes = []
    for side, target in (("predict_input", "label"), ("explain_input", "rationale")):
        batch = golden_batch(examples, side, target)
        states = model(**batch, output_hidden_states=True).decoder_hidden_states[-1]
        passes += [states, batch["labels"]]
    terms = vocabulary_pass(implementation, *passes, model.lm_head.weight,
                            pool="all" if run != "dss" else None, weights=term_weights(0.5, 0.1))
    terms.total.backward()
    first = expected["first_batch"]
    for name, value in {**terms.losses, "loss": terms.total}.items():
        assert value.item() == pytest.approx(first[name], rel=1e-5), name
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert set(norms) == set(first["gradient_norms"])
    for name, norm in first["gradient_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-4, abs=1e-7), name
