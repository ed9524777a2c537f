"""The loss of a draft head: chunked, over a vocabulary that may be sharded, for one of several objectives."""

from .chunked import Totals, automatic_chunk, chunked_loss
from .objectives import Objective

__all__ = ["Objective", "Totals", "automatic_chunk", "chunked_loss"]
