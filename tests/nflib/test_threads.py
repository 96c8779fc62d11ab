"""One thread for a while: nested, and in several threads of Python at once."""

from __future__ import annotations

import threading

import pytest
import torch

from nflib.threads import one_thread


@pytest.fixture
def four():
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(1)


def test_nested_blocks_end_with_the_outer_one(four):
    with one_thread() as outer:
        with one_thread() as inner:
            assert outer == inner == four and torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == four


def test_overlapping_blocks_of_two_threads_leave_as_many_as_there_were(four):
    """The second took the first one's single thread for what torch had, and left that to all that came later."""
    inside, leave, found = threading.Event(), threading.Event(), []

    def work() -> None:
        with one_thread() as before:
            found.append(before)
            inside.set()
            leave.wait(10)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    with one_thread():
        thread.start()
        assert inside.wait(10)
    assert torch.get_num_threads() == four
    leave.set()
    thread.join()
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [four, four, four]
