"""A running daemon's metrics, as Prometheus parses them."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dapd.admin.gauges import Gauges
from dapd.testing.pair import Aggregator

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TEXT = "text/plain"


async def exposition(gauges: Gauges, side: Aggregator, accept: str = OPENMETRICS) -> str:
    """The text of all metrics, now."""
    await gauges.refresh()
    body, content_type = side.context.metrics.exposition(accept)
    assert content_type.startswith(accept.partition(";")[0])
    return body.decode()


async def families(gauges: Gauges, side: Aggregator, accept: str = OPENMETRICS) -> Iterable[Metric]:
    """The same, parsed."""
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    return parse(await exposition(gauges, side, accept))


async def samples(gauges: Gauges, side: Aggregator, accept: str = OPENMETRICS) -> dict[str, float]:
    """Every sample by its name and labels."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())):
        sample.value
        for family in await families(gauges, side, accept)
        for sample in family.samples
    }  # fmt: skip
