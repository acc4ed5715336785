"""The probe of a result: by the data set, or a Broden folder."""

from pathlib import Path

from bench.analysis.probes import own
from bench.analysis.probes.base import Probe
from bench.analysis.probes.broden import Broden


def probe(chosen: str, context, count: int) -> Probe:
    """`chosen`: "data" for the data set's own (its first `count` test images), else a Broden folder. Raises UsageError."""
    if chosen != "data":
        return Broden(Path(chosen), context.dataset, context.images, count)
    kind = own.ExactPixels if context.dataset.test_concepts is not None else own.ColoursAndClasses
    return kind(context.dataset, context.images, count)
