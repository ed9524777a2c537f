"""The ``verl-mtp`` command."""
