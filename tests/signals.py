"""For `preexec_fn`: a child with a user's hands on it."""

import signal


def interruptible() -> None:
    """Let SIGINT act: what a script starts in the background, as these tests may be, ignores it, and so do children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
