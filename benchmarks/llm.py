"""Throughput of the client against a server that takes a fixed time to answer.

    python -m benchmarks.llm [--requests 1000] [--workers 32] [--latency 0.05]

The server is a process of its own and does nothing but wait. The ideal is what as many workers could get if asking cost
nothing: requests / workers * latency. Answers are kept on disk, as a real run keeps them. The last line is a JSON
object; processor seconds are those of the client's process.
"""
import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

from cotmi.llm.answers import AnswerFile
from cotmi.llm.client import for_each
from cotmi.llm.dialects import Wish
from cotmi.llm.endpoint import Endpoint

ANSWER = json.dumps({"choices": [{"message": {"content": "It adds up.\nAnswer: 7"}, "finish_reason": "stop"}],
                     "usage": {"prompt_tokens": 100, "completion_tokens": 20}}).encode()
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float):
    "Answer what comes over one connection."
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
            await asyncio.sleep(latency)
            writer.write(REPLY)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(latency: float, port):
    "Serve until killed; the port goes into a shared value."
    async def main():
        server = await asyncio.start_server(lambda r, w: connection(r, w, latency), "127.0.0.1", 0)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()
    asyncio.run(main())


async def ask(client, number: int):
    return await client.ask(Wish((("user", f"How much are 3 and {number}? " * 10),)))


def measure(url: str, requests: int, workers: int) -> dict[str, float]:
    "One run with a file of answers of its own."
    with tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint(url, "toy", workers=workers, max_calls=None)
        start, spent = time.perf_counter(), time.process_time()
        replies, ledger = for_each(range(requests), ask, endpoint, Path(folder, "answers.jsonl"))
        figures = {"seconds": time.perf_counter() - start, "processor": time.process_time() - spent}
        assert ledger.calls == ledger.answers == len(replies) == len(AnswerFile(Path(folder, "answers.jsonl")))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    port = fresh.Value("i", 0)
    server = fresh.Process(target=serve, args=(options.latency, port), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    url, ideal = f"http://127.0.0.1:{port.value}/v1", options.requests / options.workers * options.latency
    measure(url, 4 * options.workers, options.workers) # imports and first connections
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs = [measure(url, options.requests, options.workers) for _ in range(options.repeats)]
    server.kill()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for run in runs:
        print(f"{run['seconds']:.2f} s, {ideal / run['seconds']:.0%} of the ideal {ideal:.2f} s; "
              f"{run['processor']:.2f} s of a processor")
    print(json.dumps({"share_of_ideal": round(statistics.median(ideal / run["seconds"] for run in runs), 3),
                      "processor_ms_a_request": round(1e3 * statistics.median(
                          run["processor"] for run in runs) / options.requests, 2), "memory_grown_kb": grown}))


if __name__ == "__main__":
    main()
