"""How far a quantised checkpoint agrees with the one it was made from.

    python benchmarks/quantized_agreement.py CHECKPOINT QUANTISED [--per-kind 60]

Both answer the held-out prompts of the small text model through the engine, at temperature 0.
Prints how many answers are right with each, how many are the same to the letter, and the share of
words that agree place by place.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def answers(folder: Path, per_kind: int) -> list[tuple[bool, str]]:
    from vllm import LLM

    import vllm_dynin as dynin
    from vllm_dynin.training_ext.tiny_text.tasks import held_out_examples

    examples = list(held_out_examples(seed=1, per_kind=per_kind))
    llm = LLM(
        str(folder),
        max_model_len=512,
        max_num_seqs=32,
        block_size=32,
        kv_cache_memory_bytes=1 << 28,
    )
    requests = [dynin.Chat(example.messages, max_tokens=32) for example in examples]
    results = dynin.generate(llm, requests)
    return [
        (result.text == example.answer, result.text)
        for result, example in zip(results, examples, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("quantised", type=Path)
    parser.add_argument("--per-kind", type=int, default=60, help="prompts of each of three kinds")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print("ANSWERS", json.dumps(answers(given.checkpoint, given.per_kind)))
        return
    both = []
    for folder in (given.checkpoint, given.quantised):  # an engine each, in a process of its own
        command = [sys.executable, __file__, str(folder), str(folder), "--only"]
        done = subprocess.run(
            [*command, "--per-kind", str(given.per_kind)],
            capture_output=True,
            text=True,
            check=True,
        )
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
        both.append(json.loads(line.removeprefix("ANSWERS ")))
    first, second = both
    pairs = [(a[1], b[1]) for a, b in zip(first, second, strict=True)]
    words = [pair for a, b in pairs for pair in zip(a.split(), b.split(), strict=False)]
    print(f"prompts {len(pairs)}")
    print(f"right: {sum(a[0] for a in first)}, quantised {sum(b[0] for b in second)}")
    print(f"same answer: {sum(a == b for a, b in pairs)}")
    print(f"same word, place by place: {sum(a == b for a, b in words) / len(words):.3f}")


if __name__ == "__main__":
    main()
