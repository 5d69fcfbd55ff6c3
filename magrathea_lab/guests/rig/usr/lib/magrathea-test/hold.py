"""hold.py [--locked] MIB [FILE]: hold that much incompressible memory, and check it byte for byte, again and again.

With --locked no swap can take it; only root may lock so much.

Prints `filled`, then `round N ok` after each check, or `BAD N` and exits with 1. Each page differs from all others.
When FILE exists, prints `all right` after the next check and exits with 0.
"""

import ctypes
import os
import struct
import sys
import time

PAGE, MIB = 4096, 1024 * 1024


def expected(block, number):
    """The expected content of MiB number `number`: the same noise with a different mark in each page."""
    made = bytearray(block)
    for page in range(MIB // PAGE):
        made[page * PAGE : page * PAGE + 8] = struct.pack("<Q", number * (MIB // PAGE) + page)
    return made


def lock():
    everything = 1 | 2  # MCL_CURRENT | MCL_FUTURE
    if ctypes.CDLL(None, use_errno=True).mlockall(everything):
        raise OSError(ctypes.get_errno(), "mlockall")


def main():
    if sys.argv[1] == "--locked":
        del sys.argv[1]
        lock()
    size = int(sys.argv[1])
    block = os.urandom(MIB)
    held = [expected(block, number) for number in range(size)]
    print("filled", flush=True)
    rounds = 0
    while True:
        for number in range(size):
            if held[number] != expected(block, number):
                print("BAD", number, flush=True)
                return 1
        rounds += 1
        print("round", rounds, "ok", flush=True)
        if any(map(os.path.exists, sys.argv[2:])):
            print("all right", flush=True)
            return 0
        time.sleep(0.2)


sys.exit(main())
