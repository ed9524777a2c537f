"""Whether the drafter holds what the trainer sent, from digests of both. Standard library only.

The trainer's tensors are whole and named as in a Hugging Face checkpoint; the drafter's are sharded over ranks, some
are several tensors in one (``qkv_proj``), and their paths are SGLang's. Two things survive that: the last parts of a
name, and the multiset of the numbers, whose digests add up (:mod:`.digest`). So a parameter is *comparable* where the
trainer sent tensors of the names it is made of, with as many elements in all; and it then must *hold* what one such
group of tensors holds::

    sum over ranks of digest(shard) == sum over the group of m * digest(tensor)   (modulo 2**64)

where ``m`` is on how many ranks each number lies (it divides their number; norms are on all of them). At first several
groups may fit, since a norm is named alike in every layer. Those whose numbers differ are crossed out for good.

What is proven for a comparable parameter: bit for bit the trainer's numbers are there, on the ranks together, none
missing and none of an older version. Not proven: their order within the parameter. Quantised parameters, and those of
names unlike the trainer's, are not comparable, and are named as such.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .tensor_names import made_of, unit

MODULUS: Final = 1 << 64
#: Types that loading casts to and nothing else.
COMPARABLE: Final = frozenset({"bfloat16", "float16", "float32"})


@dataclass(frozen=True, slots=True)
class Amount:
    """How many elements there are, and their digest."""

    numel: int
    digest: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.numel + other.numel, (self.digest + other.digest) % MODULUS)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the drafter, over all ranks."""

    name: str
    dtype: str
    ranks: int
    total: Amount

    @property
    def made_of(self) -> tuple[str, ...]:
        """The last parts of the names of the tensors that it is made of."""
        return made_of(self.name)


def over_ranks(ranks: Sequence[Mapping[str, Sequence[Any]]]) -> list[Parameter]:
    """Parameters from what every rank says of its shards: name -> number of elements, dtype, digest or None."""
    found = []
    for name in dict.fromkeys(name for rank in ranks for name in rank):
        parts = [rank[name] for rank in ranks if name in rank]
        total = Amount(sum(numel for numel, _, _ in parts), sum(digest or 0 for _, _, digest in parts) % MODULUS)
        found.append(Parameter(name, parts[0][1], len(parts), total))
    return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of the drafter's parameters."""

    held: tuple[str, ...]
    different: Mapping[str, tuple[str, ...]]  # parameter -> the trainer's tensors that it was compared with
    uncompared: tuple[str, ...]

    def __or__(self, other: Comparison) -> Comparison:
        """Of two schedulers."""
        different = {**self.different, **other.different}
        return Comparison(self.held + other.held, different, self.uncompared + other.uncompared)


@dataclass(slots=True)
class Ledger:
    """What the trainer sent in one sync: by dtype, path and last parts of the name."""

    amounts: dict[tuple[str, str, str], Amount] = field(default_factory=dict)

    def add(self, name: str, dtype: str, amount: Amount) -> None:
        key = (dtype, *unit(name))
        known = self.amounts.get(key)
        self.amounts[key] = amount if known is None else known + amount

    def groups(self, parameter: Parameter) -> Iterator[str]:
        """Paths under which the trainer sent everything that the parameter is made of."""
        first, *others = parameter.made_of
        for dtype, path, last in self.amounts:
            if (dtype, last) == (parameter.dtype, first) and all((dtype, path, o) in self.amounts for o in others):
                yield path

    def tensors(self, parameter: Parameter, path: str) -> list[Amount]:
        return [self.amounts[parameter.dtype, path, last] for last in parameter.made_of]


class Book:
    """Which groups of tensors each parameter may be made of, kept from one sync to the next.

    Args:
        complete: only tensors of the drafter are in the ledgers, so that a parameter that none of them fits is wrong.
            Otherwise it may be made of something of another name, and is not comparable until it has held once.
    """

    def __init__(self, *, complete: bool) -> None:
        self._complete = complete
        self._paths: dict[str, tuple[str, ...]] = {}

    def may_need(self, path: str) -> bool:
        """Whether tensors under this path may still be what a parameter is made of."""
        return not self._paths or any(path in paths for paths in self._paths.values())

    def compare(self, parameters: Sequence[Parameter], sent: Ledger) -> Comparison:
        """Compare, and cross out the groups that differ. Where all do, they stay, since the drafter is at fault."""
        held, different, uncompared = [], {}, []
        for parameter in parameters:
            paths = [p for p in sent.groups(parameter) if _as_many(parameter, sent.tensors(parameter, p))]
            known = self._paths.get(parameter.name)
            if known is not None:
                paths = [path for path in paths if path in known]
            if parameter.dtype not in COMPARABLE or (known is None and not paths):
                uncompared.append(parameter.name)
                continue
            same = tuple(path for path in paths if _same(parameter, sent.tensors(parameter, path)))
            if same:
                self._paths[parameter.name] = same
                held.append(parameter.name)
            elif known is None and not self._complete:
                uncompared.append(parameter.name)
            else:
                tried = self._paths.setdefault(parameter.name, tuple(paths))
                different[parameter.name] = tuple(
                    f"{path}.{last}".lstrip(".") for path in tried for last in parameter.made_of
                )
        return Comparison(tuple(held), different, tuple(uncompared))


def _multiples(parameter: Parameter, tensors: Sequence[Amount]) -> Iterator[tuple[int, ...]]:
    """On how many ranks each tensor may be, so that the numbers of elements agree."""
    divisors = [m for m in range(1, parameter.ranks + 1) if parameter.ranks % m == 0]
    for multiples in itertools.product(divisors, repeat=len(tensors)):
        if sum(m * t.numel for m, t in zip(multiples, tensors)) == parameter.total.numel:
            yield multiples


def _as_many(parameter: Parameter, tensors: Sequence[Amount]) -> bool:
    return next(_multiples(parameter, tensors), None) is not None


def _same(parameter: Parameter, tensors: Sequence[Amount]) -> bool:
    return any(
        sum(m * t.digest for m, t in zip(multiples, tensors)) % MODULUS == parameter.total.digest
        for multiples in _multiples(parameter, tensors)
    )
