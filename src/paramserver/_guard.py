"""Becomes another program that dies with its parent: ``_guard.py PARENT_PID PROGRAM ARGS...``

A script of its own, started with ``python -I -S``: setting the death signal between fork and exec
in the parent would run the fork handlers of gRPC there. Standard library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when ``parent`` ends; exits if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(143)


def main() -> None:
    """Sets up the process and becomes the program."""
    die_with(int(sys.argv[1]))
    # A launcher in the background of a shell ignores SIGINT, and Python ignores SIGPIPE;
    # both would be inherited.
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
