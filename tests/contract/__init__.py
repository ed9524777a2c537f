"""The contract matrix: what MTP must do on every pair of verl and megatron-core, on the real packages.

``stacks`` says which pairs there are, ``cell`` runs the checks of one pair in a process of its own, ``test_matrix``
asks for all of them to pass with the plugin, and ``generate`` writes down what happens with it and without it.
"""
