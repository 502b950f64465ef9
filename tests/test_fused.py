"The fused vocabulary pass against the plain formula: values and gradients, for every mix of lengths and every option."
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from cotmi.core import ConfigError
from cotmi.training.fused_linear_loss import fused_vocabulary_pass, pooled_probabilities, vocabulary_pass
from cotmi.training.losses import IGNORED, max_probabilities, plain_vocabulary_pass, term_weights

# Target lengths of the label and the rationale of each example of a batch.
LENGTHS = {
    "mixed": ([1, 3, 2, 1], [7, 1, 12, 5]),
    "one token": ([1, 1], [1, 1]),
    "one example": ([4], [9]),
    "long": ([1, 2, 1], [256, 3, 40]),
    "an empty rationale": ([2, 1, 3], [0, 6, 2]),
    "an empty label": ([0, 2], [3, 4]),
}
WEIGHTS = {"predict": 0.3, "explain": 0.7, "mi": 5.0} # a large last one, so that the small term shows in the gradients


def case(lengths, width=6, words=37, seed=0, dtype=torch.float64, scale=1.0):
    "Decoder states, labels, head and bias; the padding is not zero, so that a pass that reads it shows."
    generator = torch.Generator().manual_seed(seed)
    passes = []
    for task in lengths:
        states = torch.randn(len(task), max(*task, 1), width, generator=generator, dtype=dtype) * scale
        ids = torch.randint(0, words, states.shape[:2], generator=generator)
        real = torch.arange(states.shape[1]) < torch.tensor(task)[:, None]
        passes += [states.requires_grad_(), torch.where(real, ids, IGNORED)]
    head = torch.randn(words, width, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(words, generator=generator, dtype=dtype).requires_grad_()
    return passes, head, bias


def run(implementation, passes, head, bias, **options):
    "Terms and gradients of one implementation."
    terms = vocabulary_pass(implementation, *passes, head, bias, **options)
    wanted = [t for t in (*passes[::2], head, bias) if t is not None]
    return terms, torch.autograd.grad(terms.total, wanted)


def values_of(terms):
    "The total, the terms and the features that are there, by name."
    features = {} if terms.z is None else {"z": terms.z, "v": terms.v}
    return {"total": terms.total, **terms.losses, **features}


def assert_same(passes, head, bias, rtol, atol=0.0, **options):
    "Both implementations agree in every term, in z and v, and in every gradient."
    (plain, expected), (fused, found) = (run(name, passes, head, bias, **options) for name in ("plain", "fused"))
    assert plain.losses.keys() == fused.losses.keys()
    for name, value in values_of(plain).items():
        torch.testing.assert_close(values_of(fused)[name], value, rtol=rtol, atol=atol)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=rtol, atol=max(atol, rtol * want.abs().max().item()))


@pytest.mark.parametrize("mi_gradient", ["rationale", "both"])
@pytest.mark.parametrize("pool", [None, "target", "all"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equal_in_float64(lengths, pool, mi_gradient):
    passes, head, bias = case(lengths)
    assert_same(passes, head, bias, 1e-9, 1e-12, pool=pool, mi_gradient=mi_gradient, weights=WEIGHTS)


@pytest.mark.parametrize("slice_mb", [1e-6, 20 * 37 * 8 / 2**20], ids=["an example", "twenty rows"])
@pytest.mark.parametrize("pool", [None, "target", "all"])
def test_the_size_of_a_slice_changes_nothing(slice_mb, pool):
    passes, head, bias = case(LENGTHS["mixed"])
    options = {"pool": pool, "mi_gradient": "both", "weights": WEIGHTS}
    whole = fused_vocabulary_pass(*passes, head, bias, **options)
    cut = fused_vocabulary_pass(*passes, head, bias, slice_mb=slice_mb, **options)
    inputs = (*passes[::2], head, bias)
    for got, want in zip((cut.total, *torch.autograd.grad(cut.total, inputs)),
                         (whole.total, *torch.autograd.grad(whole.total, inputs)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pool", [None, "target", "all"])
def test_equal_in_float32_at_a_real_vocabulary(pool):
    passes, head, bias = case(([1, 3, 2], [20, 1, 33]), width=16, words=8_000, dtype=torch.float32)
    assert_same(passes, head, bias, 1e-5, pool=pool, weights=term_weights(0.5, 0.1))


def test_without_bias_and_with_given_items():
    passes, head, _ = case(LENGTHS["mixed"])
    assert_same(passes, head, None, 1e-9, 1e-12, pool="target", predict_items=11,
                explain_items=torch.tensor(50.0), weights=WEIGHTS)


def test_one_task():
    passes, head, bias = case(LENGTHS["mixed"])
    assert_same([*passes[:2], None, None], head, bias, 1e-9, 1e-12)


def test_a_weight_of_zero_is_no_term():
    passes, head, bias = case(LENGTHS["mixed"])
    (_, without), (terms, zero) = (run("fused", passes, head, bias, pool=pool, weights=term_weights(beta=0.0))
                                   for pool in (None, "target"))
    assert "mi" in terms.losses
    for got, want in zip(zero, without, strict=True):
        assert torch.equal(got, want)


def test_a_frozen_head_gets_no_gradient():
    passes, head, bias = case(LENGTHS["mixed"])
    head.requires_grad_(False)
    total = fused_vocabulary_pass(*passes, head, bias, pool="target").total
    total.backward()
    assert head.grad is None and bias.grad is not None


def test_labels_far_from_the_favourite_keep_their_loss():
    "Where p(label) underflows to 0 in float32 the loss is still exact."
    passes, head, bias = case(LENGTHS["mixed"], dtype=torch.float32, scale=60.0)
    with torch.no_grad():
        plain = plain_vocabulary_pass(*passes, head, bias)
        fused = fused_vocabulary_pass(*passes, head, bias)
    assert plain.losses["predict"] > 88 # log of the smallest float32
    torch.testing.assert_close(fused.total, plain.total, rtol=1e-5, atol=0)


def test_upstream_gradient_scales():
    passes, head, bias = case(LENGTHS["mixed"])
    found = [torch.autograd.grad(fused_vocabulary_pass(*passes, head, bias, pool="target").total * scale,
                                 head)[0] for scale in (1.0, 3.0)]
    torch.testing.assert_close(found[0] * 3, found[1])


def test_without_gradient_only_values():
    passes, head, bias = case(LENGTHS["mixed"])
    with torch.no_grad():
        terms = fused_vocabulary_pass(*passes, head, bias, pool="all")
    assert not terms.total.requires_grad
    torch.testing.assert_close(terms.total, plain_vocabulary_pass(*passes, head, bias, pool="all").total)


def test_bfloat16_autocast():
    passes, head, bias = case(LENGTHS["mixed"], width=16, words=300, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (plain, expected), (fused, found) = (run(name, passes, head, bias, pool="target", weights=WEIGHTS)
                                             for name in ("plain", "fused"))
    torch.testing.assert_close(fused.total, plain.total, rtol=1e-2, atol=0)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype == torch.float32
        assert (got - want).norm() < 0.02 * want.norm()


def test_float16_keeps_small_gradients():
    passes, head, bias = case(LENGTHS["mixed"], width=16, words=300, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        _, found = run("fused", passes, head, bias, pool="target")
    _, expected = run("plain", passes, head, bias, pool="target")
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_a_student_in_bfloat16():
    passes, head, bias = case(LENGTHS["mixed"], width=16, words=300, dtype=torch.bfloat16)
    (_, expected), (_, found) = (run(name, passes, head, bias, pool="target") for name in ("plain", "fused"))
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want.float()).norm() < 0.05 * want.float().norm()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_of_a_whole_student(tied, checkpointing):
    "Tied and untied heads, scaled decoder outputs, checkpointing: every gradient is the plain one."
    from cotmi.students.student import family_of

    torch.manual_seed(0)
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50, dropout_rate=0.0,
                      feed_forward_proj="gated-gelu", decoder_start_token_id=0, tie_word_embeddings=tied)
    config.scale_decoder_outputs = tied
    model = T5ForConditionalGeneration(config).double().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    (_, predict_labels, _, explain_labels), _, _ = case(LENGTHS["mixed"], words=50)
    batch = {}
    for task, labels in (("predict", predict_labels), ("explain", explain_labels)):
        ids = torch.randint(2, 50, (4, 6))
        batch |= {f"{task}_input_ids": ids, f"{task}_attention_mask": torch.ones_like(ids), f"{task}_labels": labels}
    found = []
    for implementation in ("plain", "fused"):
        model.zero_grad()
        predict, explain = family_of(model).forward_tasks(model, batch)
        terms = vocabulary_pass(implementation, predict.hidden, predict.labels, explain.hidden, explain.labels,
                                *family_of(model).head(model), pool="target", weights=WEIGHTS)
        terms.total.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, want in found[0].items():
        torch.testing.assert_close(found[1][name], want, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lengths", [LENGTHS["mixed"], LENGTHS["an empty rationale"]])
@pytest.mark.parametrize("slice_mb", [None, 1e-6])
def test_pooled_probabilities(lengths, slice_mb):
    (_, _, states, labels), head, bias = case(lengths)
    mask = labels != IGNORED
    plain = max_probabilities(torch.nn.functional.linear(states, head, bias), mask)
    pooled = pooled_probabilities(states, mask, head, bias, slice_mb)
    torch.testing.assert_close(pooled, plain, rtol=1e-9, atol=1e-12)
    upstream = torch.randn_like(plain)
    inputs = (states, head, bias)
    for got, want in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (pooled, plain)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_memory_stays_within_the_slice():
    "The pass allocates the slice and the gradients, never the logits of the batch."
    words, width = 4_000, 8
    passes, head, _ = case(([1] * 64, [50] * 64), width=width, words=words, dtype=torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        fused_vocabulary_pass(*passes, head, pool="target", slice_mb=4).total.backward()
    slice_values = 4 * 2**20 // 4
    assert largest <= slice_values < 64 * 50 * words / 10


def test_impossible_requests_are_refused():
    passes, head, bias = case(LENGTHS["mixed"])
    with pytest.raises(ConfigError, match="there is no rationale pass"):
        fused_vocabulary_pass(*passes[:2], None, None, head, pool="all")
    with pytest.raises(ConfigError, match="Did you mean 'fused'"):
        vocabulary_pass("fusd", *passes, head)
    with pytest.raises(ConfigError, match="none for mi"):
        fused_vocabulary_pass(*passes, head, weights={"predict": 1.0, "explain": 1.0})
