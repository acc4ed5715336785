"""The commands that list what is declared: pairs, profiles."""

from dataclasses import dataclass

from bench.plan import names, protocols
from bench.plan.profiles import ALL_PAIRS, PROFILES


@dataclass(frozen=True)
class Pairs:
    """The declared pairs, and the networks of which others can be made."""

    def main(self) -> int:
        for pair in ALL_PAIRS:
            print(pair.name)
        print(f"\nany two of these networks make a pair, as teacher-student: {', '.join(names.networks())}")
        return 0


@dataclass(frozen=True)
class Profiles:
    """The declared profiles and protocols."""

    def main(self) -> int:
        for p in PROFILES.values():
            rows = ", ".join(p.methods) if p.methods else "every registered method"
            print(f"{p.name}: {p.summary}\n  protocol {p.protocol}, seeds {', '.join(map(str, p.seeds))}, precision {p.precision}")
            print(f"  pairs {', '.join(pair.name for pair in p.pairs)}\n  rows {rows}")
            if p.variant:
                print(f"  as a variant: {', '.join(f'{method}.{field}={value}' for method, field, value in p.variant)}")
        print("\nprotocols")
        for one in protocols.PROTOCOLS.values():
            milestones = "/".join(map(str, one.milestones))
            part = f", {100 * one.sample_rate:g}% of the training set" if one.sample_rate < 1 else ""
            print(f"  {one.name}: {one.dataset}, {one.epochs} epochs, lr {one.lr} x{one.decay} after {milestones}, batch {one.batch}{part}")
        return 0
