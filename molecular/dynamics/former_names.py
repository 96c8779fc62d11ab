"""Names in files that earlier versions wrote."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

FORMER_NAMES = {"ladder": "replica_group", "num_ladders": "num_replica_groups"}
"""Of arrays of shards and of settings: the former name -> the current one."""


def with_current_names(named: Mapping[str, T]) -> dict[str, T]:
    """What was read from a file, by its current names."""
    return {FORMER_NAMES.get(name, name): value for name, value in named.items()}
