"""Tests: ``unit`` needs no stack, ``stack`` and ``contract`` run the real packages."""
