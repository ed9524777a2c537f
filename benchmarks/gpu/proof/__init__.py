"""Everything below ``benchmarks/gpu`` on one machine, in one go.

    python -m benchmarks.gpu.proof --examples VERL_CHECKOUT [--gpus 0,1,2,3] [--limit 1500]

Runs as many jobs side by side as there are GPUs for, the most important first. What each of them leaves (a JSON
document, logs) comes together in one folder, and a second call goes on where the first had to stop.
"""
