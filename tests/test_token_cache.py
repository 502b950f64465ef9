"""Tokens from Arrow to Arrow: as the tokenizer's own call gives them, and for large data only once."""

import os
import threading

import datasets
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cotmi.core import CotmiError
from cotmi.students import token_cache
from cotmi.students.builtin import train_tokenizer
from cotmi.students.methods import METHODS
from cotmi.students.tasks import COUNT_COLUMNS, TASK_COLUMNS, student_input, token_batches, tokenize_examples
from cotmi.students.token_cache import kept_tokens, token_key

WORDS = "ann has pens and finds more so there are now seven three four nine".split()


def make_rows(count: int, start: int = 0) -> Dataset:
    "Examples of many lengths, some empty, some with signs that no vocabulary has."
    rows = []
    for i in range(start, start + count):
        text = " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(i % 23))
        rows.append({"id": f"r{i}", "input": f"{text} <sep> {i % 9} ☃", "label": ("yes", "no", "")[i % 3],
                     "rationale": None if i % 11 == 5 else f"{text}. {i}"})
    return Dataset.from_list(rows)


def bart_like() -> PreTrainedTokenizerFast:
    "A tokenizer that puts something before and behind a text."
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    inner.train_from_iterator([" ".join(WORDS)] * 9, trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


class Translator(PreTrainedTokenizerFast):
    "A tokenizer whose targets begin otherwise than its inputs, as mBART's do."
    def __call__(self, text=None, text_target=None, **options):
        told = super().__call__(text if text is not None else [f"nine {t}" for t in text_target], **options)
        return told


def translator() -> PreTrainedTokenizerFast:
    return Translator(tokenizer_object=bart_like().backend_tokenizer, pad_token="<pad>", eos_token="</s>",
                      unk_token="<unk>")


TOKENIZERS = {"bytes": lambda: train_tokenizer([" ".join(WORDS)], 400), "two ends": bart_like, "targets": translator}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("method", ["dss", "finetune", "single_task"])
@pytest.mark.parametrize("limits", [(1024, 512), (9, 6)])
def test_tokens_are_those_of_the_tokenizers_call(name, method, limits):
    tokenizer, rows = TOKENIZERS[name](), make_rows(150)
    tokenizer(["a b c d"], truncation=True, max_length=3, padding="max_length") # what it remembers changes nothing
    tokens = tokenize_examples(rows, tokenizer, method, *limits)
    assert tokens.column_names == ["id", *TASK_COLUMNS, *COUNT_COLUMNS] and tokens["id"][:] == rows["id"][:]
    for row, got in zip(rows, tokens, strict=True):
        for task in ("predict", "explain"):
            text = student_input(row["input"], task, method, "</s>")
            assert got[f"{task}_input_ids"] == tokenizer(text, truncation=True, max_length=limits[0])["input_ids"]
            assert got[f"{task}_input_tokens"] == len(tokenizer(text)["input_ids"])
        rationale = row["rationale"] or ""
        wanted = tokenizer(text_target=[rationale], truncation=True, max_length=limits[1])["input_ids"][0]
        assert got["rationale_ids"] == wanted
        if METHODS[method].joined_target:
            head = tokenizer(rationale, add_special_tokens=False)["input_ids"]
            tail = tokenizer(f" answer: {row['label']}", truncation=True, max_length=limits[1])["input_ids"]
            assert got["label_ids"] == head[:limits[1] - len(tail)] + tail
        else:
            told = tokenizer(text_target=[row["label"]], truncation=True, max_length=limits[1])["input_ids"]
            assert [got["label_ids"]] == told


@pytest.fixture
def kept(tmp_path, monkeypatch):
    "A cache of its own that keeps data of 50 rows and more."
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(token_cache, "KEPT_FROM", 50)
    return tmp_path / "cotmi-tokens"


@pytest.fixture
def forbidden(monkeypatch):
    "Whoever tokenises now, fails."
    def refuse(*_):
        raise AssertionError("tokenised again")
    return lambda: [monkeypatch.setattr(token_cache, name, refuse) for name in ("token_batches", "tokenize_examples")]


def test_the_second_start_tokenises_nothing(kept, forbidden):
    tokenizer, rows = train_tokenizer(WORDS, 300), make_rows(60)
    first = kept_tokens(rows, tokenizer, "dss").to_list()
    assert first == tokenize_examples(rows, tokenizer, "dss").to_list() and len(list(kept.iterdir())) == 1
    forbidden()
    again = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
                                    **{k: str(v) for k, v in tokenizer.special_tokens_map.items()},
                                    clean_up_tokenization_spaces=False)
    assert kept_tokens(make_rows(60), again, "dss").to_list() == first # the same content, whoever made it
    for other in (lambda: kept_tokens(rows, tokenizer, "mi"), lambda: kept_tokens(rows, tokenizer, "dss", 9),
                  lambda: kept_tokens(make_rows(60, 1), tokenizer, "dss"),
                  lambda: kept_tokens(rows, train_tokenizer(WORDS, 290), "dss")):
        with pytest.raises(AssertionError, match="tokenised again"):
            other()


def test_a_student_read_back_has_the_same_key(tmp_path):
    "A run's student is saved with its tokenizer; evaluating it later finds what training has kept."
    from transformers import AutoTokenizer

    tokenizer, rows = train_tokenizer(WORDS, 300), make_rows(5)
    tokenizer.save_pretrained(tmp_path)
    first = AutoTokenizer.from_pretrained(tmp_path)
    first.save_pretrained(tmp_path / "again")
    second = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert token_key(rows, first, ("dss",)) == token_key(rows, second, ("dss",))
    assert first(rows["input"][:])["input_ids"] == tokenizer(rows["input"][:])["input_ids"]


def test_small_data_leave_nothing(kept):
    kept_tokens(make_rows(49), train_tokenizer(WORDS, 300), "dss")
    assert not kept.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_broken_file_is_made_anew(kept, share):
    tokenizer, rows = train_tokenizer(WORDS, 300), make_rows(60)
    first = kept_tokens(rows, tokenizer, "dss").to_list()
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    for broken in (whole[:int(share * len(whole))], b"no arrow at all", b""):
        file.unlink() # a new file, as an interrupted copy would be
        file.write_bytes(broken)
        assert kept_tokens(rows, tokenizer, "dss").to_list() == first
    assert [path.name for path in kept.iterdir()] == [file.name] and len(file.read_bytes()) == len(whole)


def test_two_writers(kept):
    tokenizer, rows, told = train_tokenizer(WORDS, 300), make_rows(80), []
    def work():
        told.append(kept_tokens(rows, train_tokenizer(WORDS, 300), "dss").to_list())
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [tokenize_examples(rows, tokenizer, "dss").to_list()] * 3 and len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), CotmiError("No space left on device.")])
def test_a_full_disk_stops_nothing(kept, monkeypatch, caplog, fault):
    def refuse(*_):
        raise fault
    monkeypatch.setattr(token_cache, "write_whole", refuse)
    tokenizer, rows = train_tokenizer(WORDS, 300), make_rows(60)
    assert kept_tokens(rows, tokenizer, "dss").to_list() == tokenize_examples(rows, tokenizer, "dss").to_list()
    assert "No space left" in caplog.text and not list(kept.glob("*"))


def test_the_oldest_file_goes(kept):
    tokenizer = train_tokenizer(WORDS, 300)
    for i in range(token_cache._MOST_FILES + 2):
        kept_tokens(make_rows(50, i), tokenizer, "dss")
        for age, file in enumerate(sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)):
            os.utime(file, (1e9 - age, 1e9 - age)) # one second apart, whatever the clock's grain
    assert len(list(kept.iterdir())) == token_cache._MOST_FILES
    assert all(len(batch) for batch in token_batches(make_rows(50), tokenizer, "dss"))
