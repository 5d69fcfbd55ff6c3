"""The pure core: facts in, decisions and steps out. No I/O, no clock, no logging.

Read the files in this order; each imports only from those above it.

    model.py            the facts of a host
    refusals.py         every code of a refusal: its meaning, its fix, when it is tried again
    events.py           what can happen to the facts, and what is answered and noted
    shares.py           what domains have, could give up, and have left
    allocation.py       who may start, and who is preempted for it
    stopping.py         which jobs are stopped, which continue, which are requeued
    states.py           a domain's state in one word, what it accepts, what PBS shows of it
    changes.py          changes of facts that several events share
    job_events.py       what an event about jobs changes
    domain_events.py    what an event about a domain's life changes
    reconfiguration.py  what a newly read configuration changes
    machine.py          passes an event to what handles it; nothing else changes facts
    caps.py             how much CPU a domain should be able to use, and when a preempted one is capped
    plan.py             the steps to the wanted state: orders, CPUs, memory
    life.py             the next step in a domain's life: boot, shutdown, saving
    readiness.py        when a job of several parts may begin
"""
