"""`AsyncLLM` with two tensor-parallel ranks: parity, streaming by block, clients that go away."""

import asyncio
import random
from itertools import accumulate

import pytest
from helpers.engines import metric, started
from helpers.request_mix import Case, expected_tokens, mixed_cases, random_prompt
from helpers.tiny_checkpoint import tiny_config, write_checkpoint
from vllm.sampling_params import RequestOutputKind

from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.sampling.params import DenoiseParams


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four heads, so that each rank has two; media ids behind the text."""
    config = tiny_config(DyninOmniConfig, num_heads=4)
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "dynin", config)


@pytest.fixture(scope="module")
def reference(folder):
    return load_reference(folder)


@pytest.fixture(scope="module")
def engine(loop, folder):
    options = {"num_gpu_blocks_override": 12, "max_model_len": 288}
    with started(loop, folder, "0|1", tensor_parallel_size=2, **options) as engine:
        yield engine


async def stream(engine, name, case, kind=RequestOutputKind.DELTA, delay=0.0):
    """All outputs of one request."""
    await asyncio.sleep(delay)
    params = case.params.clone()
    params.output_kind = kind
    return [output async for output in engine.generate(case.prompt, params, name)]


def tokens_of(outputs):
    return [token for output in outputs for token in output.outputs[0].token_ids]


def block_case(reference, seed, **own):
    options = DenoiseParams(**({"block_length": 8} | own))
    params = options.to_sampling_params(max_tokens=27, temperature=0, ignore_eos=True)
    return Case(random_prompt(random.Random(seed), reference.config, 20), params)


def test_two_ranks_answer_as_the_reference(loop, engine, reference):
    """All ranks take the same decisions, preempted requests and late arrivals included."""
    cases = mixed_cases(32, reference.config, seed=4)

    async def run():
        async def preempt():
            for _ in range(10):
                await asyncio.sleep(0.1)
                await engine.reset_prefix_cache(reset_running_requests=True)

        names = range(len(cases))
        found = await asyncio.gather(
            *(stream(engine, f"mix-{name}", cases[name], delay=name / 50) for name in names),
            preempt(),
        )
        return found[:-1]

    found = [tokens_of(outputs) for outputs in loop.run_until_complete(run())]
    assert found == [expected_tokens(reference, case) for case in cases]
    assert metric("vllm:num_preemptions") > 0


def test_deltas_are_blocks_and_add_up(loop, engine, reference):
    case = block_case(reference, 1)
    outputs = loop.run_until_complete(stream(engine, "delta", case))
    sizes = [len(output.outputs[0].token_ids) for output in outputs]
    # vLLM joins deltas that a reader has not taken yet: a slow one sees fewer, cut as these are.
    assert set(accumulate(sizes)) - {0} <= {8, 16, 24, 27}
    assert tokens_of(outputs) == expected_tokens(reference, case)
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    whole = loop.run_until_complete(stream(engine, "whole", case, RequestOutputKind.FINAL_ONLY))
    text = "".join(output.outputs[0].text for output in outputs)
    assert [text] == [output.outputs[0].text for output in whole]


def test_cumulative_outputs_only_grow(loop, engine, reference):
    case = block_case(reference, 2, cfg_scale=1.0)
    outputs = loop.run_until_complete(
        stream(engine, "cumulative", case, RequestOutputKind.CUMULATIVE)
    )
    seen = []
    for output in outputs:
        tokens = list(output.outputs[0].token_ids)
        assert tokens[: len(seen)] == seen
        seen = tokens
    assert seen == expected_tokens(reference, case)


@pytest.mark.parametrize("leaves", ["close", "cancel", "abort"])
def test_clients_that_go_away(loop, engine, reference, leaves):
    """Their blocks come free, and the others' answers are what they would have been."""
    leaving, staying = block_case(reference, 3, block_length=1), block_case(reference, 4)

    async def leave():
        params = leaving.params.clone()
        params.output_kind = RequestOutputKind.DELTA
        generator = engine.generate(leaving.prompt, params, f"leaving-{leaves}")
        async for output in generator:
            assert not output.finished
            if leaves == "abort":
                await engine.abort(f"leaving-{leaves}")
            break
        if leaves == "close":
            await generator.aclose()

    async def run():
        task = asyncio.create_task(leave())
        if leaves == "cancel":
            await asyncio.sleep(0.1)
            task.cancel()
        outputs = await stream(engine, f"staying-{leaves}", staying)
        await asyncio.gather(task, return_exceptions=True)
        again = await stream(engine, f"again-{leaves}", staying)
        return outputs, again

    for outputs in loop.run_until_complete(run()):
        assert tokens_of(outputs) == expected_tokens(reference, staying)
    assert metric("vllm:kv_cache_usage_perc") == 0
    assert metric("vllm:num_requests_running") == 0
    assert metric("vllm:num_requests_waiting") == 0
