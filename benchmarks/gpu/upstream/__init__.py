"""Upstream's own example scripts, run as they are: environment variables before them, overrides behind them."""
