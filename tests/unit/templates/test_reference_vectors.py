"""Full-size layouts of the original, from ids that were observed in it."""

from vllm_dynin import canvas as cv
from vllm_dynin.processors import templates as tp
from vllm_dynin.tokens import DYNIN_OMNI

V = DYNIN_OMNI
TEXT5 = [1, 2, 3, 4, 5]


def build(head, targets, parity=cv.Parity.REFERENCE, **options):
    return tp.from_head(
        head, targets, vocabulary=V, num_rows=138752, parity=parity, is_guided=True, **options
    )


def full_ids(head, canvas):
    return [*head, *canvas.slots]


def test_text_to_image_at_full_size() -> None:
    head = tp.text_to_image_head(TEXT5, V)
    canvas = build(head, 1024)
    ids = full_ids(head, canvas)
    assert ids == (
        [126093] * 121 + [126088, 126080, *TEXT5, 126081, 126084] + [126336] * 1024 + [126085]
    )
    assert len(ids) == 1155
    assert len(canvas.conditional.ids) + canvas.num_slots == 1034
    assert canvas.conditional.canvas_start == 130
    second = canvas.unconditional
    assert second.stream.positions == (126, 127, 128, 129)
    assert second.stream.ids == (126088, 126080, 126081, 126084)
    assert len(second.stream.ids) + canvas.num_slots == 1029


def test_text_to_image_second_stream_after_one_step_of_two() -> None:
    canvas = build(tp.text_to_image_head(TEXT5, V), 1024)
    # One step of two leaves 724 codes masked; which ones does not matter here.
    slots = tuple([126336] * 724 + [126349] * 300 + [126085])
    second = canvas.unconditional_slots(slots)
    assert second[:383] == (126336,) * 383
    assert second[383:] == slots[383:]
    assert canvas.unconditional.follows.index(True) + canvas.conditional.canvas_start == 513
    mirrored = tuple([126349] * 300 + [126336] * 724 + [126085])
    assert canvas.unconditional_slots(mirrored)[:383] == (126336,) * 383
    default = build(tp.text_to_image_head(TEXT5, V), 1024, cv.Parity.DEFAULT)
    assert default.unconditional_slots(mirrored) == mirrored


def test_image_to_image_at_full_size() -> None:
    source = list(range(441))
    head = tp.image_to_image_head([source], TEXT5, V)
    canvas = build(head, 441)
    ids = full_ids(head, canvas)
    assert len(ids) == 1016
    assert ids[0:2] == [126095, 126084]
    assert ids[443] == 126085
    assert ids[444:566] == [126093] * 122
    assert ids[566] == 126080
    assert ids[572:574] == [126081, 126084]
    assert ids[1015] == 126085
    stream = canvas.unconditional.stream
    # The mask is that of the empty prompt: zero at 444..570. The ids are the conditional ones:
    # the last token of the instruction and EOS.
    assert stream.positions == (*range(444), 571, 572, 573)
    assert stream.ids == (*head[:444], 5, 126081, 126084)
    assert set(canvas.unconditional.follows) == {True}

    repaired = build(head, 441, cv.Parity.DEFAULT).unconditional.stream
    assert repaired.positions == stream.positions
    assert repaired.ids == (*head[:444], 126080, 126081, 126084)


def test_image_to_image_of_a_small_source_keeps_more_of_the_empty_prompt() -> None:
    # 16 codes: the head has 149 ids, so the 337 kept ids end 188 codes into the target.
    head = tp.image_to_image_head([range(16)], TEXT5, V)
    canvas = build(head, 256)
    assert len(head) == 149
    assert canvas.unconditional.stream.ids == (*head[:19], 126080, 126081, 126084)
    assert canvas.unconditional.follows == (False,) * 188 + (True,) * 69


def test_alternative_editing_prompt_has_1018_ids() -> None:
    head = tp.image_to_image_alternative_head([range(441)], TEXT5, V)
    assert len(full_ids(head, build(head, 441))) == 1018


def test_text_to_speech_at_full_size() -> None:
    head = tp.text_to_speech_head([21, 22, 23], V)
    assert head == (*[126093] * 1019, 126099, 126080, 21, 22, 23, 126081, 126097)
    assert len(full_ids(head, build(head, 383))) == 1409
    assert len(full_ids(head, build(head, 512))) == 1538


def test_video_to_text_at_full_size() -> None:
    frames = [[code % 8192 for code in range(441)]] * 5
    head = tp.video_to_text_head(frames, [7, 8], V)
    assert head[:2] == (126100, 126084)
    assert len(head[2:2207]) == 2205
    assert head[2207:] == (126085, 126080, 7, 8)


def test_image_to_text_length() -> None:
    assert len(tp.image_to_text_head([range(441)], [7] * 10, V)) == 4 + 441 + 10


def test_overlong_text_keeps_its_head_and_ends_in_eos() -> None:
    text = list(range(1, 200))
    head = tp.text_to_image_head(text, V, overflow="cut")
    assert head == (126088, 126080, *range(1, 127), 126081, 126084)
    edit = tp.image_to_image_head([[0]], text, V, overflow="cut")
    assert edit[4:] == (126080, *range(1, 128), 126081, 126084)
    speech = tp.text_to_speech_head(range(2000), V, overflow="cut")
    assert speech == (126099, 126080, *range(1022), 126081, 126097)
    video = tp.video_to_speech_head([[0]], text, V, overflow="cut")
    assert video[4:] == (126080, *range(1, 127), 126081, 126097)


def test_bos_is_not_doubled() -> None:
    assert tp.text_to_image_head([126080, 5], V) == tp.text_to_image_head([5], V)


def test_speech_output_mapping() -> None:
    assert tp.read_units([134541, 134600, 126098, 134999, 126336], V) == [0, 59]
    assert tp.read_units([134600, 126336, 134999], V) == [59]
    assert tp.read_units([126081], V) == []
    assert tp.read_units([138636, 138637], V) == [4095]
