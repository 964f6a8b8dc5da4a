"""PyTorch with PEFT on a GPU, each variant in a process of its own that needs no start.

    python3 bench/gpu_peers.py

Imports all that takes long, then reads jobs from standard input, a line of JSON each, and answers
each with a line. A job runs in a child that is forked for it, so that it finds the GPU's memory
empty, and is killed after `limit_s` seconds. This process itself never touches the GPU: what has
cannot be forked. Started by `cargo xtask gpu-check`.

    {"job": "probe", "device": "cuda:0", "size": 8192}   versions, and the rate of products
    {"job": "steps", "steps": 5, ...}                    `peft_steps.py`'s settings: its figures
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import select
import signal
import sys
import time
import traceback

# Counts GPUs without making a context.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
# Less of the memory lies idle in pieces that are too small.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import peft_steps
import torch
import transformers.models.llama.modeling_llama  # noqa: F401, so that no child has to


PR_SET_PDEATHSIG = 1  # Linux: the signal to get when the parent ends.


def probe(job):
    """What there is, and the best rate of a product in bf16 of `size` cubed, in FLOP/s."""
    device, size = job["device"], job["size"]
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / 10)
    version = importlib.metadata.version
    return {
        "gpu": "none" if device == "cpu" else torch.cuda.get_device_name(device),
        "versions": ", ".join(f"{x} {version(x)}" for x in ("torch", "transformers", "peft")),
        "has_flash_attn": importlib.util.find_spec("flash_attn") is not None,
        "ceiling_flops": 2 * size**3 / best,
    }


def steps(job):
    if job["attention"] == "flash_attention_2":
        import flash_attn  # noqa: F401, to fail here with its own reason
    return peft_steps.Trainer(job).steps(job["steps"])


def attempt(job):
    """The job's figures, or why there are none."""
    try:
        return {"probe": probe, "steps": steps}[job["job"]](job)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
            return {"error": "out of memory"}
        return {"error": f"failed: {type(error).__name__}: {lines[0][:120]}"}


def in_child(job, pipe):
    """Does the job and ends the process, which also ends when its parent does."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if torch.cuda._is_in_bad_fork():
        # Something that was imported has touched the GPU after all: begin anew, which takes longer.
        os.set_inheritable(pipe, True)
        os.execv(sys.executable, [sys.executable, __file__, json.dumps(job), str(pipe)])
    os.write(pipe, json.dumps(attempt(job)).encode())
    # Without the exit's own work, which may wait for processes that compile.
    sys.stderr.flush()
    os._exit(0)


def end(child, at_once):
    """Waits for the child, and ends what it started."""
    if at_once:
        os.kill(child, signal.SIGKILL)
    waited = os.waitpid(child, 0)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return waited


def run(job):
    """Forks a child for the job; its answer, or that it took too long."""
    answers, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answers)
        in_child(job, pipe)
    os.close(pipe)
    begun, limit = time.monotonic(), job["limit_s"]
    answered, _, _ = select.select([answers], [], [], limit)
    # Short enough to be written at once.
    answer = os.read(answers, 1 << 16) if answered else b""
    _, status = end(child, at_once=not answered)
    os.close(answers)
    seconds = {"job_seconds": time.monotonic() - begun}
    if answer:
        return json.loads(answer) | seconds
    if not answered:
        return {"error": f"took more than {limit:.0f} s"} | seconds
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "itself"
    return {"error": f"failed: ended by {how}"} | seconds


def main():
    if len(sys.argv) == 3:
        in_child(json.loads(sys.argv[1]), int(sys.argv[2]))
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
