"""The mixture: shares, resume, ranks, pools, bad samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.processors.templates import DoesNotFit
from vllm_dynin.training_ext.data.bad import (
    BadEntry,
    BadKind,
    BadLog,
    BadSample,
    TooManyBad,
    TooManyFiltered,
)
from vllm_dynin.training_ext.data.mixture import Mixture, Schedule, approximate_length
from vllm_dynin.training_ext.data.sources import ReadyRecords, ShuffledSource
from vllm_dynin.training_ext.records import Record

T2T, T2I, I2I = Task.TEXT_TO_TEXT, Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE
S2T, T2S = Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH
SEED = 5


def texts(name: str, count: int) -> list[Record]:
    """Text pairs of very different lengths."""
    return [
        Record(task=T2T, text="q" * (1 + 37 * i % 200), answer="a", key=f"{name}{i}")
        for i in range(count)
    ]


def images(count: int) -> list[Record]:
    return [
        Record(task=T2I, text="p", target_image=(i, i + 1, i + 2, i + 3), key=f"image{i}")
        for i in range(count)
    ]


def mixture(
    schedules: dict[Task, Schedule],
    *,
    weights: tuple[float, float] = (3.0, 1.0),
    rank: int = 0,
    world_size: int = 1,
    rows_per_step: int | None = None,
    is_even: bool = False,
    seed: int = SEED,
) -> Mixture:
    """Two text sources and one of images, of the directions asked for."""
    log = BadLog(0.0)

    def source(records: list[Record], name: str, task: Task) -> ShuffledSource:
        return ShuffledSource(
            ReadyRecords(records, name, task), task, seed, log, approximate_length
        )

    sources = {
        T2T: [
            (source(texts("big", 50), "big", T2T), weights[0]),
            (source(texts("small", 7), "small", T2T), weights[1]),
        ],
        T2I: [(source(images(11), "images", T2I), 1.0)],
    }
    return Mixture(
        {task: sources[task] for task in schedules},
        schedules,
        seed=seed,
        log=log,
        rank=rank,
        world_size=world_size,
        rows_per_step=rows_per_step,
        is_even=is_even,
    )


def one_source_each(records: dict[Task, list[Record]]) -> Mixture:
    """One record of each direction a step."""
    log = BadLog(0.0)
    sources = {
        task: [
            (
                ShuffledSource(
                    ReadyRecords(held, task.value, task), task, 0, log, approximate_length
                ),
                1.0,
            )
        ]
        for task, held in records.items()
    }
    return Mixture(sources, {task: Schedule(rows=1) for task in records}, seed=0, log=log)


def keys(step: dict[Task, list[Record]]) -> dict[str, list[str]]:
    return {task.value: [record.key for record in records] for task, records in step.items()}


def steps(source: Mixture, count: int) -> list[dict[str, list[str]]]:
    return [keys(source.next_step()) for _ in range(count)]


LAYOUTS: dict[str, Callable[..., Mixture]] = {
    "rows": lambda **ranks: mixture({T2T: Schedule(rows=3), T2I: Schedule(rows=2)}, **ranks),
    "alternating": lambda **ranks: mixture(
        {T2T: Schedule(rows=1, every=2), T2I: Schedule(rows=1, every=2, phase=1)}, **ranks
    ),
    "weighted": lambda **ranks: mixture(
        {T2T: Schedule(weight=2), T2I: Schedule(weight=1)}, rows_per_step=5, **ranks
    ),
    "pools": lambda **ranks: mixture(
        {T2T: Schedule(tokens=120, pool=16), T2I: Schedule(rows=2, pool=8)}, **ranks
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("done", [0, 1, 9, 23])
def test_going_on_equals_no_interruption(layout: str, world_size: int, done: int) -> None:
    for rank in range(world_size):
        make = LAYOUTS[layout]
        whole = steps(make(rank=rank, world_size=world_size), done + 20)
        before = make(rank=rank, world_size=world_size)
        assert steps(before, done) == whole[:done]
        state = json.loads(json.dumps(before.state_dict()))  # as a checkpoint keeps it
        after = make(rank=rank, world_size=world_size)
        after.load_state_dict(state)
        assert steps(after, 20) == whole[done:]
        assert after.step == done + 20


@pytest.mark.parametrize("layout", ["rows", "alternating", "weighted"])
def test_ranks_draw_what_one_process_would(layout: str) -> None:
    """Two ranks together: the records of a single process with twice the rows, in its order."""
    together = {
        "rows": mixture({T2T: Schedule(rows=6), T2I: Schedule(rows=4)}),
        "alternating": mixture(
            {T2T: Schedule(rows=2, every=2), T2I: Schedule(rows=2, every=2, phase=1)}
        ),
        "weighted": mixture({T2T: Schedule(weight=2), T2I: Schedule(weight=1)}, rows_per_step=10),
    }[layout]
    ranks = [LAYOUTS[layout](rank=rank, world_size=2) for rank in range(2)]
    for _ in range(30):
        expected = keys(together.next_step())
        parts = [keys(part.next_step()) for part in ranks]
        joined = {task: [key for part in parts for key in part.get(task, [])] for task in expected}
        assert joined == expected


def test_the_number_of_ranks_may_change() -> None:
    before = [LAYOUTS["rows"](rank=rank, world_size=2) for rank in range(2)]
    for part in before:
        steps(part, 7)
    assert before[0].state_dict()["tasks"] == before[1].state_dict()["tasks"]
    alone = mixture({T2T: Schedule(rows=6), T2I: Schedule(rows=4)})
    whole = steps(alone, 12)
    after = mixture({T2T: Schedule(rows=6), T2I: Schedule(rows=4)})
    after.load_state_dict(before[1].state_dict())
    assert steps(after, 5) == whole[7:]


def test_pools_refuse_another_rank() -> None:
    state = LAYOUTS["pools"](rank=0, world_size=2).state_dict()
    with pytest.raises(ValueError, match="rank 0 of 2, this is rank 1 of 2"):
        LAYOUTS["pools"](rank=1, world_size=2).load_state_dict(state)


def test_every_record_comes_once_an_epoch() -> None:
    source = one_source_each({T2I: images(11)})
    drawn = [keys(source.next_step())["t2i"][0] for _ in range(33)]
    for epoch in range(3):
        assert sorted(drawn[11 * epoch : 11 * epoch + 11]) == sorted(
            record.key for record in images(11)
        )
    assert drawn[:11] != drawn[11:22]


def test_sources_come_by_weight() -> None:
    source = mixture({T2T: Schedule(rows=10)})
    drawn = Counter(r.source for _ in range(400) for r in source.next_step()[T2T])
    # 4,000 draws at 3/4: three standard deviations are 82.
    assert abs(drawn["big"] - 3000) < 110
    assert drawn["big"] + drawn["small"] == 4000


def test_directions_come_by_weight() -> None:
    source = LAYOUTS["weighted"]()
    counts: Counter[Task] = Counter()
    for _ in range(600):
        step = source.next_step()
        assert sum(map(len, step.values())) == 5
        for task, records in step.items():
            counts[task] += len(records)
    assert abs(counts[T2T] - 2000) < 110  # 3,000 draws at 2/3: a standard deviation is 26


def test_alternating_directions() -> None:
    drawn = [set(step) for step in steps(LAYOUTS["alternating"](), 4)]
    assert drawn == [{"t2t"}, {"t2i"}, {"t2t"}, {"t2i"}]


def test_a_token_budget_is_kept_and_wastes_little() -> None:
    budget = 120
    source = mixture({T2T: Schedule(tokens=budget, pool=64)})
    useful = padded = 0
    seen: set[str] = set()
    for _ in range(200):
        records = source.next_step()[T2T]
        lengths = [approximate_length(record) for record in records]
        assert len(records) * max(lengths) <= budget
        useful += sum(lengths)
        padded += len(records) * max(lengths)
        seen.update(record.key for record in records)
    assert len(seen) == 57
    assert useful / padded > 0.9


def test_a_record_over_the_budget_is_a_batch_of_its_own() -> None:
    source = mixture({T2T: Schedule(tokens=20, pool=64)})
    sizes = {
        len(records): max(map(approximate_length, records))
        for records in (source.next_step()[T2T] for _ in range(200))
        if max(map(approximate_length, records)) > 20
    }
    assert list(sizes) == [1]


def test_a_pool_gives_every_record_it_drew() -> None:
    plain = mixture({T2T: Schedule(rows=32)})
    pooled = mixture({T2T: Schedule(rows=4, pool=32)})
    for _ in range(3):
        expected = Counter(r.key for r in plain.next_step()[T2T])
        assert Counter(r.key for _ in range(8) for r in pooled.next_step()[T2T]) == expected


def test_speech_and_transcript_serve_both_directions() -> None:
    heard = Record(task=S2T, answer="two", units=(4, 2), key="u")
    step = one_source_each({S2T: [heard], T2S: [heard]}).next_step()
    assert (step[S2T][0].answer, step[S2T][0].text) == ("two", "")
    assert (step[T2S][0].answer, step[T2S][0].text, step[T2S][0].units) == (None, "two", (4, 2))
    with pytest.raises(ValueError, match="is for s2t, its source for t2i"):
        one_source_each({T2I: [heard]}).next_step()


def test_even_seats_keep_every_direction_at_its_share() -> None:
    """Drawn seats gave 8 to 29 of 128 rows to a direction, and at 16 rows often none."""
    schedules = {T2T: Schedule(weight=4), T2I: Schedule(weight=3)}

    source = mixture(schedules, rows_per_step=16, is_even=True)
    counted: Counter[Task] = Counter()
    for step in range(40):
        drawn = {task: len(records) for task, records in source.next_step().items()}
        assert set(drawn) == set(schedules)
        assert all(abs(drawn[task] - 16 * one.weight / 7) < 2 for task, one in schedules.items())
        counted.update(drawn)
        for task, schedule in schedules.items():
            assert abs(counted[task] - 16 * (step + 1) * schedule.weight / 7) < 2
    # Ranks share the seats of one process, and a run goes on where it was.
    whole, again = (mixture(schedules, rows_per_step=16, is_even=True) for _ in range(2))
    ranks = [
        mixture(schedules, rows_per_step=8, is_even=True, rank=rank, world_size=2)
        for rank in range(2)
    ]
    for _ in range(5):
        step, parts = whole.next_step(), [one.next_step() for one in ranks]
        for task in schedules:
            joined = [r.key for part in parts for r in part.get(task, ())]
            assert joined == [r.key for r in step[task]]
    again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert again.next_step() == whole.next_step()


class SomeBad:
    """Records of which some cannot be read."""

    name, block = "some bad", None

    def __init__(self, size: int, every: int) -> None:
        self._size, self._every = size, every

    def __len__(self) -> int:
        return self._size

    def read(self, index: int) -> list[Callable[[], Record]]:
        if index % self._every == 0:
            raise BadSample(BadKind.MEDIA, f"row {index} is damaged")
        return [lambda: Record(task=T2T, text="q", answer="a", key=f"row{index}")]


def with_bad(every: int, max_share: float, **ranks: int) -> Mixture:
    log = BadLog(max_share)
    source = ShuffledSource(SomeBad(100, every), T2T, SEED, log, approximate_length)
    count = 4 // ranks.get("world_size", 1)
    return Mixture({T2T: [(source, 1.0)]}, {T2T: Schedule(rows=count)}, seed=SEED, log=log, **ranks)


def test_bad_samples_are_counted_and_listed() -> None:
    source = with_bad(every=20, max_share=0.1)
    drawn = [r.key for _ in range(25) for r in source.next_step()[T2T]]  # one epoch
    assert len(drawn) == 100
    assert not {"row0", "row20", "row40", "row60", "row80"} & set(drawn)
    assert source.bad.bad_of("some bad") == 5
    assert source.bad.num_read["some bad"] == 105
    assert {entry.message for entry in source.bad.entries} == {
        f"row {index} is damaged" for index in range(0, 100, 20)
    }
    assert source.bad.describe("some bad") == "5 media"


def test_a_bad_sample_moves_nothing_else() -> None:
    """Every rank goes on as if it had been good; only its own place is filled by another row."""
    good, bad = with_bad(every=1000, max_share=1), with_bad(every=20, max_share=1)
    pairs = [
        (a.key, b.key)
        for _ in range(25)
        for a, b in zip(good.next_step()[T2T], bad.next_step()[T2T], strict=True)
    ]
    # every=1000 still makes row 0 bad.
    assert sum(a != b for a, b in pairs) in (4, 5)
    ranks = [with_bad(20, 1, rank=rank, world_size=2) for rank in range(2)]
    joined = [r.key for _ in range(25) for part in ranks for r in part.next_step()[T2T]]
    assert joined == [b for _, b in pairs]


def test_too_many_bad_samples_are_an_error() -> None:
    source = with_bad(every=3, max_share=0.05)
    with pytest.raises(TooManyBad, match=r"some bad: .* over the limit of 5.00%.*is damaged"):
        steps(source, 200)


def test_counts_survive_a_restart() -> None:
    source = with_bad(every=20, max_share=0.1)
    steps(source, 10)
    after = with_bad(every=20, max_share=0.1)
    after.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert after.bad.num_read == source.bad.num_read
    assert after.bad.num_bad == source.bad.num_bad


def test_records_that_do_not_fit_are_filtered() -> None:
    def measure(record: Record) -> int:
        if len(record.text) > 150:
            raise DoesNotFit(f"{len(record.text)} characters")
        return len(record.text)

    log = BadLog(1.0)
    records = ReadyRecords(texts("t", 50), "t", T2T)
    source = ShuffledSource(records, T2T, SEED, log, measure)
    lengths = [source.at(position)[1] for position in range(50)]
    assert max(lengths) <= 150
    too_long = sum(len(record.text) > 150 for record in texts("t", 50))
    assert log.num_bad["t", BadKind.DOES_NOT_FIT.value] >= too_long > 0
    assert log.filtered_of("t") >= too_long and log.bad_of("t") == 0
    assert {entry.kind for entry in log.filtered} == {"does not fit"} and not log.entries


def lengths_log(num_long: int, num_damaged: int, **limits: float) -> BadLog:
    """200 rows read of one source."""
    log = BadLog(**limits)
    log.good("s", 200 - num_long - num_damaged)
    for count, kind in ((num_long, BadKind.DOES_NOT_FIT), (num_damaged, BadKind.MEDIA)):
        for row in range(count):
            log.bad(BadEntry("s", f"row {row}", kind.value, "why"))
    return log


def test_long_rows_do_not_count_as_damage() -> None:
    """One row in a hundred that was too long ended a run; a set of long traces has many."""
    log = lengths_log(90, 2)
    log.check()
    assert (log.filtered_of("s"), log.bad_of("s")) == (90, 2)
    assert (len(log.filtered), len(log.entries)) == (90, 2)
    assert log.describe("s") == "2 media"
    assert log.describe("s", is_filter=True) == "90 does not fit"
    with pytest.raises(TooManyBad, match=r"3 of 200 samples are bad \(3 media\).*max_bad_share"):
        lengths_log(0, 3)
    with pytest.raises(TooManyFiltered, match=r"101 of 200 .*max_length.*max_filtered_share"):
        lengths_log(101, 0)
    with pytest.raises(TooManyFiltered):
        lengths_log(30, 0, max_filtered=0.1)
    with pytest.raises(ValueError, match="max_filtered=2"):
        BadLog(max_filtered=2)


def test_codes_of_another_checkpoint_are_damage_and_not_length() -> None:
    def measure(record: Record) -> int:
        raise ValueError("image code 9000 is outside 0..8191")

    log = BadLog()
    source = ShuffledSource(ReadyRecords(texts("t", 300), "t", T2T), T2T, SEED, log, measure)
    with pytest.raises(TooManyBad, match=r"100 of 100 .* \(100 fields\)"):
        for position in range(3):
            source.at(position)
    assert log.filtered_of("t") == 0 and log.bad_of("t") >= 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(), "nothing given"),
        (lambda: Schedule(rows=1, weight=2), "rows and weight given"),
        (lambda: Schedule(rows=0), "rows=0 must be positive"),
        (lambda: Schedule(tokens=5), "needs a pool"),
        (lambda: Schedule(rows=3, pool=8), "pool=8 is no multiple of rows=3"),
        (lambda: Schedule(rows=3, every=2, phase=2), "phase=2"),
        (lambda: Schedule(weight=1, every=2), "weight goes with neither"),
        (lambda: mixture({}), "at least one direction"),
        (lambda: mixture({T2T: Schedule(rows=1)}, rank=2, world_size=2), "rank=2"),
        (lambda: mixture({T2T: Schedule(weight=1)}), "go together"),
        (lambda: mixture({T2T: Schedule(rows=1)}, rows_per_step=2), "go together"),
    ],
)
def test_what_does_not_fit_together(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_state_of_another_mixture() -> None:
    state = mixture({T2T: Schedule(rows=1)}).state_dict()
    with pytest.raises(ValueError, match="of directions t2t, the mixture of t2i"):
        mixture({T2I: Schedule(rows=1)}).load_state_dict(state)
    with pytest.raises(ValueError, match="of seed 5, the mixture of 6"):
        mixture({T2T: Schedule(rows=1)}, seed=6).load_state_dict(state)
    state["tasks"]["t2t"]["counts"] = {"other": 1}
    with pytest.raises(ValueError, match="of sources other, the mixture has big, small"):
        mixture({T2T: Schedule(rows=1)}).load_state_dict(state)
