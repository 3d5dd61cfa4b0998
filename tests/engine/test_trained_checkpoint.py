"""What a run leaves is what vLLM serves: the answers it was trained on come out of the engine."""

import torch
from helpers.engines import start_llm
from helpers.request_mix import expected_tokens, generate, mixed_cases
from helpers.tiny_tokenizer import make_tokenizer
from helpers.training_runs import record, small_model, small_trainer

import vllm_dynin as dynin
from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext.trainer import TrainConfig
from vllm_dynin.training_ext.trainer.export import Companions
from vllm_dynin.training_ext.trainer.run import RunOptions, run


def test_a_trained_model_answers_through_the_engine(tmp_path):
    start = tmp_path / "start"
    model = small_model()
    checkpoint.save_checkpoint(start, model.config, model.state_dict(), make_tokenizer())
    config = TrainConfig(num_steps=150, learning_rate=3e-3, num_warmup_steps=5, weight_decay=0.0)
    tasks = (Task.TEXT_TO_TEXT,)
    trainer = small_trainer(config, tasks=tasks, num_records=3, rows=12)
    trainer.load_weights(start)
    final = run(trainer, tmp_path / "run", RunOptions(), companions=Companions(start))

    records = [record(Task.TEXT_TO_TEXT, number) for number in range(3)]
    requests = [dynin.TextToText(one.text, max_tokens=16) for one in records]
    reference = load_reference(final, dtype=torch.float32)  # as the engine below
    cases = mixed_cases(6, reference.config, seed=3, max_prompt=30, max_tokens=16)
    with start_llm(final) as llm:
        answers = dynin.generate(llm, requests)
        assert [answer.text for answer in answers] == [one.answer for one in records]
        assert generate(llm, cases) == [expected_tokens(reference, case) for case in cases]
