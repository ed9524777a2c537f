"""Weight syncs of verl's standalone SGLang rollout on one GPU: real verl, real Ray, real SGLang with MTP speculation.

    python -m benchmarks.gpu.weight_sync --model FOLDER     # a MiMo whose drafts are accepted; writes one JSON file
    python -m benchmarks.gpu.weight_sync --rehearse         # the same on a machine without a GPU, with stand-ins
    python -m benchmarks.gpu.weight_sync.report             # docs/RESULTS.md from that file

Only the transport is small enough for one GPU: weights go through a file into buckets on the GPU (:mod:`.transfer`).
"""
