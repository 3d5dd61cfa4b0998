"""Records to samples: dropout, lengths, EOS policies, instructions, released layouts, mistakes."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from vllm_dynin.canvas import Parity, Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.processors import chat
from vllm_dynin.processors.templates import IGNORE
from vllm_dynin.training_ext.records import (
    Draws,
    Record,
    SampleContext,
    SamplePolicy,
    draw,
    make_sample,
    sample_policies,
)

CODES, OTHER, FRAMES, UNITS = (1, 2, 3, 4), (5, 6, 7, 0), ((1, 2), (3, 4)), (3, 4, 5)
TEXT = Record(task=Task.TEXT_TO_TEXT, text="a red cube", answer="blue", source="made", key="7")
HEARD = Record(task=Task.SPEECH_TO_TEXT, units=UNITS, answer="a table")
SPOKEN = Record(task=Task.TEXT_TO_SPEECH, text="a table", units=UNITS)
DRAWN = Record(task=Task.TEXT_TO_IMAGE, text="a cube", target_image=CODES)
EDITED = Record(task=Task.IMAGE_TO_IMAGE, text="paint", images=(CODES,), target_image=OTHER)
WATCHED = Record(task=Task.VIDEO_TO_TEXT, text="what?", images=FRAMES, answer="a cube")
SEEN = Record(task=Task.IMAGE_TO_TEXT, text="what?", images=(CODES,), answer="a cube")


@pytest.fixture(scope="module")
def config(tokenizer) -> DyninOmniConfig:
    return DyninOmniConfig(
        text_vocab_size=len(tokenizer),
        codebook_size=8,
        speech_codebook_size=12,
        image_text_block=12,
        speech_text_block=70,
    )


@pytest.fixture(scope="module")
def make(config, tokenizer):
    def make(record, draws=None, seed=0, parity=Parity.DEFAULT, dropout=0.0, **policy):
        policies = sample_policies(dropout=dropout)
        policies[record.task] = replace(policies[record.task], **policy)
        context = SampleContext(
            config=config, tokenizer=tokenizer, policies=policies, parity=parity
        )
        return make_sample(record, context, random.Random(seed), draws)

    return make


@pytest.fixture(scope="module")
def encode(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def targets(sample):
    return [token for token, is_own in zip(sample.ids, sample.is_target, strict=True) if is_own]


def head(sample):
    return list(sample.ids[: sample.is_target.index(True)])


# --- dropout --------------------------------------------------------------------------------------


def test_shares_of_dropped_conditions_of_editing(make, config):
    """Rates of 0.1 each: 10 % identities, 9 % edits without instruction, 81 % as they are."""
    v, found, count = config.vocabulary, Counter(), 6000
    for seed in range(count):
        sample = make(EDITED, seed=seed, dropout=0.1)
        is_identity = targets(sample) == v.image_ids(CODES)
        assert is_identity or targets(sample) == v.image_ids(OTHER)
        shown = [t for t, is_seen in zip(sample.ids, sample.is_visible, strict=True) if is_seen]
        start = shown.index(v.bos)
        has_text = shown[start + 1] != v.eos
        assert shown[1:start] == [v.soi, *v.image_ids(CODES), v.eoi]  # the source always stays
        found[is_identity, has_text] += 1
    assert found.keys() == {(True, False), (False, False), (False, True)}
    # Three standard deviations of a binomial share are at most 0.016 here.
    assert found[True, False] / count == pytest.approx(0.1, abs=0.012)
    assert found[False, False] / count == pytest.approx(0.09, abs=0.012)
    assert found[False, True] / count == pytest.approx(0.81, abs=0.016)


def test_dropped_text_of_images_and_speech(make, config):
    v = config.vocabulary
    dropped = Draws(instruction="Say:", is_text_dropped=True)
    assert head(make(DRAWN, dropped)) == [*[v.pad] * 9, v.t2i, v.bos, v.eos, v.soi]
    assert head(make(SPOKEN, dropped)) == [*[v.pad] * 67, v.t2s, v.bos, v.eos, v.soa]


def test_only_three_directions_are_ever_dropped():
    policies = sample_policies()
    rates = {task: (p.dropout, p.identity) for task, p in policies.items()}
    expected = dict.fromkeys(Task, (0.0, 0.0))
    expected |= {
        Task.TEXT_TO_IMAGE: (0.1, 0.0),
        Task.TEXT_TO_SPEECH: (0.1, 0.0),
        Task.IMAGE_TO_IMAGE: (0.1, 0.1),
    }
    assert rates == expected


# --- instructions ---------------------------------------------------------------------------------


def test_instructions_are_drawn_from_the_lists(make, encode):
    found = Counter()
    for seed in range(600):
        sample = make(HEARD, seed=seed)
        for number, instruction in enumerate(chat.TRANSCRIBE_INSTRUCTIONS):
            turn = encode(chat.user_turn(instruction))
            found[number] += head(sample)[-len(turn) :] == turn
    assert sum(found.values()) == 600
    assert min(found.values()) > 60  # 100 each
    own = replace(HEARD, text="Write it.")
    turn = encode(chat.user_turn("Write it."))
    assert head(make(own))[-len(turn) :] == turn


def test_instructions_of_ones_own(make, encode, config):
    sample = make(SPOKEN, instructions=("Sing:",))
    query = encode(chat.user_turn("Sing:\na table"))
    v = config.vocabulary
    assert head(sample)[-len(query) - 3 :] == [v.bos, *query, v.eos, v.soa]


def test_draws_keep_streams_in_step():
    """A rate of another direction or of another run does not move the draws behind it."""
    plain, dropping = random.Random(1), random.Random(1)
    draw(Task.TEXT_TO_IMAGE, SamplePolicy(), plain)
    draw(Task.TEXT_TO_IMAGE, SamplePolicy(dropout=1.0, identity=1.0, max_filler=9), dropping)
    assert plain.random() == dropping.random()


# --- length and endings ---------------------------------------------------------------------------


def test_answers_end_in_eos_and_filler(make, encode, config):
    eos, answer = config.vocabulary.eos, encode("blue")
    assert targets(make(TEXT)) == [*answer, eos]
    fixed = make(TEXT, num_targets=len(answer) + 4)
    assert targets(fixed) == [*answer, *[eos] * 4]
    row = make(TEXT, row_length=60)
    assert len(row.ids) == 60 and targets(row)[: len(answer) + 1] == [*answer, eos]
    lengths = {make(TEXT, seed=seed, max_filler=3).region_length for seed in range(60)}
    assert lengths == {len(answer) + 1 + n for n in range(4)}


def test_end_of_audio_comes_before_the_filler(make, config):
    v = config.vocabulary
    sample = make(SPOKEN, num_targets=6)
    assert targets(sample) == [*v.speech_ids(UNITS), v.eoa, v.eos, v.eos]


@pytest.mark.parametrize(("eos", "num_labelled"), [("all", 3), ("first", 1), ("none", 0)])
def test_eos_policies(eos, num_labelled, make, encode, config):
    answer = encode("blue")
    sample = make(TEXT, eos=eos, num_targets=len(answer) + 3)
    labels = [label for label in sample.labels if label != IGNORE]
    assert labels == [*answer, *[config.vocabulary.eos] * num_labelled]
    assert sample.region_length == len(answer) + 3


def test_visible_filler_is_no_target(make, config):
    sample = make(SPOKEN, eos="none", filler="visible", num_targets=6)
    v = config.vocabulary
    assert targets(sample) == [*v.speech_ids(UNITS), v.eoa]
    assert sample.ids[-2:] == (v.eos, v.eos)


def test_what_is_too_long_is_refused_or_cut(make, config):
    v = config.vocabulary
    with pytest.raises(ValueError, match="record \\? of \\?: the answer takes 4 slots"):
        make(SPOKEN, num_targets=3)
    assert targets(make(SPOKEN, num_targets=3, overflow="cut")) == [
        *v.speech_ids(UNITS[:2]),
        v.eoa,
    ]
    with pytest.raises(ValueError, match="record 7 of made: the answer takes"):
        make(TEXT, row_length=10)
    long = replace(DRAWN, text="a red cube stands on a blue table")
    with pytest.raises(ValueError, match="but this prompt holds 12"):
        make(long)
    assert len(make(long, text_block=40).ids) == 40 + 1 + 4 + 1
    cut = make(long, parity=Parity.REFERENCE)
    assert head(cut)[-2:] == [v.eos, v.soi] and len(head(cut)) == 13


# --- released layouts -----------------------------------------------------------------------------


def test_released_text_is_all_target_in_the_second_stage(make, encode, config):
    v = config.vocabulary
    text = [v.bos, *encode(chat.training_turn("a red cube") + "blue")]
    whole = make(TEXT, layout="stage2", row_length=60)
    assert whole.ids == (*text, *[v.eos] * (60 - len(text)))
    assert all(whole.is_target)
    answer = make(TEXT, layout="stage3", row_length=60)
    assert answer.ids == whole.ids
    start = answer.is_target.index(True)
    assert answer.ids[start - 1] == v.end_header
    assert targets(answer)[: len(text) - start] == text[start:]
    thought = make(replace(TEXT, thinking=True), layout="stage3", row_length=60)
    asked = encode(chat.training_turn("a red cube", enable_thinking=True) + "blue")
    assert list(thought.ids[1 : len(asked) + 1]) == asked


def test_released_captions_have_no_question(make, encode, config):
    v = config.vocabulary
    caption = replace(WATCHED, text="")
    sample = make(caption, layout="stage1", num_targets=10, eos="first")
    codes = [code for frame in FRAMES for code in frame]
    assert head(sample) == [v.v2t, v.soi, *v.image_ids(codes), v.eoi]
    answer = [v.bos, *encode("a cube")]
    assert targets(sample) == [*answer, *[v.eos] * (10 - len(answer))]
    labels = list(sample.labels[len(head(sample)) :])
    assert labels == [*answer, v.eos, *[IGNORE] * (9 - len(answer))]


def test_released_dialogues_about_media(make, encode, config):
    v = config.vocabulary
    for record, turn, num_media in (
        (WATCHED, chat.training_turn("what?"), 3 + 4),
        (SEEN, chat.user_turn("what?"), 1 + 6),
    ):
        sample = make(record, layout="stage2", row_length=60)
        ids = encode(turn + "a cube")
        assert len(sample.ids) == 60
        assert list(sample.ids[num_media : num_media + 1 + len(ids)]) == [v.bos, *ids]
        start = sample.is_target.index(True)
        assert sample.ids[start - 1] == v.end_header


def test_a_released_dialogue_cut_before_its_answer_trains_on_the_question(make, encode, config):
    """PARITY: behind the user's header, since the assistant's was cut off."""
    whole = make(WATCHED, layout="stage2", row_length=60)
    v = config.vocabulary
    headers = [i for i, token in enumerate(whole.ids) if token == v.end_header]
    cut = make(WATCHED, layout="stage2", row_length=headers[1] + 1, overflow="cut")
    assert cut.is_target.index(True) == headers[0] + 1
    assert list(cut.ids) == [*whole.ids[: headers[1]], v.eos]
    with pytest.raises(ValueError, match="no room for the header"):
        make(WATCHED, layout="stage2", row_length=7, overflow="cut")


def test_released_transcription(make, encode, config):
    v = config.vocabulary
    ids = encode(chat.user_turn(chat.TRANSCRIBE_INSTRUCTIONS[0]) + "a table")
    draws = Draws(instruction=chat.TRANSCRIBE_INSTRUCTIONS[0])
    for layout in ("stage1", "stage2", "stage3"):
        sample = make(
            HEARD, draws, layout=layout, audio_block=9, row_length=100, parity=Parity.REFERENCE
        )
        audio = [*[v.pad] * 3, v.s2t, v.soa, *v.speech_ids(UNITS), v.eoa]
        filler = [v.eos] * (100 - 9 - 1 - len(ids))
        assert list(sample.ids) == [*audio, v.bos, *ids, *filler]
        assert all(sample.is_visible)


def test_released_synthesis(make, encode, config):
    v = config.vocabulary
    draws = Draws(instruction="Say it.")
    plain = make(SPOKEN, draws, layout="stage1", text_block=40, num_targets=6)
    text = encode("a table\nSay it.")
    assert head(plain)[-len(text) - 4 :] == [v.t2s, v.bos, *text, v.eos, v.soa]
    assert len(head(plain)) == 41
    for layout in ("stage2", "stage3"):
        assert make(SPOKEN, draws, layout=layout, num_targets=6) == make(
            SPOKEN, draws, num_targets=6
        )
    dropped = replace(draws, is_text_dropped=True)
    assert head(make(SPOKEN, dropped, layout="stage1"))[-4:] == [v.t2s, v.bos, v.eos, v.soa]


def test_released_images_are_the_serving_form(make):
    for record in (DRAWN, EDITED):
        assert make(record, layout="stage2") == make(record)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": Task.TEXT_TO_TEXT, "text": "a"}, "record 7 of made: a t2t record needs answer"),
        ({"task": Task.TEXT_TO_IMAGE, "text": "a"}, "a t2i record needs target_image"),
        ({"task": Task.VIDEO_TO_TEXT, "answer": "a"}, "a v2t record needs images"),
        ({"task": Task.TEXT_TO_SPEECH, "units": (1,)}, "a t2s record needs text"),
        ({"task": Task.SPEECH_TO_SPEECH, "units": (1,)}, "a s2s record needs reply_units"),
        (
            {"task": Task.TEXT_TO_IMAGE, "target_image": (1,), "units": (2,)},
            "units means nothing for t2i",
        ),
        (
            {"task": Task.TEXT_TO_TEXT, "text": "a", "answer": "b", "images": ((1,),)},
            "images means nothing for t2t",
        ),
    ],
)
def test_records_that_do_not_fit_their_task(fields, message):
    with pytest.raises(ValueError, match=message):
        Record(**fields, source="made", key="7")


def test_an_empty_answer_is_an_answer(make, config):
    assert targets(make(replace(TEXT, answer=""))) == [config.vocabulary.eos]


def test_bad_codes_and_missing_policies_name_the_record(config, tokenizer, make):
    with pytest.raises(ValueError, match="record bad of made: image code 8 is outside"):
        make(replace(DRAWN, target_image=(8,), source="made", key="bad"))
    with pytest.raises(ValueError, match=r"record \? of \?: speech unit 12 is outside"):
        make(replace(HEARD, units=(12,)))
    context = SampleContext(config=config, tokenizer=tokenizer, policies={})
    with pytest.raises(ValueError, match="record 7 of made: no policy for t2t"):
        make_sample(TEXT, context, random.Random(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"identity": -0.1}, "identity=-0.1"),
        ({"num_targets": 0}, "num_targets=0"),
        ({"row_length": 0}, "row_length=0"),
        ({"max_filler": -1}, "max_filler=-1"),
        ({"num_targets": 3, "row_length": 9}, "give one of them"),
    ],
)
def test_policies_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        SamplePolicy(**options)
