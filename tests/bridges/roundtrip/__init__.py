"""Hugging Face -> Megatron -> Hugging Face, bit for bit, through every bridge that says it supports a family."""
