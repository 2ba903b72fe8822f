#!/usr/bin/env python3
"""What people do without gpulets: several processes, each with the model, time-slicing one GPU.

plain.py MODEL.pt --rows 8 --processes 4 --seconds 5 [--half]

Each process loads the TorchScript archive, runs it eagerly in a closed loop (input from pinned memory,
output back to it), and times every batch. All of them run at once.
"""
import argparse
import json
import multiprocessing
import time


def run(path, rows, seconds, half, barrier, results):
    import torch

    dtype = torch.float16 if half else torch.float32
    model = torch.jit.load(path, map_location="cuda").eval().to(dtype)
    inputs = torch.rand(rows, 3, 224, 224, dtype=dtype).pin_memory()
    with torch.inference_mode():
        for _ in range(10):
            model(inputs.cuda(non_blocking=True)).cpu()
        barrier.wait()
        taken, end = [], time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            model(inputs.cuda(non_blocking=True)).cpu()
            taken.append(time.perf_counter() - begin)
    results.put(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--half", action="store_true")
    given = parser.parse_args()
    start = multiprocessing.get_context("spawn")
    barrier, results = start.Barrier(given.processes), start.Queue()
    arguments = (given.model, given.rows, given.seconds, given.half, barrier, results)
    processes = [start.Process(target=run, args=arguments) for _ in range(given.processes)]
    for process in processes:
        process.start()
    taken = sorted(sum((results.get() for _ in processes), []))
    for process in processes:
        process.join()
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    print(json.dumps({
        "rows_per_s": round(len(taken) * given.rows / given.seconds),
        "p50_ms": round(p50 * 1e3, 3),
        "p99_ms": round(p99 * 1e3, 3),
        "p99_over_p50": round(p99 / p50, 2),
        "half": given.half,
    }))


if __name__ == "__main__":
    main()
