"""The text by which a job asks for a signal before a stop: `[B:]SIGNAL[@SECONDS]`, as for Slurm's `--signal`.

Also part of the hooks: see the package.
"""

SIGNALS = ("HUP", "INT", "TERM", "TSTP", "URG", "USR1", "USR2", "WINCH", "XCPU")  # daemon_requests.py has the same
LONGEST_TEXT = 64


def read_signal(text: "str") -> "tuple[bool, str, int | None]":
    """(only the job's script gets it, signal without SIG, seconds). Raises ValueError with a sentence for people."""
    first_only = text.startswith("B:")
    signal, at, seconds = (text[2:] if first_only else text).partition("@")
    signal = signal[3:] if signal.startswith("SIG") else signal
    is_number = 0 < len(seconds) < 7 and all(letter in "0123456789" for letter in seconds)
    if not signal or len(text) > LONGEST_TEXT or (at and not is_number):
        raise ValueError(f"{text[:LONGEST_TEXT]!r} is not [B:]SIGNAL[@SECONDS], for example B:USR1@30")
    if signal not in SIGNALS:
        raise ValueError(f"signal {signal!r} is none of {', '.join(SIGNALS)}")
    return first_only, signal, int(seconds) if at else None
