"""The methods by name, and what the schema asks of one: which settings of a recipe it takes, and what they stand for.

This file knows no recipe, so that the schema can use it; `methods.base.Method` adds what a method does with one.
"""

from __future__ import annotations

from typing import Any, ClassVar

OWN_SETTINGS = ("architecture", "layers", "parts", "width", "distill_alpha", "growth")
"""Settings of a recipe that only some methods take; all others are common to all."""


class MethodSettings:
    """What a recipe may say to a method.

    Attributes:
        name: what a recipe calls it.
        summary: what it does, one sentence, for the reference page.
        takes: those of `OWN_SETTINGS` that it takes; with any other a recipe is refused.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes: ClassVar[frozenset[str]]

    def read_setting(self, setting: str, value: Any) -> Any:
        """Return the value that a setting of its own stands for, its default where `value` is None.

        Raises:
            ValueError: the value is wrong; the text says what is expected.
        """
        return value


METHODS: dict[str, MethodSettings] = {}
"""Filled by `register`, in the order in which the methods are listed to a user."""


def register(method: MethodSettings) -> None:
    """Let recipes name a method."""
    METHODS[method.name] = method


def check_setting(method: str, setting: str, value: Any, default: Any) -> Any:
    """Return what a setting of a recipe for `method` stands for.

    Args:
        method: the method's name, a known one.
        setting: one of `OWN_SETTINGS`.
        value: what the recipe says.
        default: what the schema gives a setting that the recipe leaves out.

    Raises:
        ValueError: the method does not take the setting and it is not left out, or the value is wrong.
    """
    if setting in METHODS[method].takes:
        return METHODS[method].read_setting(setting, value)
    if value not in (None, default):
        takers = [name for name, other in METHODS.items() if setting in other.takes]
        raise ValueError(f"method {method} takes no {setting}: expected method {' or '.join(takers)}")
    return default
