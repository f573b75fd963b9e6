"""The numbers of several servers as those of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


class _Given:
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def summed(texts: Sequence[str]) -> str:
    """Prometheus' text of the sums of all samples that have the same name and labels; of times of creation, the
    first."""
    families: dict[str, Metric] = {}
    values: defaultdict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = defaultdict(dict)
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                key, own = (sample.name, tuple(sorted(sample.labels.items()))), values[family.name]
                known = own.get(key)
                if known is None:
                    own[key] = sample.value
                else:
                    own[key] = min(known, sample.value) if sample.name.endswith("_created") else known + sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Given(list(families.values())))
    return generate_latest(registry).decode()
