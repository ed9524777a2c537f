"""What runs beside Megatron: MTP in ``GPTModel``, and the bridges that build it."""
