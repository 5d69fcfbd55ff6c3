"""rewrite.py MIB [MIB_PER_S]: hold that much memory, check and rewrite all of it, again and again.

Prints `filled`, then `round N ok` after each round, or `BAD N` and exits with 1. Without MIB_PER_S it writes as fast as
it can.
"""

import os
import sys
import time

MIB = 1024 * 1024
MARK = 8


def main():
    size = int(sys.argv[1])
    rate = float(sys.argv[2]) if len(sys.argv) > 2 else None
    block = os.urandom(MIB)
    held = [bytearray(block) for _ in range(size)]
    rest = block[MARK:]
    for one in held:
        one[:MARK] = (0).to_bytes(MARK, "little")
    print("filled", flush=True)
    rounds = 0
    began = time.monotonic()
    written = 0
    while True:
        before, mark = rounds.to_bytes(MARK, "little"), (rounds + 1).to_bytes(MARK, "little")
        for number, one in enumerate(held):
            if one[:MARK] != before or one[MARK:] != rest:
                print("BAD", number, flush=True)
                return 1
            one[:] = block
            one[:MARK] = mark
            written += 1
            while rate is not None and written > rate * (time.monotonic() - began):
                time.sleep(0.005)
        rounds += 1
        print("round", rounds, "ok", flush=True)


sys.exit(main())
