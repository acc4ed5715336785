"""What the plan and the estimate must know of methods and networks, read from the registries."""

from collections.abc import Mapping
from functools import cache

import models
from bench.plan import datasets, members
from bench.plan.expand import MethodFacts, Registries, images
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from methods import registry


@cache
def _macs(name: str, classes: int, image_size: int) -> int:
    return models.macs(name, classes, image_size)


def of_group(group: Group) -> Mapping[str, MethodFacts]:
    """Per method: whether it can do the pair and whether the teacher changes its numbers."""
    p = group.protocol
    found = members.resolve(group, "", datasets.get(p.dataset).classes, p.image_size, images(p), None)
    return {m.run.method: MethodFacts(m.run.id, m.skipped, m.run.teacher is not None, m.run.hyper) for m in found}


def read(protocol: Protocol) -> Registries:
    """The registries as seen under a protocol."""
    classes = datasets.get(protocol.dataset).classes
    titles = {name: registry.get(name).title for name in registry.names()}
    return Registries(titles, tuple(models.names()), of_group, lambda name: _macs(name, classes, protocol.image_size))
