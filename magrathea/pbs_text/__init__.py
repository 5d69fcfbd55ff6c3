"""Reads what PBS writes: the only room of the tree that knows PBS's own notations.

| module | reads |
| --- | --- |
| `amounts` | sizes (`2gb`, `100kw`), whole numbers, durations |
| `words` | lists with commas, booleans, owners |
| `select` | `select` and `schedselect`, and the class that they name |
| `placement` | `exec_vnode`, `exec_host` |
| `states` | numbers and words for the states of jobs and vnodes |
| `listing` | the output of `qmgr` and of `qstat -f -w` |
| `conf` | `pbs.conf` |

Rule 1: each reader follows PBS's own parser, which it names. Text that PBS cannot read raises ValueError; nothing is
guessed.
Rule 2: `amounts`, `words`, `select` and `placement` become part of the hooks (scheduler_plugin/setup/hook_texts.py). So
they are written for Python 3.6 and import only each other. Their annotations are strings, because 3.6 does not know the
newer forms.
"""
