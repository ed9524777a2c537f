"""The requests of one training step, what their engine counts, and what follows from that. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

#: ``speculative_num_draft_tokens`` of verl's mtp config: SGLang counts the target's own token among them.
DRAFT_TOKENS = 4
DRAFTS_PER_STEP = DRAFT_TOKENS - 1
RATE, LENGTH = "rollout/spec_accept_rate", "rollout/spec_accept_length"
FIELDS = ("spec_num_draft_tokens", "spec_num_accepted_tokens", "spec_num_verify_steps")


@dataclass(frozen=True)
class Request:
    """What a stand-in scheduler reports for the request of this name."""

    name: str
    verify: int
    accepted: int
    tokens: int = 8

    @property
    def fields(self) -> dict[str, int]:
        return dict(zip(FIELDS, (self.verify * DRAFTS_PER_STEP, self.accepted, self.verify)))


LONG = Request("long", verify=200, accepted=528)  # 88 %
SHORT = Request("short", verify=4, accepted=3)
NONE_ACCEPTED = Request("none_accepted", verify=2, accepted=0)
#: Its first token, which prefill makes, is its last.
ONE_TOKEN = Request("one_token", verify=0, accepted=0, tokens=1)
#: Aborted by a weight sync while it waits.
ABORTED = Request("aborted", verify=0, accepted=0)
FINISHED = (LONG, SHORT, NONE_ACCEPTED, ONE_TOKEN)
ALL = (*FINISHED, ABORTED)


def expected(requests: tuple[Request, ...] = ALL) -> dict[str, float]:
    """Both metrics from the counts, by their definition."""
    accepted = sum(request.accepted for request in requests)
    verify = sum(request.verify for request in requests)
    return {RATE: accepted / (verify * DRAFTS_PER_STEP), LENGTH: 1 + accepted / verify}


def mean_of_ratios(requests: tuple[Request, ...] = ALL) -> dict[str, float]:
    """What verl 0.8 makes of right counts: each request's ratio, zero without a verify step."""
    made = [request for request in requests if request.verify]
    rates = sum(request.accepted / (request.verify * DRAFTS_PER_STEP) for request in made)
    lengths = sum(1 + request.accepted / request.verify for request in made)
    return {RATE: rates / len(requests), LENGTH: lengths / len(requests)}
