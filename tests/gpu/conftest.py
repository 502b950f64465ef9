"These tests need a GPU; without one they skip, and say so."
import pytest
import torch

REASON = "PyTorch finds no GPU here"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "tests/gpu" in item.nodeid or "/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(autouse=True)
def float32_is_float32():
    "Products in float32 without TF32, so that they can be held against a CPU; and the seed is set."
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
