"""No MTP weight is random, lost or old in silence: loading, what goes to the rollout engine, and checkpoints."""
