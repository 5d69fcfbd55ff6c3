"""What PBS writes, read: the only room of the tree that knows PBS's own notations.

| module | reads |
| --- | --- |
| `amounts` | sizes (`2gb`, `100kw`), whole numbers, durations |
| `words` | lists with commas, yes and no, owners |
| `select` | `select` and `schedselect`, and the class that they name |
| `placement` | `exec_vnode`, `exec_host` |
| `states` | numbers and words for the states of jobs and vnodes |
| `listing` | what `qmgr` lists and `qstat -f -w` prints |
| `conf` | `pbs.conf` |

Rule 1: each reader follows PBS's own parser, which it names. What PBS cannot read is a ValueError here, never a guess.
Rule 2: `amounts`, `words`, `select` and `placement` become part of the hooks (scheduler_plugin/setup/hook_texts.py).
So they are written for Python 3.6 and import nothing but each other; their annotations are strings, because 3.6 knows
no others of this kind.
"""
