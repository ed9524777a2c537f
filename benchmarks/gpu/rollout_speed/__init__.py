"""What an accepted draft is worth: SGLang's tokens/s at given acceptance, on a model of MiMo-7B's sizes.

    python -m benchmarks.gpu.rollout_speed --out DIR [--rates 0.44,0.54] [--batches 8,32,128]

The small model of the other benchmarks spends its time on launching kernels, where speculation cannot pay. Here weights
are dummies, and acceptance is prescribed by SGLang's own ``SGLANG_SIMULATE_ACC_LEN``; everything is computed as if it
were real: drafts, verification, sampling. An engine is started for each rate, and one without speculation.
"""
