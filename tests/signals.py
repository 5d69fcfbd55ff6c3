"""For `preexec_fn`: makes a child react to Ctrl-C as in a user's terminal."""

import signal


def interruptible() -> None:
    """Restore the default action of SIGINT. Background processes of a script ignore it, and their children inherit
    that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
