"""Start an engine as a user does, ask every direction, tell memory and times (first-gpu-run.md).

    python packaging/first_start.py [--size 8b|tiny] [ENGINE ARGUMENTS AS JSON]

`8b` has the published sizes and random weights (vLLM's --load-format dummy: nothing is read);
`tiny` is for a machine without a GPU. The codecs have the published codebooks and, with `8b`, the
published sizes. Answers mean nothing; times do.
Each line opens with a word to look for; the last is `DONE`, or `FAILED` with exit status 1 where a
direction did not answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def write(folder: Path, size: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint, and what the engine is told beside its folder."""
    from helpers.omni_checkpoint import NUM_ROWS, full_tokenizer, write_omni_checkpoint
    from helpers.random_codecs import write_random_codecs

    from vllm_dynin.config import DyninOmniConfig

    write_omni_checkpoint(folder)
    write_random_codecs(folder, published_size=size == "8b")
    if size == "tiny":
        return folder, {"dtype": "float32", "max_model_len": 2560}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    config = DyninOmniConfig(vocab_size=NUM_ROWS, architectures=["DyninOmniModelLM"])
    config.save_pretrained(folder)
    full_tokenizer().save_pretrained(folder)
    return folder, {"load_format": "dummy"}


def requests(size: str) -> dict[str, Any]:
    """One request of each direction, on media that are made here."""
    from PIL import Image

    from vllm_dynin.requests import (
        EditImage,
        ImageToText,
        SpeechToSpeech,
        SpeechToText,
        TextToImage,
        TextToSpeech,
        TextToText,
        VideoToText,
    )
    from vllm_dynin.sampling.params import DenoiseParams

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))
    clip = rng.integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    sound = (np.sin(np.arange(16_000) * 0.2).astype(np.float32) * 0.3, 16_000)
    words = 64 if size == "8b" else 8
    few = DenoiseParams(steps=16)
    return {
        "text → text": TextToText("Reverse these words: cat tree moon", max_tokens=words),
        "image → text": ImageToText(picture, "What is it?", max_tokens=words),
        "video → text": VideoToText(clip, "What happens?", max_tokens=words),
        "speech → text": SpeechToText(sound, max_tokens=words),
        "text → image": TextToImage("a cat on a red chair", options=few, seed=1),
        "image → image": EditImage(picture, "as a drawing", options=few, seed=1),
        "text → speech": TextToSpeech("Masked diffusion speaks.", max_tokens=64, seed=1),
        "speech → speech": SpeechToSpeech(sound, max_tokens=64, seed=1),
    }


def memory() -> str:
    """What the device has and what is left."""
    if not torch.cuda.is_available():
        return "MEMORY no GPU"
    free, total = (number / (1 << 30) for number in torch.cuda.mem_get_info())
    taken = torch.cuda.max_memory_allocated() / (1 << 30)
    return f"MEMORY {free:.1f} of {total:.1f} GiB free, most that torch held: {taken:.1f} GiB"


def ask(llm: Any, name: str, request: Any) -> None:
    """Twice: the first call compiles kernels and loads codecs."""
    import vllm_dynin as dynin

    for attempt in ("first", "again"):
        started = time.perf_counter()
        (answer,) = dynin.generate(llm, [request])
        seconds = time.perf_counter() - started
        steps = answer.report.steps
        each = 1e3 * (answer.report.run_seconds - answer.report.prompt_seconds) / max(steps, 1)
        print(
            f"ANSWER {name} ({attempt}): {seconds:.2f} s, {steps} steps of {each:.1f} ms",
            flush=True,
        )


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("8b", "tiny"), default="8b")
    parser.add_argument("engine", nargs="?", default="{}", help="arguments of LLM, JSON")
    arguments = parser.parse_args()
    from vllm import LLM

    if arguments.size == "8b" and not torch.cuda.is_available():
        print("SKIPPED no CUDA device on this machine; --size tiny runs on a CPU")
        return 0
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, options = write(Path(temporary) / "model", arguments.size)
        options |= json.loads(arguments.engine)
        started = time.perf_counter()
        llm = LLM(str(folder), **options)
        config = llm.llm_engine.vllm_config
        print(f"STARTED in {time.perf_counter() - started:.1f} s")
        print(
            f"SIZES {config.scheduler_config.max_num_seqs} requests, "
            f"{config.scheduler_config.max_num_batched_tokens} rows a step, "
            f"{config.cache_config.num_gpu_blocks} KV blocks of {config.cache_config.block_size}, "
            f"{config.compilation_config.mode.name}, "
            f"{config.compilation_config.cudagraph_mode.name}"
        )
        print(memory(), flush=True)
        for name, request in requests(arguments.size).items():
            try:
                ask(llm, name, request)
            except Exception:
                traceback.print_exc()
                print(f"NO ANSWER {name}")
                failed.append(name)
        print(memory())
    print(f"FAILED {', '.join(failed)}" if failed else "DONE")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
