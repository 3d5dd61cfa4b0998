"""Python imports this file at its start; where DYNIN_RIG=1, vLLM's compiled parts are replaced."""

import os

if os.environ.get("DYNIN_RIG") == "1":
    import vllm_on_cpu  # noqa: F401
