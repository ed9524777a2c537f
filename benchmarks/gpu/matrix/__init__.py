"""The checks of tests/contract/parallel on GPUs: real CUDA, NCCL and TransformerEngine, bf16, packed sequences (thd).

    python -m benchmarks.gpu.matrix --megatron-core 0.16.1 --gpus 2 --out DIR     # in an environment with that release
    python -m benchmarks.gpu.matrix.all --plugin . --gpus 2 --out DIR             # makes the environments and runs all
    python -m benchmarks.gpu.matrix --megatron-core 0.16.1 --rehearse --out DIR   # on a machine without a GPU
    python -m benchmarks.gpu.matrix.report DIR                                    # docs/RESULTS.md from the results

The same as in tests/contract/parallel: the checks themselves, the steps through Megatron's schedules and gradient
reduction, how a batch is cut for a rank, and the reference, one process with the whole model in fp64.

Not the same: models come from TransformerEngine's layer spec, in bf16 and with heads of 64, and MTP training is asked
for by verl's own functions, with the plugin and without. Gradients are close to the reference within what bf16 leaves
(:data:`.cell.TOLERANCE`). Whether the same step twice gives the same bits is a check of its own (``repeatable``); what
has to be equal bit for bit can be so only where that holds. No pipelines and no experts: packed sequences, on one GPU
and two, with tensor, sequence and context parallelism.
"""
