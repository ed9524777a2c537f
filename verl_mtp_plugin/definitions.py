"""What packages describe as data is looked at where it is written: one field of a wrong type is one sentence.

Unseen, ``target="a.b:c"`` would be an AttributeError in the engine, and ``architectures="MyModel"`` a family that
matches no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import DefinitionError, shown


class Fields:
    """The fields of one instance under construction (a dataclass, frozen or not)."""

    def __init__(self, instance: Any, key: str) -> None:
        """``key`` is the field by which the instance is called in messages."""
        self._instance = instance
        self._what = f"{type(instance).__name__} {shown(getattr(instance, key))}"

    def refuse(self, field: str, value: Any, expected: str, advice: str = "") -> DefinitionError:
        """The error for ``field``."""
        return DefinitionError(
            found=f"{self._what}: {field}={shown(value)} ({type(value).__name__})",
            expected=expected,
            advice=advice or f"Correct {field}.",
        )

    def instance(self, field: str, kind: type, expected: str, advice: str = "") -> None:
        """``field`` is a ``kind``."""
        value = getattr(self._instance, field)
        if not isinstance(value, kind):
            raise self.refuse(field, value, expected, advice)

    def text(self, *fields: str, empty: bool = False) -> None:
        """Each field is a string, and holds something unless ``empty``."""
        for field in fields:
            value = getattr(self._instance, field)
            if not isinstance(value, str) or not (empty or value.strip()):
                raise self.refuse(field, value, "a string" if empty else "a string that is not empty")

    def dotted(self, field: str, example: str) -> None:
        """The field is a dotted name, as Python writes it."""
        value = getattr(self._instance, field)
        if not isinstance(value, str) or not all(part.isidentifier() for part in value.split(".")):
            raise self.refuse(field, value, f"a dotted name, such as {example!r}")

    def function(self, *fields: str) -> None:
        """Each field can be called."""
        for field in fields:
            value = getattr(self._instance, field)
            if not callable(value):
                raise self.refuse(field, value, "something that can be called")

    def flag(self, *fields: str) -> None:
        """Each field is True or False."""
        for field in fields:
            self.instance(field, bool, "True or False")

    def texts(self, *fields: str) -> None:
        """Each field is a tuple of strings; a list becomes one."""
        for field in fields:
            value = self.sequence(field, "a tuple of strings")
            wrong = [item for item in value if not isinstance(item, str) or not item.strip()]
            if wrong:
                raise self.refuse(field, value, "a tuple of strings that are not empty")

    def sequence(self, field: str, expected: str) -> tuple[Any, ...]:
        """The field's value as a tuple, which it becomes if it was a list."""
        value = getattr(self._instance, field)
        if not isinstance(value, tuple | list):
            single = f"Write ({shown(value)},) for a single one." if isinstance(value, str) else ""
            raise self.refuse(field, value, expected, single)
        object.__setattr__(self._instance, field, tuple(value))
        return tuple(value)

    def mapping(self, field: str, expected: str) -> Mapping[Any, Any]:
        """The field's value, which is a mapping."""
        value = getattr(self._instance, field)
        if not isinstance(value, Mapping):
            raise self.refuse(field, value, expected)
        return value
