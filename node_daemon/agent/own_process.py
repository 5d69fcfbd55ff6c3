"""What the agent asks of the kernel for its own process."""

import os

from .log import log


def raise_priority() -> bool:
    """The real-time class, as far as it is permitted: a storm of a thousand processes would else leave the agent a
    thousandth of a CPU, and an order would wait for its turn. False: an ordinary process, where root is missing."""
    if os.geteuid() != 0:
        return False
    try:
        # children (the site's scripts) begin as ordinary processes again
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        return True
    except OSError as error:
        log.info("no real-time class (%s): stopping a fork storm may take longer" % error.strerror)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except OSError as error:
        log.info("no raised priority either: %s" % error.strerror)
    return False


def set_oom_score(value: int) -> bool:
    """Whether the kernel took it (root may lower it): the agent must survive when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("%d\n" % value)
    except OSError:
        return False
    return True
