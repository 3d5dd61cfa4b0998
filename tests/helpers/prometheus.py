"""What a server's `/metrics` says."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Metrics:
    """Metrics at one moment.

    Args:
        http: client of the server.
    """

    def __init__(self, http: httpx.Client) -> None:
        families = text_string_to_metric_families(http.get("/metrics").text)
        self._samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Sum of a metric over the labels that are not given; 0 where there is none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def names(self) -> set[str]:
        """Of all metrics."""
        return {sample.name for sample in self._samples}
