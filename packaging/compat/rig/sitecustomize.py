"""Python imports this file at its start; where DYNIN_RIG=1, vLLM's compiled parts are replaced.

Not in the workers that decode media: they know nothing of vLLM, there is one for each file, and
importing it takes seconds.
"""

import os
import sys

if os.environ.get("DYNIN_RIG") == "1" and not any(
    argument.startswith("vllm_dynin.processors.codecs.") for argument in sys.orig_argv
):
    import vllm_on_cpu  # noqa: F401
