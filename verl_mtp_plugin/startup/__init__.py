"""What the installer also puts beside the package: a ``.pth`` line and the module it imports.

Both are copied to the top of site-packages (``force-include`` in pyproject.toml), in wheels and editable installs.
"""
