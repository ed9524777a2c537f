"""What MTP costs in verl's own Megatron engine on one GPU: training step and log-prob recompute.

    python -m benchmarks.gpu.costs --model MODEL --out DIR [--profile]      # three variants, in turns; costs.json
    python -m benchmarks.gpu.costs --rehearse --out DIR                     # on a machine without a GPU
    python -m benchmarks.gpu.costs.report DIR                               # docs/RESULTS.md from that

The variants, each in a process of its own: with the plugin, verl as released (``VERL_MTP_PLUGIN=off``), and the same
model without MTP. All have their models on the GPU at once and take their turns, so that a machine that slows down does
so for all of them. Every step is on new sequences of other lengths, as in training; beside it, steps on the same batch
each time and in small micro-batches, which tell whether shapes or sizes cost something. ``--profile`` writes where the
time goes, by GPU kernels, operators and Python functions.
"""
