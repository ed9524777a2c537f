"""Drafts proposed and drafts accepted: what engines report, and the two metrics made of it. Standard library only.

A *verify step* is one pass of the target model over the drafts of one request; it yields the accepted drafts and one
token of the target's own. Hence over any number of requests::

    rollout/spec_accept_rate   = sum(accepted) / sum(proposed)
    rollout/spec_accept_length = 1 + sum(accepted) / sum(verify steps)      [tokens per verify step]

Sums over requests, not means of their ratios: a request of ten tokens does not weigh as much as one of ten thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

RATE: Final = "rollout/spec_accept_rate"
LENGTH: Final = "rollout/spec_accept_length"

#: Under which verl (>= 0.8) carries the counts of a request, in the order of :class:`Counts`.
FIELDS: Final = ("spec_num_draft_tokens", "spec_num_accepted_tokens", "spec_num_verify_steps")
#: Under which verl (>= 0.8) looks for them in SGLang's ``meta_info``: the names of SGLang <= 0.5.10.
VERL_READS: Final = ("spec_draft_token_num", "spec_accept_token_num", "spec_verify_ct")
#: Names of (proposed, accepted) in SGLang's ``meta_info``: >= 0.5.12, 0.5.11, <= 0.5.10.
DRAFT_NAMES: Final = (
    ("spec_num_proposed_drafts", "spec_num_correct_drafts"),
    ("spec_proposed_drafts", "spec_accepted_drafts"),
    ("spec_draft_token_num", "spec_accept_token_num"),
)
#: In every SGLang from 0.5.6 to 0.5.23.
VERIFY_NAME, RATE_NAME = "spec_verify_ct", "spec_accept_rate"


@dataclass(frozen=True, slots=True)
class Counts:
    """Speculative decoding of one request, or of many: drafts proposed, drafts accepted, verify steps."""

    proposed: int = 0
    accepted: int = 0
    verify: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.proposed + other.proposed, self.accepted + other.accepted, self.verify + other.verify)

    def under(self, names: Iterable[str]) -> dict[str, int]:
        """The three numbers under these names, such as :data:`FIELDS`."""
        return dict(zip(names, (self.proposed, self.accepted, self.verify), strict=True))


NOTHING: Final = Counts()


def of_meta_info(meta_info: Mapping[str, Any], drafts_per_step: int = 0) -> Counts | None:
    """What SGLang's ``meta_info`` says of a request; None if it says nothing or no verify step was made.

    Args:
        meta_info: as SGLang made it, any release.
        drafts_per_step: drafts proposed in each verify step, for a release that reports rate and steps but no counts
            under a known name: SGLang's rate is accepted / (steps * drafts per step) in all releases. 0: not known.
    """
    verify = _number(meta_info.get(VERIFY_NAME))
    if not verify:
        return None
    for proposed_name, accepted_name in DRAFT_NAMES:
        proposed, accepted = _number(meta_info.get(proposed_name)), _number(meta_info.get(accepted_name))
        if proposed is not None and accepted is not None:
            return Counts(proposed, accepted, verify)
    rate = meta_info.get(RATE_NAME)
    if rate is None or drafts_per_step < 1:
        return None
    return Counts(verify * drafts_per_step, round(float(rate) * verify * drafts_per_step), verify)


def of_fields(fields: Mapping[str, Any] | None) -> Counts | None:
    """The counts in a sample's ``extra_fields``; None if it carries none."""
    numbers = [_number((fields or {}).get(name)) for name in FIELDS]
    if any(number is None for number in numbers):
        return None
    return Counts(*(number or 0 for number in numbers))


def write(fields: MutableMapping[str, Any], counts: Counts | None) -> None:
    """Put ``counts`` where verl carries them.

    Zeros if there are none: verl 0.8.0 asks every sample for the three keys, the later ones drop a whole step of
    which one sample lacks them, and 0.7.1 joins batches only if all have the same keys. :func:`metrics` leaves a
    sample without verify steps out.
    """
    fields.update((counts or NOTHING).under(FIELDS))


def total(columns: Iterable[Iterable[Any]], keep: Iterable[Any] | None = None) -> Counts:
    """The sum over samples, given as the three columns of :data:`FIELDS`.

    Args:
        columns: three columns [samples] of numbers; None where a sample carries none.
        keep: [samples]; false for padding.
    """
    rows = list(zip(*columns, strict=True))
    kept = [True] * len(rows) if keep is None else [bool(value) for value in keep]
    result = NOTHING
    for row, wanted in zip(rows, kept, strict=True):
        counts = of_fields(dict(zip(FIELDS, row, strict=True)))
        if wanted and counts is not None and counts.verify > 0:
            result += counts
    return result


def metrics(counts: Counts) -> dict[str, float]:
    """Both metrics; none without a verify step, since nothing measured is not zero."""
    if counts.verify <= 0:
        return {}
    length = {LENGTH: 1.0 + counts.accepted / counts.verify}
    return {RATE: counts.accepted / counts.proposed, **length} if counts.proposed > 0 else length


def asks_for_mtp(config: Any) -> bool:
    """Whether this rollout config of verl turns speculative decoding with MTP on."""
    mtp = getattr(config, "mtp", None)
    return bool(getattr(mtp, "enable", False) and getattr(mtp, "enable_rollout", False))


def uses_mtp(*configs: Any) -> bool:
    """Whether one of these configs of verl (rollout, model) has MTP on, be it for training alone."""
    switches = (getattr(config, "mtp", None) for config in configs)
    return any(mtp is not None and mtp.get("enable", False) for mtp in switches)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
