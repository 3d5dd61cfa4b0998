"""Request options: what is accepted, and the text of every refusal."""

import pytest

from vllm_dynin.sampling.params import DenoiseParams, stated


def test_our_keys_are_read_and_others_left_alone():
    options = DenoiseParams.parse(
        {
            "dynin_steps": 8,
            "dynin_block_length": 4,
            "dynin_cfg_scale": 1.5,
            "dynin_remasking": "random",
            "dynin_stop_at_eos": False,
            "dynin_parity": "reference",
            "dynin_task": "t2t",
            "somebody_elses": {"x": 1},
        }
    )
    assert options == DenoiseParams(
        steps=8,
        block_length=4,
        cfg_scale=1.5,
        remasking="random",
        stop_at_eos=False,
        parity="reference",
        task="t2t",
    )


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_given_is_all_defaults(nothing):
    assert DenoiseParams.parse(nothing) == DenoiseParams()


def test_an_integer_scale_is_a_scale():
    assert DenoiseParams.parse({"dynin_cfg_scale": 2}).cfg_scale == 2.0


@pytest.mark.parametrize(("value", "flag"), [(1, True), (0, False), (1.0, True), (True, True)])
def test_a_flag_may_arrive_as_a_number(value, flag):
    """Over HTTP it does: `vllm_xargs` has no booleans."""
    assert DenoiseParams.parse({"dynin_stop_at_eos": value}).stop_at_eos is flag


def test_null_means_the_default():
    assert DenoiseParams.parse({"dynin_steps": None}).steps is None


def test_round_trip():
    options = DenoiseParams(steps=3, stop_at_eos=False)
    assert options.to_extra_args() == {"dynin_steps": 3, "dynin_stop_at_eos": False}
    assert DenoiseParams.parse(options.to_extra_args()) == options


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dynin_steps", 0, r"dynin_steps=0 is invalid: expected `int` >= 1"),
        ("dynin_steps", 8193, r"dynin_steps=8193 is invalid: expected `int` <= 8192"),
        ("dynin_steps", 2.5, r"dynin_steps=2.5 is invalid: expected `int.*got `float`"),
        ("dynin_steps", "8", r"dynin_steps='8' is invalid: expected `int.*got `str`"),
        ("dynin_steps", True, r"dynin_steps=True is invalid: expected `int.*got `bool`"),
        ("dynin_steps", [4], r"dynin_steps=\[4\] is invalid: expected `int.*got `array`"),
        ("dynin_block_length", 0, r"dynin_block_length=0 is invalid: expected `int` >= 1"),
        ("dynin_block_length", -4, r"dynin_block_length=-4 is invalid: expected `int` >= 1"),
        ("dynin_cfg_scale", -0.1, r"dynin_cfg_scale=-0.1 is invalid: expected `float` >= 0.0"),
        ("dynin_cfg_scale", 100.5, r"dynin_cfg_scale=100.5 is invalid: expected `float` <= 100"),
        ("dynin_cfg_scale", "high", r"dynin_cfg_scale='high' is invalid: expected `float"),
        ("dynin_cfg_scale", float("nan"), r"dynin_cfg_scale=nan is invalid"),
        ("dynin_cfg_scale", float("inf"), r"dynin_cfg_scale=inf is invalid"),
        (
            "dynin_remasking",
            "highest",
            r"dynin_remasking='highest' is invalid: use one of 'low_confidence', 'random'",
        ),
        ("dynin_remasking", 3, r"dynin_remasking=3 is invalid: use one of .low_confidence"),
        ("dynin_parity", "exact", r"invalid: use one of 'default', 'reference'"),
        ("dynin_stop_at_eos", "yes", r"dynin_stop_at_eos='yes' is invalid: expected `bool"),
        ("dynin_stop_at_eos", 2, r"dynin_stop_at_eos=2 is invalid: expected `bool"),
        ("dynin_stop_at_eos", [1], r"dynin_stop_at_eos=\[1\] is invalid: expected `bool"),
        ("dynin_task", "sing", r"dynin_task='sing' is invalid: use one of 't2t'"),
        ("dynin_stepz", 4, r"unknown option dynin_stepz; did you mean dynin_steps\? options are"),
        ("dynin_", 4, r"unknown option dynin_; options are dynin_task, dynin_steps"),
        ("dynin_zzzzzz", 4, r"unknown option dynin_zzzzzz; options are"),
    ],
)
def test_refusals_name_value_rule_and_way_out(key, value, message):
    with pytest.raises(ValueError, match=message):
        DenoiseParams.parse({key: value})


def test_to_sampling_params_checks_what_was_constructed():
    pytest.importorskip("vllm", reason="the parameters are vLLM's")
    with pytest.raises(ValueError, match="dynin_steps=0 is invalid"):
        DenoiseParams(steps=0).to_sampling_params(max_tokens=4)


def test_what_is_set_later_is_what_is_stated():
    """People change parameters and use them again."""
    pytest.importorskip("vllm")
    params = DenoiseParams().to_sampling_params(max_tokens=33)
    assert stated(params) == {"max_tokens": 33, "temperature": None}
    params.max_tokens = 32
    assert stated(params)["max_tokens"] == 32
    params.temperature = 0.5
    assert stated(params.clone()) == {"max_tokens": 32, "temperature": 0.5}
