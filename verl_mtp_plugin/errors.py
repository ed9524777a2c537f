"""Errors a user may meet. Every message says what was found, what was expected and what to do."""

from __future__ import annotations

from functools import partial
from reprlib import Repr
from typing import Any, Final


class MtpPluginError(RuntimeError):
    """Base of all errors of this package."""

    def __init__(self, *, found: str, expected: str, advice: str) -> None:
        self.found = found
        self.expected = expected
        self.advice = advice
        super().__init__(f"verl-mtp-plugin: found {found}; expected {expected}. {advice}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray carries errors from one process to another, and keyword-only arguments are not among ``args``."""
        fields = {name: value for name, value in vars(self).items() if not name.startswith("__")}
        return partial(type(self), **fields), ()


class SettingsError(MtpPluginError, ValueError):
    """A switch has a value that is not one of its choices."""


class DefinitionError(MtpPluginError, TypeError, ValueError):
    """A patch, model or hook of some package is not what it must be."""


class UnsupportedError(MtpPluginError, NotImplementedError):
    """The installed versions cannot do what was asked for."""


class MissingWeightsError(MtpPluginError):
    """A checkpoint, or what is exported, lacks weights of MTP layers that the model has."""


class AmbiguousWeightsError(MtpPluginError):
    """What is exported has a tensor twice, or copies of one that should be alike differ."""


class PatchRequiredError(MtpPluginError):
    """MTP is used, but a patch it must not run without is not in place."""


class ForeignPatchError(MtpPluginError):
    """Somebody else replaced an attribute after we did, so that restoring it would undo their work."""


class UnevenClusterError(MtpPluginError):
    """The processes of one job do not run the same versions or patches (strict mode)."""


class WeightSyncError(MtpPluginError):
    """A weight sync failed. The message says what became of the replicas.

    Attributes:
        replicas: names of those that are BAD now; if there are none, of those that failed and serve again. Empty in
            an error that comes from one server's process.
        step: the step that failed first, such as ``drain`` or ``transfer``; "" in such an error.
    """

    def __init__(
        self, *, found: str, expected: str, advice: str, replicas: tuple[str, ...] = (), step: str = ""
    ) -> None:
        self.replicas = replicas
        self.step = step
        super().__init__(found=found, expected=expected, advice=advice)


#: Characters of a foreign value that a message holds at most.
_SHOWN: Final = 200
_repr: Final = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _SHOWN
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = 12


def shown(value: Any) -> str:
    """``repr(value)`` for a message: never long, and never raising, whatever a package hands over."""
    try:
        return _repr.repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def said(error: BaseException) -> str:
    """What an error of a package says, with its type: one line, never long, and never raising."""
    if isinstance(error, MtpPluginError):
        return f"found {error.found}; expected {error.expected}. {error.advice}"
    try:
        text = " ".join(str(error)[: 5 * _SHOWN].split())
    except Exception:
        text = "(its message cannot be read)"
    text = text if len(text) <= 3 * _SHOWN else f"{text[: 3 * _SHOWN]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
