"""verl's own CheckpointEngineManager, worker groups and replicas, in one process per release; only Ray is a stand-in."""
