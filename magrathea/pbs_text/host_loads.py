"""Where the hub writes for the server's hook which jobs a counted host has.

Also part of the hooks: see the package.
"""

LOADS = ".loads"
MOST_LOAD_BYTES = 256 * 1024
MOST_NAME = 200
NAME_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


def load_path(heartbeat: "str", host: "str") -> "str | None":
    """The host's file, in a folder beside the heartbeat; None if the host's name is no safe name of a file."""
    if not host or len(host) > MOST_NAME or host[0] == "." or any(letter not in NAME_LETTERS for letter in host):
        return None
    return f"{heartbeat}{LOADS}/{host}"
