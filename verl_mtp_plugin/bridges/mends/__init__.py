"""What bridges do wrongly with a model whose MTP they otherwise support, and this package mends."""
