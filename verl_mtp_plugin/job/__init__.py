"""What concerns the whole job: the switch in verl's config, its way to every worker, and whether all nodes agree."""
