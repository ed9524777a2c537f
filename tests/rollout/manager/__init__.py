"""verl's own CheckpointEngineManager, worker groups and replicas, one process per release; only Ray is a stand-in."""
