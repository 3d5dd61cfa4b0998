"""How an engine is configured: what is set, what is refused, and that registering is idempotent."""

import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers.engines import DEFAULTS, environment
from vllm import EngineArgs, ModelRegistry
from vllm.config import CompilationMode, CUDAGraphMode, VllmConfig

import vllm_dynin
from vllm_dynin import compat
from vllm_dynin.model_executor.admission import Limits
from vllm_dynin.model_executor.engine_config import SCHEDULER


def configure(folder, **options) -> VllmConfig:
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        return EngineArgs(model=str(folder), **(DEFAULTS | options)).create_engine_config()


def test_what_is_set(checkpoint_folder):
    config = configure(checkpoint_folder)
    assert config.scheduler_config.scheduler_cls == SCHEDULER
    assert config.scheduler_config.async_scheduling is False
    assert config.scheduler_config.enable_chunked_prefill is False
    assert config.cache_config.enable_prefix_caching is False
    assert config.diffusion_config.canvas_length == 1  # vLLM's; the widest canvas is ours
    assert Limits.of(config).max_slots == 512
    # With it, vLLM would refuse `temperature` and `seed` (docs/engine.md).
    assert config.model_config.is_diffusion is False
    assert not hasattr(config.model_config.hf_config, "canvas_length")


@pytest.mark.parametrize(
    "wish",
    [{"enable_prefix_caching": True}, {"enable_chunked_prefill": True}, {"async_scheduling": True}],
)
def test_accelerations_that_cannot_be_are_off(checkpoint_folder, wish):
    config = configure(checkpoint_folder, **wish)
    assert config.cache_config.enable_prefix_caching is False
    assert config.scheduler_config.enable_chunked_prefill is False
    assert config.scheduler_config.async_scheduling is False


def test_the_budget_holds_the_longest_request(checkpoint_folder):
    config = configure(checkpoint_folder, max_model_len=512, max_num_batched_tokens=300)
    assert config.scheduler_config.max_num_batched_tokens == 512


def test_rows_of_the_table_come_from_the_weights(checkpoint_folder):
    config = configure(checkpoint_folder, hf_overrides={"vocab_size": 99})
    assert config.model_config.get_vocab_size() == 640


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism is not implemented; use --tensor"),
        ({"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "context parallelism"),
        ({"enable_lora": True}, "LoRA adapters are not implemented; merge them"),
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds is not supported"),
        ({"logprobs_mode": "raw_logits"}, "--logprobs-mode raw_logits is not implemented; use raw"),
        ({"logprobs_mode": "processed_logprobs"}, "--logprobs-mode processed_logprobs"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding has no meaning without a reading order",
        ),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "KV transfer is not implemented",
        ),
        ({"watermark_config": {"key": 7}}, "leave --watermark-config out"),
        (
            {"logits_processors": ["helpers.engines:DEFAULTS"]},
            "custom logits processors are not supported",
        ),
        (
            {"long_prefill_token_threshold": 64},
            "--long-prefill-token-threshold would cut a denoising step",
        ),
        ({"attention_backend": "FLASHMLA"}, "FLASHMLA cannot attend in both directions; use one"),
        (
            {"attention_config": {"backend_per_kind": {"full_attention": "FLASHINFER"}}},
            "FLASHINFER cannot attend in both directions",
        ),
        *(
            (
                {"compilation_config": {"cudagraph_mode": mode}, "enforce_eager": False},
                f"cudagraph_mode {mode} replays whole forwards",
            )
            for mode in ("FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
        ),
        (
            {"compilation_config": {"mode": 1}, "enforce_eager": False},
            "compilation mode 1 .* is not supported; use 0",
        ),
    ],
)
def test_flags_that_are_refused(checkpoint_folder, options, message):
    with pytest.raises(ValueError, match=message):
        configure(checkpoint_folder, **options)


def test_the_v1_runner_is_refused(checkpoint_folder):
    with (
        environment(VLLM_USE_V2_MODEL_RUNNER="0", VLLM_ENABLE_V1_MULTIPROCESSING="0"),
        pytest.raises(
            ValueError, match=r"the V1 model runner .* has no hooks for masked diffusion"
        ),
    ):
        EngineArgs(model=str(checkpoint_folder), **DEFAULTS).create_engine_config()


def test_graphs_of_whole_forwards_are_refused_from_the_environment_too(checkpoint_folder):
    with (
        environment(VLLM_USE_BREAKABLE_CUDAGRAPH="1"),
        pytest.raises(ValueError, match="VLLM_USE_BREAKABLE_CUDAGRAPH=1 replays whole forwards"),
    ):
        configure(checkpoint_folder)


def test_batch_invariance_comes_without_those_graphs(checkpoint_folder, monkeypatch):
    """VLLM turns them on with it where the variable is not set."""
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "")
    monkeypatch.delenv("VLLM_USE_BREAKABLE_CUDAGRAPH")
    with environment(VLLM_BATCH_INVARIANT="1"):
        configure(checkpoint_folder)
    assert os.environ["VLLM_USE_BREAKABLE_CUDAGRAPH"] == "0"


def test_layers_run_by_fused_operations_where_nothing_is_said(checkpoint_folder):
    config = configure(checkpoint_folder, enforce_eager=False)
    compilation = config.compilation_config
    assert compilation.mode == CompilationMode.NONE
    assert "all" in compilation.custom_ops and "none" not in compilation.custom_ops
    assert compilation.cudagraph_mode == CUDAGraphMode.NONE
    assert config.attention_config.use_non_causal
    assert config.kernel_config.enable_jit_warmup


@pytest.mark.parametrize(
    ("options", "slots"), [({}, 512), ({"diffusion_config": {"canvas_length": 100}}, 100)]
)
def test_the_widest_canvas_is_apart_from_the_draft_tokens(checkpoint_folder, options, slots):
    config = configure(checkpoint_folder, **options)
    assert config.num_speculative_tokens == 1
    assert Limits.of(config).max_slots == slots
    assert Limits.of(pickle.loads(pickle.dumps(config))).max_slots == slots


def test_an_order_that_does_not_exist_is_refused(checkpoint_folder):
    with (
        environment(DYNIN_ORDER="longest"),
        pytest.raises(ValueError, match="DYNIN_ORDER='longest'; set it to fcfs"),
    ):
        configure(checkpoint_folder)


def test_two_orders_at_once_are_refused(checkpoint_folder):
    with (
        environment(DYNIN_ORDER="short"),
        pytest.raises(ValueError, match="leave one of them out"),
    ):
        configure(checkpoint_folder, scheduling_policy="priority")


def test_rows_of_the_kv_cache_are_those_of_one_engine(checkpoint_folder):
    """The frontend of several engines adds their blocks up; a request lies in one of them."""
    config = configure(checkpoint_folder)
    config.cache_config.num_gpu_blocks = 4 * 9
    assert Limits.of(config).kv_rows == 35 * 32
    config.parallel_config.data_parallel_size = 4
    assert Limits.of(config).kv_rows == 8 * 32


def test_all_problems_are_told_at_once(checkpoint_folder):
    with pytest.raises(ValueError, match="LoRA") as caught:
        configure(checkpoint_folder, enable_lora=True, enable_prompt_embeds=True)
    assert "--enable-prompt-embeds" in str(caught.value)


def test_registering_twice_changes_nothing():
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.v1.engine.input_processor import InputProcessor

    vllm_dynin.register()
    hooks = (
        InputProcessor.process_inputs,
        InputProcessor.resolve_watermarking,
        ChatCompletionRequest.to_sampling_params,
    )
    names = sorted(ModelRegistry.get_supported_archs())
    vllm_dynin.register()
    assert hooks == (
        InputProcessor.process_inputs,
        InputProcessor.resolve_watermarking,
        ChatCompletionRequest.to_sampling_params,
    )
    assert names == sorted(ModelRegistry.get_supported_archs())
    assert set(vllm_dynin.ARCHITECTURES) <= set(names)


@pytest.mark.parametrize(
    ("found", "is_supported"),
    [
        ("0.31.2", False),
        ("0.32.0", True),
        ("0.32.0+cpu", True),
        ("0.32.1.dev3", True),
        ("0.33.0rc1", True),
        ("0.33.5", True),
        ("0.34.0rc1", False),
        ("0.34.0", False),
        ("1.0", False),
    ],
)
def test_versions(monkeypatch, found, is_supported):
    monkeypatch.setattr(compat, "version", lambda name: found)
    if is_supported:
        compat.check_vllm_version()
    else:
        with pytest.raises(RuntimeError, match=rf"vllm {found} is installed; .* install a vllm in"):
            compat.check_vllm_version()


def test_other_models_are_not_touched():
    """The plugin is loaded for every model vLLM serves; ours are told by their config class."""
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins();"
        "from types import SimpleNamespace as N;"
        "from vllm_dynin.compat import _is_ours; from transformers import LlamaConfig;"
        "from vllm_dynin.config import LLaDAConfig;"
        "ask = lambda c: _is_ours(N(vllm_config=N(model_config=N(hf_config=c))));"
        "assert not ask(LlamaConfig()) and ask(LLaDAConfig())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_notes_of_media_are_dropped_where_vllm_keeps_them():
    """0.33 would look an index up in a list that our scheduler has emptied."""
    newer = SimpleNamespace(_pending_encoder_input_ids={"a": {0}, "b": {0, 1}})
    compat.forget_encoder_inputs(newer, "a")
    compat.forget_encoder_inputs(newer, "unknown")
    assert newer._pending_encoder_input_ids == {"b": {0, 1}}
    compat.forget_encoder_inputs(SimpleNamespace(), "a")  # 0.32
