"The packed route through a T5 against the model's own forward: states, gradients, dropout."
import copy

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from cotmi.students.batches import TwoTaskCollator
from cotmi.students.t5_fast_path import T5_PACKED
from cotmi.students.t5_packed import dropout, fits_packed

SMALL = dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=60, dropout_rate=0.0,
             decoder_start_token_id=0)
KINDS = {"v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
         "v1.0": dict(feed_forward_proj="relu"), "gated-silu": dict(feed_forward_proj="gated-silu")}


def batch(seed=0):
    "Three examples of uneven lengths."
    random = torch.Generator().manual_seed(seed)
    def ids(n): return [*torch.randint(2, 60, (n - 1,), generator=random).tolist(), 1]
    lengths = {"predict_input_ids": (9, 4, 12), "label_ids": (2, 1, 4), "explain_input_ids": (8, 4, 11),
               "rationale_ids": (5, 14, 1)}
    return TwoTaskCollator(0)([{name: ids(n[i]) for name, n in lengths.items()} for i in range(3)])


def states_and_gradients(model, padded, packed, bottleneck=None):
    "Decoder and encoder states at the positions that count, and every gradient of a fixed function of them."
    model.set_attn_implementation("sdpa" if packed else "eager")
    assert fits_packed(model) == packed
    model.zero_grad()
    found = []
    for task in T5_PACKED.forward_tasks(model, batch(), bottleneck, padded=padded):
        found += [task.hidden if padded else task.hidden[task.mask], task.encoder[task.encoder_mask.bool()]]
    sum((states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum() for states in found).backward()
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_equal_to_the_models_own_forward(kind, padded):
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**SMALL, **kind)).train()
    (own, expected), (packed, found) = (states_and_gradients(model, padded, packed) for packed in (False, True))
    for got, want in zip(packed, own, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        torch.testing.assert_close(found[name], want, rtol=1e-4, atol=1e-5 * want.abs().max().item(),
                                   msg=lambda m, n=name: f"{n}: {m}")


def test_a_bottleneck_changes_the_label_task_alone():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**SMALL, **KINDS["v1.1"])).train()
    def halve(states, mask): return states / 2, states.mean()
    (own, _), (packed, _) = (states_and_gradients(model, False, packed, halve) for packed in (False, True))
    for got, want in zip(packed, own, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert T5_PACKED.forward_tasks(model, batch(), halve)[0].kl is not None


def test_one_task():
    model = T5ForConditionalGeneration(T5Config(**SMALL, **KINDS["v1.1"]))
    label_only = {name: tensor for name, tensor in batch().items() if name.startswith("predict")}
    predict, explain = T5_PACKED.forward_tasks(model, label_only)
    assert explain is None and predict.hidden.shape == (3, 4, 16)


def test_dropout_is_on_in_training_only_and_follows_the_seed():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**{**SMALL, "dropout_rate": 0.3}, **KINDS["v1.1"]))
    def hidden(seed):
        torch.manual_seed(seed)
        return T5_PACKED.forward_tasks(model, batch())[1].hidden
    model.train()
    assert torch.equal(hidden(1), hidden(1)) and not torch.equal(hidden(1), hidden(2))
    model.eval()
    assert torch.equal(hidden(1), hidden(2))


def test_dropout_keeps_the_mean_and_its_gradient_mask():
    torch.manual_seed(0)
    x, base = torch.randn(300, 100, requires_grad=True), torch.randn(300, 100, requires_grad=True)
    out = dropout(x, 0.25, base)
    out.sum().backward()
    kept = x.grad != 0
    assert abs(kept.float().mean().item() - 0.75) < 0.01
    torch.testing.assert_close(out, base + torch.where(kept, x / 0.75, 0.0))
    assert torch.equal(base.grad, torch.ones_like(base))


def test_where_it_does_not_fit():
    model = T5ForConditionalGeneration(T5Config(**SMALL, **KINDS["v1.1"])).train()
    assert fits_packed(model)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not fits_packed(model)
    hooked = copy.deepcopy(model)
    hooked.encoder.block[0].layer[0].SelfAttention.q.register_forward_hook(lambda *_: None)
    assert not fits_packed(hooked)
    adapted = copy.deepcopy(model)
    adapted.decoder.block[0].layer[0].SelfAttention.v = torch.nn.Sequential(torch.nn.Linear(16, 16))
    assert not fits_packed(adapted)
    model.gradient_checkpointing_enable()
    assert not fits_packed(model)
    bart = BartConfig(vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                      decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0,
                      eos_token_id=1, bos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=1)
    assert not fits_packed(BartForConditionalGeneration(bart))
