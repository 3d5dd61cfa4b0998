"""Fine-tuning in one command: from a checkpoint and a file to a stage with sane settings.

What a person has to say is the checkpoint and the data. Steps come from epochs, warm-up from steps,
the adapter of the data from their columns, precision and passes from the machine. Every setting can
be changed by name, as those of the recipe's stages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.templates import DIRECTIONS, DoesNotFit
from vllm_dynin.processors.text_tokenizer import load_tokenizer
from vllm_dynin.tokens import Modality
from vllm_dynin.training_ext.data.adapters import ADAPTERS
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.encode import Encoder
from vllm_dynin.training_ext.data.sources import (
    Measure,
    RecordTable,
    SourceSpec,
    open_records,
)
from vllm_dynin.training_ext.data.stage import sample_length
from vllm_dynin.training_ext.data.tables import open_table
from vllm_dynin.training_ext.data.thoughts import check_switch
from vllm_dynin.training_ext.data.token_files import INDEX, TokenIndex
from vllm_dynin.training_ext.directions import TRAINED, objectives
from vllm_dynin.training_ext.dry_run import num_parameters
from vllm_dynin.training_ext.records import SamplePolicy, sample_policies
from vllm_dynin.training_ext.stages.config import StageConfig, StageTask
from vllm_dynin.training_ext.trainer.config import TrainConfig

_LARGE = 10**9
"""Parameters from which on blocks are recomputed and a pass takes few positions."""
_PASS_POSITIONS = 8192
_MAX_FILLER = 256
_NUM_LOOKED_AT = 20
_NUM_SURVEYED = 300


@dataclass(frozen=True, kw_only=True)
class SftOptions:
    """What a person may say besides checkpoint and data.

    Args:
        epochs: times every row is seen, about.
        batch: rows of a step, over all processes.
        max_length: positions of a row with a text answer.
        overflow: what happens to a longer one: `refuse` filters it out, `cut` shortens its answer.
        rank: of the adapters; None trains all weights.
        thinking: the switch of chat answers, see `data.thoughts`.
        adapter: what the columns mean; None finds it from their names.
        task: the direction; None finds it from the rows.

    Raises:
        ValueError: a number is out of range, or the adapter is unknown.
    """

    epochs: float = 3.0
    batch: int = 32
    max_length: int = 2048
    overflow: str = "refuse"
    rank: int | None = 16
    thinking: bool | None = None
    adapter: str | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "max_length"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.adapter is not None and self.adapter not in ADAPTERS:
            raise ValueError(
                f"adapter {self.adapter!r} is unknown; known are {', '.join(ADAPTERS)}"
            )


def sft_data(file: Path, options: SftOptions) -> dict[str, Any]:
    """The data of a run: as a file of `--data` names them, or one set as it is.

    Args:
        file: JSON with `tasks`, a folder of token files, or rows in any format `open_table` takes.
        options: adapter, direction and switch.

    Returns:
        `{"tasks": {direction: {"sources": […]}}}`.

    Raises:
        ValueError: nothing is there, or the columns do not say what they mean.
    """
    if file.suffix == ".json":
        from vllm_dynin.training_ext.trainer.stage_run import read_data

        return read_data(file)
    if (file / INDEX).is_file():
        counts = [part for part in TokenIndex.read(file).num_records if part]
        tasks = sorted({task for part in counts for task in part})
        if not tasks:
            raise ValueError(f"{file} is not finished; run its `vllm-dynin tokenize` to the end")
        return {"tasks": {task: {"sources": [{"path": str(file)}]} for task in tasks}}
    if not file.exists():
        raise ValueError(f"{file} is not there; give a file of rows, or a folder of token files")
    fields = _first_row(file)
    task = options.task or Task(fields.get("task") or Task.TEXT_TO_TEXT)
    source: dict[str, Any] = {"path": str(file), "adapter": options.adapter or guess(fields, task)}
    if options.thinking is not None:
        source["thinking"] = options.thinking
    return {"tasks": {task.value: {"sources": [source]}}}


def _first_row(file: Path) -> Mapping[str, Any]:
    table = open_table(str(file))
    for index in range(min(len(table), _NUM_LOOKED_AT)):
        try:
            return table[index].fields
        except BadSample:
            continue
    raise ValueError(f"{file} has no row that can be read")


def guess(fields: Mapping[str, Any], task: Task) -> str:
    """The adapter for a row's columns.

    Raises:
        ValueError: none reads such columns.
    """
    names = {name for name, value in fields.items() if value is not None}
    if "task" in names or {"text", "answer"} <= names:
        return "record"
    if names & {"messages", "conversations", "turns"}:
        return "dialogue"
    if task is Task.TEXT_TO_TEXT:
        questions = {"prompt", "question", "instruction", "problem", "query"}
        answers = {"answer", "response", "output", "solution", "completion"}
        if names & questions and names & answers:
            return "pair"
    raise ValueError(
        f"the columns {', '.join(sorted(names))} say no question and answer; rename them "
        "(prompt and response, or messages), or say what they mean with --adapter "
        f"({', '.join(ADAPTERS)})"
    )


def count_rows(data: Mapping[str, Any]) -> dict[Task, int]:
    """Rows of each direction's sources.

    Raises:
        ValueError: a source is missing, empty, or for another direction.
    """
    return {
        Task(name): sum(
            len(open_records(SourceSpec(**source), Task(name), Encoder()))
            for source in mix["sources"]
        )
        for name, mix in data["tasks"].items()
    }


def sft_stage(
    config: LLaDAConfig,
    rows: Mapping[Task, int],
    options: SftOptions,
    *,
    world_size: int = 1,
    has_gpu: bool = False,
) -> StageConfig:
    """The settings of a fine-tuning run.

    Args:
        config: of the checkpoint.
        rows: of each direction.
        options: what was said.
        world_size: processes.
        has_gpu: whether there is one.

    Raises:
        ValueError: there is no row, or a direction has no objective.
    """
    if unknown := [task.value for task in rows if task not in TRAINED]:
        raise ValueError(f"{', '.join(unknown)} cannot be trained")
    total = sum(rows.values())
    if not total:
        raise ValueError("the data have no rows")
    batch = math.ceil(min(options.batch, total) / world_size) * world_size
    num_steps = max(1, math.ceil(total * options.epochs / batch))
    is_large = num_parameters(config)["total"] >= _LARGE
    own = batch // world_size
    in_a_pass = max(1, _PASS_POSITIONS // options.max_length) if is_large else own
    is_whole = options.rank is None
    train = TrainConfig(
        num_steps=num_steps,
        learning_rate=1e-5 if is_whole else 1e-4,
        num_warmup_steps=math.ceil(0.03 * num_steps),
        weight_decay=0.01 if is_whole else 0.0,
        weigh_by_rows=True,
        num_micro_batches=_divisor(own, math.ceil(own / in_a_pass)),
        precision="bf16" if has_gpu else "fp32",
        sharding="fsdp2" if is_whole and world_size > 1 else "none",
        is_activation_checkpointed=is_large,
        is_packed=True,
        lora_rank=options.rank,
        lora_alpha=2.0 * (options.rank or 1),
    )
    losses = objectives()
    tasks = {
        task: StageTask(
            objective=losses[task], policy=_policy(task, options), share=float(rows[task])
        )
        for task in TRAINED
        if rows.get(task)
    }
    return StageConfig(
        name="sft",
        variant="paper",
        starts_from="any checkpoint of the family",
        tasks=tasks,
        train=train,
        global_batch=batch,
        num_gpus=world_size,
    )


def _divisor(rows: int, at_least: int) -> int:
    """The smallest number of passes, not below, that shares the rows out evenly."""
    return next(count for count in range(at_least, rows + 1) if rows % count == 0)


def _policy(task: Task, options: SftOptions) -> SamplePolicy:
    policy = sample_policies("all")[task]
    output = DIRECTIONS[task].output
    if output is Modality.IMAGE:
        return policy
    overflow: Any = options.overflow
    if output is Modality.TEXT:
        return replace(
            policy, max_length=options.max_length, max_filler=_MAX_FILLER, overflow=overflow
        )
    return replace(policy, max_length=options.max_length, max_filler=64)  # speech is never cut


def survey(data: Mapping[str, Any], stage: StageConfig, config: LLaDAConfig, start: Path) -> str:
    """What a few hundred rows of the data look like in this run, in words.

    Args:
        data: as `sft_data` made it.
        stage: as `sft_stage` made it, changes applied.
        config: of the checkpoint.
        start: its folder, for the tokenizer.
    """
    tokenizer = load_tokenizer(str(start), config.vocabulary)
    context = stage.context(config, tokenizer)
    bare = {task: replace(policy, max_filler=0) for task, policy in context.policies.items()}
    measure = sample_length(replace(context, policies=bare))
    lines = []
    for task in stage.tasks:
        lengths: list[int] = []
        left_out: Counter[str] = Counter()
        for source in data["tasks"][task.value]["sources"]:
            opened = open_records(SourceSpec(**source), task, Encoder())
            step = max(1, len(opened) // _NUM_SURVEYED)
            for index in range(0, len(opened), step):
                _look_at(opened, index, measure, lengths, left_out)
        policy = stage.tasks[task].policy
        what = f"{len(lengths)} of {len(lengths) + sum(left_out.values())} rows looked at fit"
        if lengths:
            ends = f" and up to {policy.max_filler} EOS behind the answer" * bool(policy.max_filler)
            what += f", {sum(lengths) / len(lengths):,.0f} positions on average{ends}"
        if left_out:
            what += "; left out: " + ", ".join(f"{n} {kind}" for kind, n in left_out.items())
        lines.append(f"{task.value}: {what}")
    return "\n".join(lines)


def _look_at(
    opened: RecordTable, index: int, measure: Measure, lengths: list[int], left_out: Counter[str]
) -> None:
    try:
        for make in opened.read(index):
            record = make()
            check_switch(record.thinking, record.answer)
            lengths.append(measure(record))
    except BadSample as error:
        left_out[error.kind.value] += 1
    except DoesNotFit:
        left_out[BadKind.DOES_NOT_FIT.value] += 1
