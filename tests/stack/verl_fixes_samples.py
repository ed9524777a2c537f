"""Three samples of prompt and response as token ids, for :mod:`.watched_engine` and the tests."""

from __future__ import annotations

from typing import Final

PROMPTS: Final = ([2, 9, 8, 7, 3], [2, 6, 3], [2, 5, 5, 3])
RESPONSES: Final = ([11, 12, 13, 1], [14, 15, 1], [16, 17, 18, 19, 1])
#: Which response tokens are trained; the third sample has called a tool.
MASKS: Final = ([1, 1, 1, 1], [1, 1, 1], [1, 0, 0, 1, 1])
#: How a batch holds its loss mask. ``padded``: of responses, filled up on the right, as PPO has it; ``response``: of
#: responses, nested; ``full``: of whole sequences, nested, as SFT has it; ``every``: the same with all tokens trained.
KINDS: Final = ("padded", "response", "full", "every")
#: Sequences packed one after the other, or each in a row of its own.
FORMS: Final = ("thd", "bshd")
