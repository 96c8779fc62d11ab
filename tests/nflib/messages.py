"""What a user's mistake is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def message_of(call: Callable[[], object]) -> str:
    """The message of the ValueError that a call raises: one sentence on one line."""
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and 20 < len(message) < 250, message
    return message
