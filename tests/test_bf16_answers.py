"Answers found by bfloat16 products with a check in float32, and candidates that share their prefixes."
import pytest
import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

from cotmi.students import t5_greedy_decode
from cotmi.students.encoder_decoder import ENCODER_DECODER
from cotmi.students.t5_candidates import candidate_states
from cotmi.students.t5_fast_path import generate_packed, score_targets_packed
from cotmi.students.t5_greedy_decode import _RoundedHead, best_words

WORDS = 5_000 # enough for the rounded head to be used


def student(words: int = WORDS, kind: str = "gated-gelu") -> T5ForConditionalGeneration:
    "A T5 with large weights, so that answers differ, and with pairs of words that rounding cannot tell apart."
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3, vocab_size=words, feed_forward_proj=kind,
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=3.0))
    with torch.no_grad():
        model.lm_head.weight.normal_()
        twins = 1 + 1e-4 * torch.randn(words // 2, 1)
        model.lm_head.weight[1::2] = model.lm_head.weight[::2] * twins
    return model.eval()


def inputs(count: int, words: int = WORDS) -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(2, words, (n,), generator=random).tolist()
            for n in torch.randint(1, 14, (count,), generator=random).tolist()]


@pytest.mark.parametrize("able", [True, False])
def test_answers_are_those_of_generate(monkeypatch, able):
    "With the instructions and without them, though every word has a twin within rounding."
    used = []
    whole = _RoundedHead.best
    monkeypatch.setattr(_RoundedHead, "best", lambda self, states: used.append(1) or whole(self, states))
    monkeypatch.setattr(t5_greedy_decode, "bfloat16_instructions", lambda: ("avx512_bf16",) if able else ())
    model, asked = student(), inputs(60)
    assert generate_packed(model, asked, 12) == ENCODER_DECODER.generate(model, asked, 12)
    assert bool(used) == able


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("words", [4_096, 4_097, 5_000])
def test_the_word_found_has_the_largest_logit(words, scale):
    torch.manual_seed(words)
    weight, states = torch.randn(words, 24) * scale, torch.randn(200, 24) * torch.rand(200, 1) * 3
    weight[::3] *= 5 # words of unequal norm
    weight[1::2] = weight[:-1:2] * (1 + 1e-3 * torch.randn(len(weight[1::2]), 1))
    logits = F.linear(states, weight)
    found = _RoundedHead(weight).best(states)
    best = logits.gather(1, found[:, None]).squeeze(1)
    assert torch.allclose(best, logits.amax(-1), rtol=1e-6, atol=1e-7 * scale)
    assert (found == logits.argmax(-1)).double().mean() > 0.99 # equal to the last bit is a matter of order


def test_rounding_alone_would_not_do():
    "The check has something to do: the largest rounded logit is often another word's."
    model = student()
    states = torch.randn(300, 32)
    exact = F.linear(states, model.lm_head.weight).argmax(-1)
    rounded = F.linear(states.bfloat16(), model.lm_head.weight.bfloat16()).argmax(-1)
    assert (rounded != exact).double().mean() > 0.2
    assert torch.equal(_RoundedHead(model.lm_head.weight).best(states), exact)


@pytest.mark.parametrize("case", ["a bias", "few words", "double precision"])
def test_other_heads_stay_as_they_are(monkeypatch, case):
    monkeypatch.setattr(_RoundedHead, "best", lambda *_: pytest.fail("rounded"))
    weight = torch.randn(300 if case == "few words" else WORDS, 8)
    bias = torch.randn(WORDS) if case == "a bias" else None
    states = torch.randn(4, 8)
    if case == "double precision":
        weight, states = weight.double(), states.double()
    assert torch.equal(best_words(weight, bias)(states), F.linear(states, weight, bias).argmax(-1))


@pytest.mark.parametrize("kind", ["gated-gelu", "relu"])
def test_candidates_that_begin_alike_are_scored_as_each_alone(kind):
    model, random = student(60, kind), torch.Generator().manual_seed(3)
    def tokens(n): return torch.randint(2, 6, (n,), generator=random).tolist() # few words: many begin alike

    asked = [[tokens(int(n)) + [1] for n in torch.randint(0, 6, (count,), generator=random)] for count in (7, 1, 4, 12)]
    asked[1] += asked[1] # one candidate twice
    asked.append([])
    starts = [[len(target) // 3 for target in candidates] for candidates in asked]
    ids = torch.randint(2, 60, (len(asked), 9), generator=random)
    mask = torch.ones_like(ids)
    mask[0, 5:] = mask[3, 2:] = 0
    ours = score_targets_packed(model, ids, mask, asked, starts)
    theirs = ENCODER_DECODER.score_targets(model, ids, mask, asked, starts)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-4)
    states, follows = candidate_states(model, ids[:4], mask[:4], asked[:4])
    assert len(follows) == sum(len(target) for candidates in asked for target in candidates)
    distinct = sum(len({tuple(target[:at]) for target in candidates for at in range(len(target))})
                   for candidates in asked)
    assert len(states) == distinct < 0.7 * len(follows)
