"""Canvas dataclasses: invariants, derived values, and that they travel."""

import dataclasses
import pickle
import subprocess
import sys

import msgspec
import pytest

from vllm_dynin.canvas import (
    Canvas,
    Decoder,
    GuidanceForm,
    Parity,
    Region,
    Stream,
    Task,
    Unconditional,
)

MASK = 99


def make_canvas(**changes) -> Canvas:
    canvas = Canvas(
        task=Task.TEXT_TO_IMAGE,
        parity=Parity.DEFAULT,
        mask_id=MASK,
        conditional=Stream(ids=(1, 2, 3), positions=(4, 5, 6), canvas_start=7),
        slots=(MASK, 5, MASK, 8),
        regions=(Region(start=0, stop=3, decoder=Decoder.MASKGIT, columns=((200, 210),)),),
        unconditional=Unconditional(
            stream=Stream(ids=(1, 3), positions=(5, 6), canvas_start=7),
            follows=(False, True, True, True),
            form=GuidanceForm.WEIGHTED,
        ),
    )
    return dataclasses.replace(canvas, **changes)


def test_derived_values() -> None:
    canvas = make_canvas()
    assert (canvas.num_slots, canvas.num_targets, canvas.num_prompt_tokens) == (4, 2, 3)
    assert canvas.num_rows == 3 + 4 + 2 + 4
    assert canvas.max_position == 10
    assert canvas.unconditional_slots((201, 5, 202, 8)) == (MASK, 5, 202, 8)
    assert not canvas.is_unconditional_constant
    unguided = make_canvas(unconditional=None)
    assert unguided.num_rows == 7
    assert not unguided.is_unconditional_constant
    with pytest.raises(ValueError, match="no unconditional stream"):
        unguided.unconditional_slots(unguided.slots)


def test_unconditional_stream_is_constant_when_no_target_follows() -> None:
    stream = Stream.contiguous((1, 2))
    constant = Unconditional(
        stream=stream, follows=(False, True, False, True), form=GuidanceForm.DELTA
    )
    assert make_canvas(unconditional=constant).is_unconditional_constant


def test_travels_through_msgspec_and_pickle() -> None:
    canvas = make_canvas()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(canvas), type=Canvas) == canvas
    assert pickle.loads(pickle.dumps(canvas)) == canvas
    assert hash(canvas) == hash(make_canvas())


def test_region_columns() -> None:
    region = Region(
        start=0, stop=1, decoder=Decoder.SPEECH, columns=((10, 20), (3, 4), (1, 2)), excluded=(12,)
    )
    assert region.num_columns == 11
    allowed = [i for i in range(30) if region.allows(i)]
    assert allowed == [1, 3, 10, 11, *range(13, 20)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Stream(ids=(1,), positions=(), canvas_start=0), "1 ids but 0 positions"),
        (lambda: Stream(ids=(-1,), positions=(0,), canvas_start=1), "negative"),
        (lambda: Stream(ids=(1, 2), positions=(3, 3), canvas_start=4), "position 3 follows 3"),
        (lambda: Stream(ids=(1,), positions=(3,), canvas_start=3), "position 3 follows 3"),
        (lambda: Stream(ids=(1,), positions=(-1,), canvas_start=3), "position -1"),
        (lambda: Stream(ids=(), positions=(), canvas_start=-1), "position -1"),
        (lambda: Region(start=2, stop=2, decoder=Decoder.BLOCK, columns=((0, 1),)), "start < stop"),
        (lambda: Region(start=0, stop=1, decoder=Decoder.BLOCK, columns=()), "no columns"),
        (
            lambda: Region(start=0, stop=1, decoder=Decoder.BLOCK, columns=((5, 9), (0, 6))),
            "overlap",
        ),
        (lambda: Region(start=0, stop=1, decoder=Decoder.BLOCK, columns=((5, 5),)), "non-empty"),
        (
            lambda: Region(
                start=0, stop=1, decoder=Decoder.BLOCK, columns=((0, 5),), excluded=(7,)
            ),
            "excluded id 7",
        ),
        (
            lambda: Region(
                start=0, stop=1, decoder=Decoder.BLOCK, columns=((0, 5),), excluded=(2, 2)
            ),
            "distinct",
        ),
        (
            lambda: Region(
                start=0, stop=1, decoder=Decoder.BLOCK, columns=((0, 1),), excluded=(0,)
            ),
            "every allowed id is excluded",
        ),
        (lambda: make_canvas(conditional=Stream.contiguous((1, MASK))), "row 1 of the prompt"),
        (lambda: make_canvas(slots=(MASK, 5, MASK, MASK)), "1 masked slots lie in no region"),
        (lambda: make_canvas(slots=(1, 5, 6, MASK)), "nothing to generate"),
        (lambda: make_canvas(slots=(1, 2, 3, 4), regions=()), "no target"),
        (lambda: make_canvas(slots=(MASK, -5, MASK, 8)), "negative"),
        (lambda: make_canvas(slots=(MASK, 5)), "within the 2 slots"),
        (lambda: make_canvas(slots=(MASK, 5, MASK, 8, 8)), "4 entries in `follows` for 5 slots"),
        (
            lambda: make_canvas(
                regions=(
                    Region(start=2, stop=3, decoder=Decoder.BLOCK, columns=((0, 5),)),
                    Region(start=0, stop=1, decoder=Decoder.BLOCK, columns=((0, 5),)),
                )
            ),
            "must start at or behind 3",
        ),
    ],
)
def test_invariants_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, vllm_dynin.canvas, vllm_dynin.tokens;"
        "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
