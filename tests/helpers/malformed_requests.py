"""Requests that must be refused: route, body, and words the message must hold.

The words are the value and the rule, so that a client can mend its request.
"""

from __future__ import annotations

from typing import Any

from helpers.tiny_checkpoint import tiny_config

COMPLETIONS, CHATS, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
VOCABULARY = tiny_config().vocabulary
NUM_ROWS = tiny_config().vocab_size

GOOD: dict[str, dict[str, Any]] = {
    "completions": {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0},
    "chat": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "What does the speaker say?"}],
        "max_tokens": 3,
        "temperature": 0,
    },
}

Entry = tuple[str, Any, list[str]]


def completion(*words: str, **changes: Any) -> Entry:
    return COMPLETIONS, GOOD["completions"] | changes, list(words)


def chat(*words: str, **changes: Any) -> Entry:
    return CHATS, GOOD["chat"] | changes, list(words)


def option(name: str, value: Any, *words: str, **changes: Any) -> Entry:
    """One of our own options."""
    return completion(f"dynin_{name}", *words, vllm_xargs={f"dynin_{name}": value}, **changes)


def without(key: str, *words: str) -> Entry:
    return COMPLETIONS, {k: v for k, v in GOOD["completions"].items() if k != key}, list(words)


def raw(body: bytes, *words: str, route: str = COMPLETIONS) -> Entry:
    return route, body, list(words)


OWN_OPTIONS: dict[str, Entry] = {
    "steps zero": option("steps", 0, "0", ">= 1"),
    "steps negative": option("steps", -3, "-3", ">= 1"),
    "steps fraction": option("steps", 2.5, "2.5", "int"),
    "steps word": option("steps", "many", "many", "int"),
    "steps huge": option("steps", 10**9, "1000000000", "<= 8192"),
    "steps list": option("steps", [4], "[4]", "int"),
    "block length zero": option("block_length", 0, "0", ">= 1"),
    "block length negative": option("block_length", -8, "-8", ">= 1"),
    "cfg negative": option("cfg_scale", -0.5, "-0.5", ">= 0"),
    "cfg huge": option("cfg_scale", 1e6, "1000000", "<= 100"),
    "cfg word": option("cfg_scale", "strong", "strong", "float"),
    "remasking unknown": option("remasking", "highest", "highest", "low_confidence", "random"),
    "parity unknown": option("parity", "exact", "exact", "default", "reference"),
    "task unknown": option("task", "sing", "sing", "t2t"),
    "task of another prompt": completion("t2t", "s2t", vllm_xargs={"dynin_task": "s2t"}),
    "stop_at_eos word": option("stop_at_eos", "maybe", "maybe", "bool"),
    "stop_at_eos against ignore_eos": option(
        "stop_at_eos", True, "ignore_eos", "leave one", ignore_eos=True
    ),
    "option misspelt": completion(
        "dynin_stepz", "did you mean dynin_steps?", vllm_xargs={"dynin_stepz": 4}
    ),
    "option without a name": completion("dynin_", "options are", vllm_xargs={"dynin_": 4}),
    "internal argument": completion("_dynin_plan", "internal", vllm_xargs={"_dynin_plan": "x"}),
    "two guidance scales": completion(
        "dynin_guidance_scale",
        "give one",
        vllm_xargs={"dynin_cfg_scale": 1.0, "dynin_guidance_scale": 1.0},
    ),
    "image option for text": option("resolution", 336, "336", "image"),
    "image schedule for text": option("noise_schedule", "cosine", "cosine", "image"),
    "width without height": option("width", 336, "dynin_height"),
    "speech option for text": option("max_duration", 2.0, "2.0", "speech"),
    "mixed option for text": option("text_tokens", 4, "4", "ti2ti"),
    "infilling without a mask": completion(
        "no target", "mask", vllm_xargs={"dynin_target_token_ids": [5, 6]}
    ),
    "infilling beyond the table": completion(
        "1000000", vllm_xargs={"dynin_target_token_ids": [VOCABULARY.mask, 10**6]}
    ),
    "guidance away from no token": completion(
        str(NUM_ROWS),
        vllm_xargs={"dynin_uncond_prompt_token_ids": [NUM_ROWS], "dynin_cfg_scale": 1},
    ),
    "guidance head without guidance": option("uncond_prompt_token_ids", [5], "guidance"),
    "nested argument": completion("vllm_xargs", vllm_xargs={"dynin_steps": {"a": 1}}),
    "arguments as a list": completion("vllm_xargs", vllm_xargs=["dynin_steps"]),
    "arguments as a string": completion("vllm_xargs", vllm_xargs="dynin_steps=4"),
    "guided request too long": completion(
        "623 rows", "guidance", vllm_xargs={"dynin_cfg_scale": 1.0}, max_tokens=300
    ),
}

UNSUPPORTED: dict[str, Entry] = {
    "json mode": chat("structured_outputs", "order", response_format={"type": "json_object"}),
    "json schema": chat(
        "structured_outputs",
        "order",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        },
    ),
    "regular expression": completion(
        "structured_outputs", "order", structured_outputs={"regex": "[ab]+"}
    ),
    "choices": completion("structured_outputs", structured_outputs={"choice": ["a", "b"]}),
    "required tool": chat(
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice="required",
    ),
    "presence penalty": completion("presence_penalty=0.5", "parallel", presence_penalty=0.5),
    "frequency penalty": completion("frequency_penalty=-1", "parallel", frequency_penalty=-1),
    "repetition penalty": completion("repetition_penalty=1.2", repetition_penalty=1.2),
    "logit bias": completion("logit_bias", "columns", logit_bias={"5": 2}),
    "bad words": completion("bad_words", bad_words=["the"]),
    "allowed tokens": completion("allowed_token_ids", allowed_token_ids=[5]),
    "min tokens": completion("min_tokens=2", "dynin_stop_at_eos", min_tokens=2),
    "min p": completion("min_p=0.1", min_p=0.1, temperature=1),
    "top p": completion("top_p=0.9", "temperature", top_p=0.9, temperature=1),
    "top k": completion("top_k=5", "temperature", top_k=5, temperature=1),
    "prompt logprobs": completion("prompt_logprobs", prompt_logprobs=1),
    "prompt logprobs without alternatives": completion("prompt_logprobs=0", prompt_logprobs=0),
    "echo with logprobs": completion("prompt_logprobs", echo=True, logprobs=1),
    "beam search": completion("beam", "parallel", use_beam_search=True, n=2),
    "beam search in chat": chat("beam", "parallel", use_beam_search=True, n=2),
    "suffix": completion("suffix", suffix="end"),
    "priority": completion("priority=5", "--scheduling-policy", priority=5),
    "prompt embeddings": completion("embed", prompt_embeds="AAAA"),
    "thinking budget": chat("thinking_token_budget", thinking_token_budget=8),
    "image for a text model": chat(
        "not a multimodal model",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
                ],
            }
        ],
    ),
}

VALUES: dict[str, Entry] = {
    "max_tokens zero": completion("max_tokens", "0", max_tokens=0),
    "max_tokens negative": completion("max_tokens", "-1", max_tokens=-1),
    "max_tokens huge": completion("max_tokens", "512", max_tokens=10**9),
    "max_tokens word": completion("max_tokens", max_tokens="ten"),
    "max_tokens fraction": completion("max_tokens", max_tokens=2.5),
    "max_tokens beyond the context": completion("max_tokens=511", "512", max_tokens=511),
    "max_tokens beyond the context of a chat": chat("max_tokens=500", "512", max_tokens=500),
    "temperature negative": completion("temperature", "-1", temperature=-1),
    "temperature word": completion("temperature", temperature="hot"),
    "temperature huge": completion("temperature", "[0, 2]", temperature=2.5),
    "temperature NaN": raw(
        b'{"model": "tiny", "prompt": [5], "max_tokens": 2, "temperature": NaN}', "temperature"
    ),
    "temperature infinite": raw(
        b'{"model": "tiny", "prompt": [5], "max_tokens": 2, "temperature": Infinity}',
        "temperature",
    ),
    "cfg NaN": raw(
        b'{"model": "tiny", "prompt": [5], "vllm_xargs": {"dynin_cfg_scale": NaN}}',
        "dynin_cfg_scale",
        "nan",
    ),
    "seed word": completion("seed", seed="abc"),
    "seed beyond 64 bits": completion("seed", seed=2**70),
    "n zero": completion("n", n=0, temperature=1),
    "n negative": completion("n", n=-2, temperature=1),
    "n huge": completion("n", n=10**7, temperature=1),
    "n greedy": completion("n", "greedy", n=2),
    "logprobs too many": completion("logprobs", "20", logprobs=21),
    "logprobs negative": completion("logprobs", logprobs=-5),
    "logprobs word": completion("logprobs", logprobs="all"),
    "top_logprobs alone": chat("logprobs", top_logprobs=3),
    "top_logprobs too many": chat("logprobs", "20", logprobs=True, top_logprobs=50),
    "stop empty": completion("stop", stop=[""]),
    "stop number": completion("stop", stop=5),
    "stop tokens words": completion("stop_token_ids", stop_token_ids=["a"]),
    "model unknown": completion("other", model="other"),
    "truncation negative": completion("truncate_prompt_tokens", truncate_prompt_tokens=-7),
    "cache salt empty": completion("cache_salt", cache_salt=""),
}

PROMPTS: dict[str, Entry] = {
    "prompt missing": without("prompt", "prompt"),
    "prompt null": completion("prompt", prompt=None),
    "prompt empty string": completion("prompt", prompt=""),
    "prompt empty list": completion("prompt", prompt=[]),
    "prompt of empty lists": completion(prompt=[[]]),
    "prompt id negative": completion("-1", prompt=[5, -1]),
    "prompt id beyond the table": completion(str(NUM_ROWS), prompt=[5, NUM_ROWS]),
    "prompt id beyond 32 bits": completion(str(2**40), prompt=[2**40]),
    "prompt id beyond 64 bits": completion(prompt=[2**70]),
    "prompt id a fraction": completion("prompt", prompt=[1.5]),
    "prompt of mixed types": completion("prompt", prompt=[1, "a"]),
    "prompt nested too deep": completion("prompt", prompt=[[[1]]]),
    "prompt an object": completion("prompt", prompt={"text": "x"}),
    "prompt with the mask id": completion(
        str(VOCABULARY.mask), "mask", prompt=[5, VOCABULARY.mask]
    ),
    "prompt with the mask as text": completion("mask", prompt="fill <|mdm_mask|> in"),
    "prompt too long": completion("512", prompt=[5] * 600),
    "prompt that leaves no room": completion("max_tokens", prompt=[5] * 512),
    "prompt of a task without decoder": completion("t2v", prompt=[VOCABULARY.t2v, 5]),
    "image prompt for a text model": completion(
        "no image codes", "t2i", prompt=[VOCABULARY.t2i, 5, VOCABULARY.soi]
    ),
    "one bad prompt among good ones": completion("-1", prompt=[[5], [-1]]),
    "messages missing": (CHATS, {"model": "tiny"}, ["messages"]),
    "messages empty": chat(messages=[]),
    "message without a role": chat("role", messages=[{"content": "x"}]),
    "message content a number": chat("content", messages=[{"role": "user", "content": 5}]),
    "message part of unknown type": chat(
        "smell", messages=[{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]
    ),
    "message with the mask as text": chat(
        "mask", messages=[{"role": "user", "content": "<|mdm_mask|>"}]
    ),
    "chat too long": chat("512", messages=[{"role": "user", "content": "one two " * 600}]),
    "both ways to end a chat": chat(
        "continue_final_message", add_generation_prompt=True, continue_final_message=True
    ),
    "a chat template of one's own": chat("chat template", chat_template="{{ 1 }}"),
}

BODIES: dict[str, Entry] = {
    "no body": raw(b""),
    "no JSON": raw(b"prompt=hello", "JSON"),
    "JSON cut off": raw(b'{"model": "tiny", "prompt": [5', "JSON"),
    "JSON list": raw(b"[1, 2]"),
    "JSON string": raw(b'"hello"'),
    "not UTF-8": raw(b'{"model": "tiny", "prompt": "\xff\xfe"}'),
    "embeddings": ("/v1/embeddings", {"model": "tiny", "input": "x"}, []),
    "pooling": ("/pooling", {"model": "tiny", "input": "x"}, []),
    "score": ("/score", {"model": "tiny", "text_1": "x", "text_2": "y"}, []),
    "rerank": ("/rerank", {"model": "tiny", "query": "x", "documents": ["y"]}, []),
    "classify": ("/classify", {"model": "tiny", "input": "x"}, []),
    "responses with JSON schema": (
        RESPONSES,
        {
            "model": "tiny",
            "input": "x",
            "max_output_tokens": 3,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        },
        ["structured_outputs"],
    ),
    "responses with top_p": (
        RESPONSES,
        {"model": "tiny", "input": "x", "max_output_tokens": 3, "top_p": 0.5},
        ["top_p=0.5"],
    ),
    "responses continuing another": (
        RESPONSES,
        {"model": "tiny", "input": "x", "previous_response_id": "resp_none"},
        [],
    ),
}

MALFORMED: dict[str, Entry] = OWN_OPTIONS | UNSUPPORTED | VALUES | PROMPTS | BODIES
