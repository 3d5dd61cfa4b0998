"""Rules are measured on what the reference driver decodes."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import vllm_dynin
from vllm_dynin.kernels.step_table import Rule
from vllm_dynin.planning import make_plan
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.small_text import answer, as_request
from vllm_dynin.training_ext.tiny_text.tasks import held_out_examples

SHIPPED = Path(vllm_dynin.__file__).parent / "assets" / "tiny-text"
BLOCK, CANVAS = 8, 24


@pytest.fixture(scope="module")
def rules():
    path = Path(__file__).parents[3] / "benchmarks" / "unmask_rules.py"
    spec = importlib.util.spec_from_file_location("unmask_rules", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_one_token_a_step_is_the_reference_and_rules_need_fewer_forwards(rules):
    torch.set_num_threads(1)
    model = load_reference(SHIPPED, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    eos = model.config.vocabulary.eos
    examples = list(held_out_examples(seed=8, per_kind=1))[::2]  # each operation and length
    plans = [make_plan(as_request(one, tokenizer, CANVAS), model.config) for one in examples]

    def decode(rule, value, **options):
        return rules.decode(model, plans, rules.Setting(rule, value), block=BLOCK, **options)

    exact = decode(Rule.SCHEDULE, 1)
    assert len({len(plan.canvas.conditional.ids) for plan in plans}) > 1  # padded rows among them
    for asked, found in zip(examples, exact, strict=True):
        ends = found.ids.index(eos)
        options = DenoiseParams(block_length=BLOCK)
        expected = answer(model, tokenizer, asked, max_tokens=CANVAS, options=options)
        assert tokenizer.decode(found.ids[:ends]) == expected
        assert found.forwards == -(-(ends + 1) // BLOCK) * BLOCK  # the block of EOS is the last
    halved = decode(Rule.SCHEDULE, 2)
    assert [2 * one.forwards for one in halved] == [one.forwards for one in exact]
    for rule, value in ((Rule.THRESHOLD, 0.9), (Rule.FACTOR, 0.75), (Rule.FRECHET, 0.25)):
        fast = decode(rule, value)
        assert sum(one.forwards for one in fast) < sum(one.forwards for one in exact) / 1.5
    # A rule that is never satisfied decides one a step; one that always is, whole blocks.
    assert decode(Rule.THRESHOLD, 1.1) == exact
    assert {one.forwards for one in decode(Rule.ENTROPY, 1e4)} <= {1, 2, 3}
    last = decode(Rule.SCHEDULE, 1, eos_last=True)
    assert [one.forwards for one in last] == [one.forwards for one in exact]
