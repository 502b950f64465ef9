"Peak memory, matrix-product rate and a description of the machine that a figure belongs to."
import ctypes
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

STATUS = Path("/proc/self/status")


def resident_mb(peak: bool = False) -> float:
    "Resident memory of this process now, or at its peak since `reset_peak`."
    if not STATUS.exists(): # not Linux: the peak of the whole process is all there is
        scale = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    field = "VmHWM:" if peak else "VmRSS:"
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith(field)).split()[1]) / 2**10


def reset_peak():
    "Give freed memory back to the system and start counting the peak anew."
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass # another system: peaks then include what came before, on both sides


def matmul_gflops(width: int, words: int, rows: int = 512, repeats: int = 7,
                  dtype: torch.dtype = torch.float32) -> float:
    "Median rate of the head's product [rows, width] x [width, words], forward and both gradients, GFLOP/s."
    hidden, weight = torch.randn(rows, width).to(dtype), torch.randn(words, width).to(dtype)
    logits, times = torch.empty(rows, words, dtype=dtype), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(hidden, weight.t(), out=logits)
        logits @ weight
        logits.t() @ hidden
        times.append(time.perf_counter() - start)
    return 6 * rows * width * words / statistics.median(times[1:]) / 1e9


def processor() -> str:
    "The processor's name."
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.exists() else []
    return names[0] if names else platform.processor()


def describe() -> dict[str, str | int]:
    "What the figures were measured on."
    return {"processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__}


def in_fresh_process(module: str, *arguments: str) -> dict:
    "What a module prints last when called with these arguments in a process of its own."
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
