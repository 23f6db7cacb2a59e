"""Processes that tests start to kill them: what a call does in a child, and how the child ended."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

import jaxtyping


def in_a_child(work: Callable[[], object]) -> int:
    """Fork a process that does ``work``; return its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which sleep here
        child = os.fork()
    if child:
        return child
    try:
        jaxtyping.config.update("jaxtyping_disable", True)  # other tests run under the hook; here time counts
        work()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def killed(child: int) -> bool:
    """Wait for a child; say whether a signal ended it, and insist that it did not fail."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
