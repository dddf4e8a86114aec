"""A child's side of the lifeline: it ends when its supervisor is gone, however that went."""

import os
import signal
import threading

_STDIN = 0
_GRACE_SECONDS = 15.0


def end_with_parent(fd: int = _STDIN, grace_seconds: float = _GRACE_SECONDS) -> None:
    """Watches the read end of a pipe that only the supervisor writes to, which it never does.

    End of file means that the supervisor is gone: this process gets SIGTERM and drains; what still runs when
    the grace is over is ended without ceremony.
    """

    def watch() -> None:
        while os.read(fd, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
