"""The files of examples/: parsed, and their fields held against each other and against the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from vllm_dynin import envs

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def kubernetes():
    documents = yaml.safe_load_all((EXAMPLES / "kubernetes/dynin.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((EXAMPLES / "docker/compose.yaml").read_text())


@pytest.fixture(scope="module")
def container(kubernetes):
    (container,) = kubernetes["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


def drain_seconds(options) -> int:
    (value,) = (o.split("=")[1] for o in options if o.startswith("--shutdown-timeout="))
    return int(value)


def test_pods_are_given_time_to_finish(kubernetes, container):
    pod = kubernetes["Deployment"]["spec"]["template"]["spec"]
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > wait + drain_seconds(container["args"])


def test_containers_are_given_time_to_finish(compose):
    service = compose["services"]["dynin"]
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > drain_seconds(service["command"])


def test_objects_belong_together(kubernetes, container):
    deployment, service = kubernetes["Deployment"], kubernetes["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    policy = kubernetes["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= labels.items()
    ports = {port["name"] for port in container["ports"]}
    probes = [container[kind]["httpGet"] for kind in (f"{k}Probe" for k in PROBES)]
    assert {service["spec"]["ports"][0]["targetPort"], *(p["port"] for p in probes)} == ports
    assert {probe["path"] for probe in probes} == {"/health"}
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in volumes}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes if v["name"] == "cache"]
    assert claims == [kubernetes["PersistentVolumeClaim"]["metadata"]["name"]]


PROBES = ("startup", "readiness", "liveness")


def options_of(command) -> list[str]:
    return [option.partition("=")[0] for option in command if option.startswith("--")]


def test_options_are_those_of_the_server(compose, container):
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {"host", "port"} | set(AsyncEngineArgs.__dataclass_fields__)
    for command in (compose["services"]["dynin"]["command"], container["args"]):
        for option in options_of(command):
            assert option.removeprefix("--").replace("-", "_") in known, option


def test_variables_are_those_that_are_read(compose):
    pytest.importorskip("vllm", reason="vLLM reads most of them")
    import vllm.envs

    ours = {value for name, value in vars(envs).items() if name.isupper()}
    for name in compose["services"]["dynin"]["environment"]:
        assert name in ours or name in vllm.envs.environment_variables, name


def test_the_private_ranges_are_those_the_server_refuses(kubernetes):
    import ipaddress

    pytest.importorskip("vllm", reason="the connection is part of the server")
    from vllm_dynin.entrypoints.public_connection import is_public

    block = kubernetes["NetworkPolicy"]["spec"]["egress"][1]["to"][0]["ipBlock"]
    for network in map(ipaddress.ip_network, block["except"]):
        assert not is_public(str(network[1]))
        assert not is_public(str(network[-2]))


def test_the_image_has_a_supported_vllm():
    from packaging.version import Version

    from vllm_dynin.compat import BEYOND, OLDEST

    text = (EXAMPLES / "docker/Dockerfile").read_text()
    tag = re.search(r"^ARG VLLM_TAG=v([\d.]+)$", text, re.MULTILINE)
    assert tag and OLDEST <= Version(tag[1]) < BEYOND
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (EXAMPLES.parent / name).exists(), name


def test_the_image_has_our_version(container):
    assert container["image"].endswith(f":{version('vllm-dynin')}")


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_serve_says_what_it_needs():
    done = subprocess.run(
        [sys.executable, "-c", "import examples.ray_serve.app"],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert 'pip install "ray[serve]' in done.stderr.splitlines()[-1]
