"Tokenised examples of real lengths: the teacher data where there is a data root, else generated text."
import os
import sys

import numpy as np
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerFast

from cotmi.core import DataError, load_settings
from cotmi.data.loading import load_data
from cotmi.students.batches import example_lengths
from cotmi.students.builtin import train_tokenizer
from cotmi.students.tasks import tokenize_examples

# A tokenizer trained on so narrow a text turns nearly every word into one token where it may have 32,128 entries; with
# 4,000 it splits words about as often as one trained on the web at large. The students keep 32,128 words either way.
TOKENIZER_WORDS = 4_000

# Words an input, a label and a rationale has in the generated text: mean, spread, least, most. Taken after CQA.
GENERATED_WORDS = {"input": (34, 8, 12, 75), "label": (1.3, 0.6, 1, 4), "rationale": (24, 6.5, 5, 60)}


def generated_rows(rows: int, seed: int = 0) -> Dataset:
    "Rows of made-up words with the lengths of CQA: for speed, words do not matter."
    random = np.random.default_rng(seed)
    syllables = [c + v for c in "bcdfghklmnprstvw" for v in "aeiou"]
    vocabulary = ["".join(random.choice(syllables, size=random.integers(1, 4))) for _ in range(3_000)]
    shares = 1 / np.arange(1, len(vocabulary) + 1) # a few words are frequent, as in any language
    def text(mean, spread, least, most):
        words = int(np.clip(round(random.normal(mean, spread)), least, most))
        return " ".join(random.choice(vocabulary, size=words, p=shares / shares.sum()))
    made = [{column: text(*lengths) for column, lengths in GENERATED_WORDS.items()} for _ in range(rows)]
    return Dataset.from_list([{"id": str(i), **row} for i, row in enumerate(made)])


def split_rows(dataset: str, splits: tuple[str, ...] = ("train",)) -> tuple[list[Dataset], str]:
    "Splits of `cqa` or `svamp`, or generated ones where the data root lacks it; and what they are."
    if "COTMI_PATHS_DATA" in os.environ or load_settings().sources["paths.data"] != "default":
        try:
            found = load_data(dataset).examples
            return [found[split] for split in splits], dataset
        except DataError:
            pass # the data root has other datasets only
    print(f"no data root with {dataset}: generated text of CQA's lengths instead", file=sys.stderr)
    sizes = {"train": 6_000, "test": 1_200}
    return [generated_rows(sizes[split], seed) for seed, split in enumerate(splits)], "generated"


def make_tokenizer(train: Dataset) -> PreTrainedTokenizerFast:
    "A tokenizer trained on inputs, labels and rationales."
    return train_tokenizer([text for column in ("input", "label", "rationale") for text in train[column]],
                           TOKENIZER_WORDS)


def tokenised(dataset: str, rows: int | None = None) -> tuple[list[dict], np.ndarray, str]:
    "Token ids of both tasks of training rows, their lengths [rows, 4], and what the text is."
    disable_progress_bars()
    (train,), source = split_rows(dataset)
    train = train.select(range(min(rows or len(train), len(train))))
    tokens = tokenize_examples(train, make_tokenizer(train), "dss")
    return tokens.remove_columns("id").to_list(), example_lengths(tokens), source


def test_tokens(dataset: str, rows: int | None = None):
    "Training rows, their lengths, the test inputs of both tasks, the tokenizer, and what the text is."
    disable_progress_bars()
    (train, test), source = split_rows(dataset, ("train", "test"))
    tokenizer = make_tokenizer(train)
    tokens = tokenize_examples(train, tokenizer, "dss")
    asked = tokenize_examples(test.select(range(min(rows or len(test), len(test)))), tokenizer, "dss")
    inputs = {column: asked[column] for column in ("predict_input_ids", "explain_input_ids")}
    return tokens.remove_columns("id").to_list(), example_lengths(tokens), inputs, tokenizer, source
