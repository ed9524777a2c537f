"""Between Hugging Face's weights and Megatron's: which bridge supports a model's MTP, and whether all of it arrives."""
