"""The contract over several processes: each layout of tensor, context, pipeline, expert and data parallelism on two.

The real megatron-core cuts the model, communicates (gloo) and reduces the gradients: ``DistributedDataParallel``, its
schedules, ``finalize_model_grads``. The expected gradients are those of one process that holds everything.
"""
