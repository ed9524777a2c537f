"""verl's fused log-prob kernels together with MTP training."""
