"""Tokens put together from words are those that the tokenizer gives of whole texts, whatever tokenizer and text."""

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cotmi.students import tasks, words
from cotmi.students.builtin import train_tokenizer
from cotmi.students.tasks import tokenize_examples
from cotmi.students.words import ids_by_words, parts_at_spaces

TEXT = ["Ann's 12 pens, and 1,200 more: it isn't a lot.", "a b a b ab ba aab", "predict: explain: ééé 5 5 55"] * 9
MARKS = ["<pad>", "</s>", "<unk>"]
PARTING = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(inner, trainer, parting, normaliser=None, single="$A </s>"):
    "A tokenizer with a few dozen pieces, in `transformers`' clothes."
    inner.pre_tokenizer = parting
    if normaliser:
        inner.normalizer = normaliser
    inner.train_from_iterator(TEXT, trainer)
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("</s>", 1), ("<pad>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def unigram(parting, normaliser=None, **options):
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=MARKS, unk_token="<unk>", show_progress=False)
    return trained(Tokenizer(models.Unigram()), trainer, parting, normaliser, **options)


def byte_pairs(parting, normaliser=None, **options):
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=MARKS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return trained(Tokenizer(models.BPE(**options)), trainer, parting, normaliser)


def word_pieces():
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=MARKS, show_progress=False)
    return trained(Tokenizer(models.WordPiece(unk_token="<unk>")), trainer, pre_tokenizers.BertPreTokenizer(),
                   normalizers.BertNormalizer(), "<pad> $A </s>")


def with_added(*tokens):
    made = byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.add_tokens([AddedToken(text, normalized=False, **options) for text, options in tokens])
    return made


METASPACE = pre_tokenizers.Metaspace()
BY_WORDS = {
    "t5": lambda: unigram(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), METASPACE])),
    "metaspace": lambda: unigram(METASPACE, normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])),
    "spaces made one": lambda: unigram(METASPACE, normalizers.Replace(Regex(" {2,}"), " ")),
    "only the first": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="first"), single="<pad> $A"),
    "gpt2": lambda: byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2 with a space": lambda: byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "qwen": lambda: byte_pairs(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PARTING), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]),
        normalizers.NFC()),
    "bert": word_pieces,
    "builtin": lambda: train_tokenizer(TEXT, 330),
    "added": lambda: with_added(("<mask>", {"lstrip": True}), ("ab", {"single_word": True}), ("   ", {}), ("e", {}),
                                ("12", {"rstrip": True})),
}
AS_A_WHOLE = {
    "llama": lambda: unigram(pre_tokenizers.Metaspace(split=False)),
    "gemma": lambda: byte_pairs(pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁")),
    "space behind": lambda: byte_pairs(pre_tokenizers.Split(" ", "merged_with_previous")),
    "numbers in a row": lambda: byte_pairs(pre_tokenizers.Split(Regex(r"\d+( \d+)*"), "isolated")),
    "at random": lambda: byte_pairs(pre_tokenizers.ByteLevel(False), dropout=0.5),
    "two words": lambda: with_added(("a b", {})),
    "a space": lambda: with_added((" ", {})),
}
PIECES = ["a", "b", "Ann", "'s", "1", "12", "5", ".", ",", "é", "e", "\u0301", "\u0d4e", "\n", "\t", "\u00a0", "\u200b",
          "\u200d", "\u3000", "▁", "Ġ", "中", "☃", "</s>", "<mask>", "ab", "ffi", "İ", "\x00", "$", "-", "##a"]
SIGNS = PIECES + [" "] * 16 + ["  ", "   "]
texts_of = st.lists(st.lists(st.sampled_from(SIGNS), max_size=14).map("".join), min_size=1, max_size=12)


def calm(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=BY_WORDS)
def tokenizer(request):
    return BY_WORDS[request.param]()


@calm(25)
@given(texts=texts_of, special=st.booleans())
def test_words_give_the_tokens_of_the_text(tokenizer, texts, special):
    backend = tokenizer.backend_tokenizer
    wanted = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=special)]
    made = ids_by_words(backend, texts, special)
    assert (made is None) == any("\0" in text for text in texts)
    assert made is None or made.to_pylist() == wanted


def test_most_texts_are_read_by_their_words(tokenizer, monkeypatch):
    "The words are not merely right because every text is read as a whole."
    whole, encode = [], words.batch_ids
    def spy(backend, texts, special=False):
        whole.extend(text for text in texts if text.count(" ") > 2)
        return encode(backend, texts, special)
    monkeypatch.setattr(words, "batch_ids", spy)
    ids_by_words(tokenizer.backend_tokenizer, [*TEXT, "a  b a b a b"], True)
    assert "a  b a b a b" in whole and TEXT[1] not in whole


@pytest.mark.parametrize("name", AS_A_WHOLE)
def test_what_works_otherwise_is_left_alone(name):
    backend = AS_A_WHOLE[name]().backend_tokenizer
    assert not parts_at_spaces(backend) and ids_by_words(backend, TEXT, True) is None


@calm(8)
@given(texts=texts_of, short=st.booleans())
def test_examples_are_tokenised_as_by_the_call(tokenizer, texts, short, monkeypatch):
    monkeypatch.setattr(tasks, "_MANY", 1)
    monkeypatch.setattr(tasks, "_SAMPLE", 2)
    limits = (6, 4) if short else (1024, 512)
    rows = Dataset.from_dict({"id": [str(i) for i in range(len(texts))], "input": texts, "label": texts[::-1],
                              "rationale": texts})
    for row, got in zip(rows, tokenize_examples(rows, tokenizer, "dss", *limits), strict=True):
        for column, text, limit in (("predict_input", f"predict: {row['input']}", limits[0]),
                                    ("explain_input", f"explain: {row['input']}", limits[0]),
                                    ("label", row["label"], limits[1]), ("rationale", row["rationale"], limits[1])):
            assert got[f"{column}_ids"] == tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            assert got[f"{column}_tokens"] == len(tokenizer(text)["input_ids"])


def test_a_sample_finds_what_the_signs_do_not(monkeypatch):
    "A pattern that joins two words of its own: its pairs of signs look well, its texts do not."
    monkeypatch.setattr(tasks, "_MANY", 1)
    odd = byte_pairs(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("q q| ?[^ ]+"), "isolated"),
                                              pre_tokenizers.ByteLevel(False, use_regex=False)]))
    assert parts_at_spaces(odd.backend_tokenizer)
    texts = [f"a{i} q q" for i in range(80)]
    rows = Dataset.from_dict({"id": texts, "input": texts, "label": texts, "rationale": texts})
    assert tokenize_examples(rows, odd, "dss")["rationale_ids"][:] == odd(texts)["input_ids"]
