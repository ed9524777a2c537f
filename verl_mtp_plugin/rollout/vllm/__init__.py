"""vLLM servers: the KV cache out of the way of a weight sync, drafter weights kept, acceptance read."""
