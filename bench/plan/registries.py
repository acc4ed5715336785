"""What the plan and the estimate must know of methods and networks, read from the registries."""

from collections.abc import Iterator, Mapping

import models
from bench.plan import datasets, members
from bench.plan.expand import MethodFacts, Registries, images
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from methods import registry
from methods.base import Pretraining


def of_group(group: Group) -> Mapping[str, MethodFacts]:
    """Per row: whether its method can do the pair and whether the teacher changes its numbers."""
    p = group.protocol
    found = members.resolve(group, "", datasets.get(p.dataset).classes, p.image_size, images(p), None)
    stages = {m.row: None if m.skipped else _pretraining(m) for m in found}
    before = {row: stage.epochs if stage else 0 for row, stage in stages.items()}
    return {m.row: MethodFacts(m.run.id, m.skipped, m.run.teacher is not None, before[m.row], m.run.hyper) for m in found}


def _pretraining(member: members.Member) -> Pretraining | None:
    with members.asking(member.run.method):
        return member.pretraining()


class _Titles(Mapping[str, str]):
    """name -> title. Lists the registered methods and has, besides, any two that can be joined by "+" (raises MethodError where they cannot).
    A broken file's name raises MethodError with its error."""

    def __getitem__(self, name: str) -> str:
        if "+" not in name and name not in registry.names() and name not in registry.broken():
            raise KeyError(name)
        return registry.get(name).title

    def __iter__(self) -> Iterator[str]:
        return iter(registry.names())

    def __len__(self) -> int:
        return len(registry.names())


def read(protocol: Protocol) -> Registries:
    """The registries as seen under a protocol."""
    classes = datasets.get(protocol.dataset).classes
    return Registries(_Titles(), tuple(models.names()), of_group, lambda name: models.macs(name, classes, protocol.image_size))
