"""Errors a user may meet. Every message says what was found, what was expected and what to do."""

from __future__ import annotations


class MtpPluginError(RuntimeError):
    """Base of all errors of this package."""

    def __init__(self, *, found: str, expected: str, advice: str) -> None:
        self.found = found
        self.expected = expected
        self.advice = advice
        super().__init__(f"verl-mtp-plugin: found {found}; expected {expected}. {advice}")


class SettingsError(MtpPluginError, ValueError):
    """A switch has a value that is not one of its choices."""


class UnsupportedError(MtpPluginError, NotImplementedError):
    """The installed versions cannot do what was asked for."""


class MissingWeightsError(MtpPluginError):
    """A checkpoint, or what is exported, lacks weights of MTP layers that the model has."""


class PatchRequiredError(MtpPluginError):
    """MTP is used, but a patch it must not run without is not in place."""


class ForeignPatchError(MtpPluginError):
    """Somebody else replaced an attribute after we did, so that restoring it would undo their work."""


class UnevenClusterError(MtpPluginError):
    """The processes of one job do not run the same versions or patches (strict mode)."""
