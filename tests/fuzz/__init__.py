"""`make fuzz`: whatever reads bytes of somebody else gets mutated samples.

| file | what it has |
| --- | --- |
| `targets` | the table: each entry point, and the errors by which it refuses input |
| `guest_targets` | both ends of the guest channel, the agent's socket and files |
| `daemon_targets` | a whole node daemon: lines of guests, requests of users |
| `hub_targets` | the whole hub: messages of hosts |
| `hook_targets` | the three hooks, with objects of PBS that hold anything |
| `mutations` | how an input is made of a sample |
| `driver` | feeds a target, and notices crashes, slowness, growth and floods of log lines |
| `__main__` | the command |

The samples are in tests/hostile/corpus/TARGET/. A sample named `valid-...` must be accepted; all others are attacks.
`tests/hostile/test_corpus.py` replays them in each `make test`.
"""
