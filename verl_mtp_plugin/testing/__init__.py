"""Stand-ins with which real Megatron runs on a machine without a GPU.

For tests, examples and bug reports. Nothing in the plugin proper imports this package, so none of it is ever active
in a training job that did not ask for it by name.
"""
