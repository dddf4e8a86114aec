"""Ends a child process when its supervisor ends, even if the supervisor was killed."""

import os
import signal
import threading

_STDIN = 0
_GRACE_SECONDS = 15.0


def terminate_with_parent(fd: int = _STDIN, grace_seconds: float = _GRACE_SECONDS) -> None:
    """Watches the read end of a pipe whose write end only the supervisor holds, and never writes to.

    End of file means that the supervisor has ended. Then this process gets SIGTERM and drains; if it still runs after
    `grace_seconds`, it exits with status 1 at once.
    """

    def watch() -> None:
        while os.read(fd, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
