"""Engines as users start them: with profiling, warm-up, a real vocabulary and no sizes given.

Used by the tests of `tests/engine/test_starts.py` and, for the whole matrix, by
`packaging/compat/starts.py`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from vllm import LLM
from vllm.v1.outputs import LogprobsTensors

from helpers.request_mix import Case, random_prompt
from helpers.tiny_checkpoint import random_tensors, tiny_config
from vllm_dynin import checkpoint
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.sampling.params import DenoiseParams

WIDE = 72_000
"""Rows of a vocabulary beyond 65,536: logits of vLLM's 1,024 dummy rows are over our tile."""

MAX_MODEL_LEN = 512
STARTED: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": MAX_MODEL_LEN,
    "gpu_memory_utilization": 0.2,  # of the machine's memory; the KV cache takes what it can use
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
}
"""What every start has in common; neither `enforce_eager` nor `max_num_seqs` nor a KV cache."""

COMPILED: dict[str, Any] = {"compilation_config": {"mode": 3}}
EAGER: dict[str, Any] = {"enforce_eager": True}


def wide_checkpoint(folder: Path, num_rows: int = WIDE) -> Path:
    """A text checkpoint without a tokenizer whose table has `num_rows` rows."""
    config = tiny_config()
    wide = LLaDAConfig(**{**config.to_dict(), "text_vocab_size": num_rows, "vocab_size": num_rows})
    checkpoint.save_checkpoint(folder, wide, random_tensors(wide))
    return folder


def questions(config: LLaDAConfig) -> list[Case]:
    """A greedy text, a sampled one, and a guided one, of lengths of their own."""
    rng = random.Random(3)
    asked = ((0.0, None, 24), (1.0, None, 17), (0.0, 1.5, 12))
    return [
        Case(
            random_prompt(rng, config, 11 + 7 * number),
            DenoiseParams(block_length=8, cfg_scale=scale).to_sampling_params(
                max_tokens=length, temperature=temperature, seed=number, detokenize=False
            ),
        )
        for number, (temperature, scale, length) in enumerate(asked)
    ]


def runner_of(llm: LLM) -> Any:
    """The model runner of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def warm_up(llm: LLM) -> None:
    """VLLM's warm-up of its kernels, which the CPU worker of 0.32 leaves out and a GPU's runs.

    One function is computed by PyTorch: Triton was imported before its interpreter was switched on,
    and so cannot run reductions in this process. It gets what it would get, sizes included.
    """
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    with mock.patch("vllm.v1.worker.gpu.sample.prompt_logprob.compute_topk_scores", _topk_scores):
        warmup_kernels(worker.model_runner, worker.execute_model, worker.sample_tokens)


def _topk_scores(
    logits: Tensor, num_logprobs: int, sampled_token_ids: Tensor, *args: Any, **kwargs: Any
) -> LogprobsTensors:
    top = logits.topk(num_logprobs).indices
    ids = torch.cat((sampled_token_ids.unsqueeze(-1), top), dim=1)  # of as many rows
    logprobs = logits.float().log_softmax(-1).gather(-1, ids)
    return LogprobsTensors(ids, logprobs, torch.zeros(len(ids), dtype=torch.int64))
