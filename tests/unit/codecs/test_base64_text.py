"""Files written as text: every form that browsers and SDKs send, and what is refused."""

import base64
import textwrap
from urllib.parse import quote

import numpy as np
import pytest

from vllm_dynin.processors.codecs.base64_text import from_base64, is_data_url, split_data_url
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

FILES = [np.random.default_rng(n).bytes(n) for n in (1, 2, 3, 57, 1000, 1001, 1002)]

FORMS = {
    "plain": lambda s: s,
    "bytes": lambda s: s.encode(),
    "lines of 76": lambda s: "\n".join(textwrap.wrap(s, 76)) + "\n",
    "lines of 64, CRLF": lambda s: "\r\n".join(textwrap.wrap(s, 64)) + "\r\n",
    "spaces and tabs": lambda s: " " + "\t ".join(textwrap.wrap(s, 10)),
    "URL-safe": lambda s: s.translate(str.maketrans("+/", "-_")),
    "URL-safe, no padding": lambda s: s.translate(str.maketrans("+/", "-_")).rstrip("="),
    "no padding": lambda s: s.rstrip("="),
    "too much padding": lambda s: s.rstrip("=") + "====",
    "both alphabets": lambda s: s.replace("+", "-"),
    "percent signs": lambda s: quote(s, safe=""),
    "data URL": lambda s: "data:audio/wav;base64," + s,
    "data URL in capitals": lambda s: "DATA:Audio/WAV;BASE64," + s,
    "data URL with parameters": lambda s: "data:audio/webm;codecs=opus;base64," + s,
    "data URL without a type": lambda s: "data:;base64," + s,
    "data URL with spaces": lambda s: " data: audio/wav ; base64 ,\n" + s,
    "data URL in lines": lambda s: "data:audio/wav;base64,\n" + "\n".join(textwrap.wrap(s, 76)),
    "data URL with percent signs": lambda s: "data:audio/wav;base64," + quote(s, safe=""),
    "data URL, URL-safe": lambda s: "data:a/b;Base64," + s.translate(str.maketrans("+/", "-_")),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_forms(form):
    for data in FILES:
        assert from_base64(form(base64.b64encode(data).decode())) == data


REFUSED = {
    "empty": ("", "empty"),
    "white space": (" \n", "empty"),
    "padding": ("====", "empty"),
    "one character": ("QUJDR", "5 characters"),
    "a star": ("QUJ*D", "character 3 of the base64 is '*'"),
    "Python's bytes": ("b'QUJD'", 'character 1 of the base64 is "\'"'),
    "padding inside": ("QQ==QUJD", "character 2 of the base64 is '='"),
    "a letter of another script": ("QUJDé", "character 4 of the base64 is 'é'"),
    "NUL": ("QUJD\0", "'\\\\x00'"),
    "percent sign of nothing": ("QUJD%zz", "'%'"),
    "JSON": ('{"data": "QUJD"}', "'{'"),
    "hex": ("0xDE:AD", "':'"),
    "no comma": ("data:audio/wav;base64", "no comma"),
    "not base64": ("data:audio/wav,QUJD", "does not say ;base64"),
    "another encoding": ("data:audio/wav;base32,QUJD", "does not say ;base64"),
    "a list": ("data:video/jpeg;base64,QUJD,QUJD", "','"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused(text, message):
    with pytest.raises(MediaError, match=message):
        from_base64(text)


def test_too_large():
    limits = MediaLimits(max_bytes=1000)
    assert len(from_base64(base64.b64encode(bytes(1000)), limits)) == 1000
    with pytest.raises(MediaError, match="max_bytes=1000"):
        from_base64(base64.b64encode(bytes(1004)), limits)


def test_data_urls():
    assert split_data_url("DATA:Video/JPEG;x=1;base64,YQ,Yg") == ("video/jpeg", "YQ,Yg")
    assert is_data_url(" Data:,") and not is_data_url("http://a/data:")
