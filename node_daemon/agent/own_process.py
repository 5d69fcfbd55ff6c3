"""Settings of the kernel for the agent's own process."""

import os

from .log import log


def keep_standard_descriptors() -> None:
    """Let descriptors 0 to 2 be in use. If one is closed, the next file or socket would get its number, and what the
    log writes to 2 would go there."""
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number


def raise_priority() -> bool:
    """Take the real-time class if that is permitted. False if not, as without root.

    Otherwise a job of a thousand processes leaves the agent a thousandth of a CPU, and an order waits for its turn.
    """
    if os.geteuid() != 0:
        return False
    try:
        # children, the site's scripts, are ordinary processes again
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
    """Set it, so that the agent survives when memory runs out. False if the kernel refuses: only root may lower it."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("%d\n" % value)
    except OSError:
        return False
    return True
