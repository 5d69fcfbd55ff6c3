"""Why a hub does not answer, as far as this machine can see, and what to check."""

from __future__ import annotations

import socket
import time

from magrathea.surroundings import host_and_port

CONNECT_S = 2.0


def why_silent(endpoint: str) -> str:
    """What a connection to the endpoint meets, and what to check. It may wait for CONNECT_S and for the resolver."""
    try:
        if endpoint.startswith("ipc://"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
                one.settimeout(CONNECT_S)
                one.connect(endpoint.removeprefix("ipc://"))
        else:
            with socket.create_connection(host_and_port(endpoint), CONNECT_S):
                pass
    except socket.gaierror as error:
        return f"the name cannot be resolved ({error.strerror}): check `endpoints` in [hub], /etc/hosts, DNS"
    except TimeoutError:
        return "nothing comes back: check the route to that machine, and the firewalls for that port"
    except FileNotFoundError:
        return "there is no such socket: does magrathea-hub run on this machine, and listen there (hub.toml)?"
    except PermissionError:
        return "this user may not open that socket: it belongs to the hub's user; use tcp with keys otherwise"
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"{what}: does magrathea-hub run on that machine (systemctl status), and listen there (hub.toml)?"
    if endpoint.startswith("ipc://"):
        return "somebody listens, but does not answer: see the journal of magrathea-hub"
    return (
        "the port is open, so check the keys: is this host enrolled (`magrathea keys list` on the hub's machine), is"
        " `key_file` what that enrolment made, and `hub_key_file` the hub's present key? See the hub's journal, too"
    )


def sentence(endpoint: str, since: float, why: str) -> str:
    """`since`: Unix seconds of its last message, or of this daemon's start."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return f"no hub answers at {endpoint} since {at}, so nothing new is preempted; {why}"
