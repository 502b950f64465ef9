"""Fixtures that several test files share."""

import os

# Tiny models are fastest on one thread, and threads that wait for each other stall on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached for the hub would wait for it
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_data():
    "A small demo data set."
    from cotmi.data.loading import load_data

    return load_data("demo", demo_size=240, demo_steps=2)
