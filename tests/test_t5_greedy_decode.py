"Greedy decoding by the short route against `generate`."
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from cotmi.students.t5_greedy_decode import fits_greedy_decode, greedy_decode

SHAPES = {"untied": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
          "tied": dict(feed_forward_proj="relu", tie_word_embeddings=True)}


def student(shape, seed):
    "Random weights large enough that answers differ and some of them end."
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=20, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1, initializer_factor=3.0, dropout_rate=0.3, **SHAPES[shape]))
    if shape == "untied":
        with torch.no_grad():
            model.lm_head.weight.normal_()
    return model.eval()


def by_generate(model, inputs, most):
    "All inputs in one padded batch."
    longest = max(map(len, inputs))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in inputs])
    out = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=most, do_sample=False,
                         num_beams=1)[:, 1:].tolist()
    return [row[:row.index(1) + 1] if 1 in row else row for row in out]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tokens_of_generate(shape, seed):
    model = student(shape, seed)
    assert fits_greedy_decode(model)
    inputs = [torch.randint(2, 20, (n,)).tolist() for n in (1, 30, 7, 3, 12, 12, 5, 9, 2, 21, 4, 8)]
    expected = by_generate(model, inputs, 15)
    for cache_mb in (256, 0.02):
        assert greedy_decode(model, inputs, 15, cache_mb) == expected


def test_nothing_to_do():
    model = student("untied", 0)
    assert greedy_decode(model, [], 5) == []
    assert [len(answer) <= 1 for answer in greedy_decode(model, [[3, 4, 1]], 1)] == [True]


def test_other_ways_of_generating_are_left_to_generate():
    model = student("untied", 0)
    model.generation_config.no_repeat_ngram_size = 2
    assert not fits_greedy_decode(model)
