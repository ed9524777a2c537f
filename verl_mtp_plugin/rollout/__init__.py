"""Rollout servers: weight sync, KV cache, speculative decoding's metrics. Light to import."""
