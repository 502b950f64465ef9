"What a step makes Python wait for: values of tensors that the host reads, counted where the device is a CPU."
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import cotmi

PACKAGE = f"{Path(cotmi.__file__).parent}/" # a checkout may be called cotmi too, and the tests be within it
READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "unique", "equal")
METHODS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
OUTSIDE = ("/torch/optim/", "/accelerate/", "masking_utils.py") # whose own waits are named where they are allowed


def caller() -> str:
    "The innermost line of the package or of transformers that is running, with its file."
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)
              or "/transformers/" in frame.filename or "/optim/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno} {frames[-1].line}" if frames else "elsewhere"


class _Operators(TorchDispatchMode):
    "Notes operators whose result has a shape or value that only the device knows."
    def __init__(self, noted: list[str]):
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if name in READS or masks:
            self.noted.append(f"{name} at {caller()}")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    "Notes methods of a tensor that hand its values to Python."
    def __init__(self, noted: list[str]):
        super().__init__()
        self.noted = noted

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in METHODS:
            self.noted.append(f"{func.__name__} at {caller()}")
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    "What is read inside, one line each."
    noted: list[str] = []
    with _Operators(noted), _Methods(noted):
        yield noted
