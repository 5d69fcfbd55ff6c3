"""MoM's connections to PBS's server and its pbs_comm.

A guest that was saved to disk comes back with connections that have no other end any more. MoM would notice that only
when the kernel gives up, half a minute later, and until then its vnode is down. So the agent shuts these connections
down, and MoM connects again at once.

The agent touches only established connections that a process named pbs_mom of root holds, and only those to the ports
of PBS's server and of pbs_comm. The work is done in a child process: it needs ctypes, and reads the environment of MoM,
which may hang in the kernel.
"""

import _socket  # as in `transports`
import errno
import os
import re
import signal
import struct
import sys

from .advice import Advisor
from .children import Child
from .lines import BadValue, encode, parse
from .log import log
from .loop import Loop, Timer
from .procfs import read_environ, read_file, read_stat, uids_of
from .refusals import BUSY, FAILED, NOT_PERMITTED, TIMEOUT, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Set, Tuple

    from .lines import Doc
    from .values import Reply

MOM = b"pbs_mom"
SERVER_PORT, COMM_PORT = 15001, 17001
"""The ports of pbs_server and pbs_comm if nothing else is configured."""
CONF_FILE = "/etc/pbs.conf"
PORT_VARIABLES = (b"PBS_BATCH_SERVICE_PORT", b"PBS_LEAF_ROUTERS")
"""What may name other ports, in the environment of MoM or in pbs.conf: a port, or `host:port,host:port`."""
CONF_BYTES = 65536
TABLE_BYTES = 4 << 20  # of /proc/PID/net/tcp: some 28,000 connections
ESTABLISHED = b"01"
LIMIT_S = 20.0  # a guest that has just been restored may be that slow; the node daemon waits for 30 s
KERNEL_S = 2.0  # for the kernel's answer to one request


class Connection:
    """An established connection of MoM. `descriptor`: its number in MoM."""

    def __init__(self, pid: int, descriptor: int, local: "Tuple[int, int]", remote: "Tuple[int, int]") -> None:
        self.pid = pid
        self.descriptor = descriptor
        self.local = local
        self.remote = remote


# Finding


def moms() -> "List[int]":
    """The processes named pbs_mom that root runs, MoM itself first: its children may hold its connections, too."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            image, fields = read_stat("/proc/%s/stat" % name)
        except OSError:
            continue  # it has just gone
        if image == MOM and not any(uids_of(int(name)) or (-1,)):
            found.append((int(fields[19]), int(name)))
    return [pid for _, pid in sorted(found)]


def ports_of(pid: int) -> "Set[int]":
    """The ports of PBS's server and of pbs_comm, as this MoM is configured."""
    environment = _variables(read_environ(pid).split(b"\0"))
    path = os.fsdecode(environment.get(b"PBS_CONF_FILE", b"")) or CONF_FILE
    try:
        conf = _variables(read_file(path, CONF_BYTES).split(b"\n"))
    except OSError:
        conf = {}
    ports = {SERVER_PORT, COMM_PORT}
    for name in PORT_VARIABLES:
        value = environment.get(name) or conf.get(name, b"")
        ports |= {int(port) for port in re.findall(rb"(?:\A|:)(\d{1,5})(?=,|\Z)", value)}
    return ports


def _variables(lines: "List[bytes]") -> "Dict[bytes, bytes]":
    pairs = (line.partition(b"=") for line in lines)
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def connections_of(pid: int, ports: "Set[int]") -> "Dict[int, Connection]":
    """The established connections of the process to these ports, by inode. Raises OSError if the process has gone."""
    held = {}
    for name in os.listdir("/proc/%d/fd" % pid):
        try:
            target = os.readlink("/proc/%d/fd/%s" % (pid, name))
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            held[int(target[8:-1])] = int(name)
    found = {}
    for line in read_file("/proc/%d/net/tcp" % pid, TABLE_BYTES).split(b"\n")[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != ESTABLISHED or int(words[9]) not in held:
            continue
        local, remote = _end(words[1]), _end(words[2])
        if remote[1] in ports:
            found[int(words[9])] = Connection(pid, held[int(words[9])], local, remote)
    return found


def _end(text: bytes) -> "Tuple[int, int]":
    """Address and port of one end; the address is a number in the order of bytes of this machine."""
    address, _, port = text.partition(b":")
    return int(address, 16), int(port, 16)


# Ending


class Shutter:
    """Shuts a connection of another process down by a copy of its descriptor: pidfd_getfd(2), Linux 5.6."""

    PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the numbers are the same on all of Advisor.MACHINES

    def __init__(self) -> None:
        """Raises ImportError where Python lacks ctypes, OSError on other machines."""
        if os.uname().machine not in Advisor.MACHINES or sys.maxsize < 1 << 32:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        import ctypes  # takes 1 MiB, so only in the child

        self._c = ctypes
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall

    def _call(self, number: int, first: int, second: int) -> int:
        c = self._c
        found = self._syscall(c.c_long(number), c.c_int(first), c.c_int(second), c.c_uint(0))
        if found < 0:
            raise OSError(c.get_errno(), os.strerror(c.get_errno()))
        return int(found)

    def end(self, inode: int, one: Connection) -> None:
        """Raises OSError."""
        pidfd = self._call(self.PIDFD_OPEN, one.pid, 0)
        try:
            copy = self._call(self.PIDFD_GETFD, pidfd, one.descriptor)
        finally:
            os.close(pidfd)
        try:
            if os.fstat(copy).st_ino == inode:  # else MoM has just closed it, and opened something else
                sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, copy)
                copy = -1
                try:
                    sock.shutdown(_socket.SHUT_RDWR)
                finally:
                    sock.close()
        finally:
            if copy >= 0:
                os.close(copy)


class Destroyer:
    """Lets the kernel end a connection: SOCK_DESTROY of sock_diag(7). Linux 4.9, if it was built with it."""

    NETLINK_SOCK_DIAG = 4
    SOCK_DESTROY = 21
    NLM_F_REQUEST, NLM_F_ACK = 1, 4
    STATES = 1 << 1  # established
    NO_COOKIE = 0xFFFFFFFF
    HEADER = struct.Struct("=IHHII")  # struct nlmsghdr

    def __init__(self) -> None:
        """Raises OSError."""
        self.sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, self.NETLINK_SOCK_DIAG)
        self.sock.settimeout(KERNEL_S)

    def end(self, inode: int, one: Connection) -> None:
        """Raises OSError."""
        ports = struct.pack("!HH", one.local[1], one.remote[1])
        addresses = b"".join(struct.pack("=I12x", address) for address, _ in (one.local, one.remote))
        socket_id = ports + addresses + struct.pack("=III", 0, self.NO_COOKIE, self.NO_COOKIE)
        body = struct.pack("=BBBBI", _socket.AF_INET, _socket.IPPROTO_TCP, 0, 0, self.STATES) + socket_id
        flags = self.NLM_F_REQUEST | self.NLM_F_ACK
        self.sock.send(self.HEADER.pack(self.HEADER.size + len(body), self.SOCK_DESTROY, flags, 1, 0) + body)
        answer = self.sock.recv(4096)
        number = -int(struct.unpack_from("=i", answer, self.HEADER.size)[0])
        if number:
            raise OSError(number, os.strerror(number))


def found_now() -> "Dict[int, Connection]":
    """MoM's connections to PBS, by inode."""
    found: "Dict[int, Connection]" = {}
    for pid in moms():
        try:
            for inode, one in connections_of(pid, ports_of(pid)).items():
                found.setdefault(inode, one)
        except OSError:
            continue  # it has gone
    return found


def end_all() -> "Tuple[int, int]":
    """End MoM's connections to PBS. Returns how many there were, and how many have ended, by MoM itself, too. Raises
    OSError if none has ended."""
    found = found_now()
    left = dict(found)
    trouble: "Optional[Exception]" = None
    for make in (Shutter, Destroyer):
        if not left:
            break
        try:
            end = make().end
        except (ImportError, OSError) as error:
            trouble = error
            continue
        for inode, one in list(left.items()):
            try:
                end(inode, one)
                del left[inode]
            except OSError as error:
                trouble = error
    if left:
        now = found_now()  # MoM may have been quicker: then there was nothing to end
        left = {inode: one for inode, one in left.items() if inode in now}
    if trouble is not None and left and len(left) == len(found):
        if isinstance(trouble, OSError):
            raise trouble
        raise OSError(errno.ENOSYS, str(trouble))
    return len(found), len(found) - len(left)


# In the agent


class MomConnections:
    """Ends MoM's connections to PBS on request."""

    def __init__(self, loop: Loop, is_guest: bool) -> None:
        self.loop = loop
        self.is_guest = is_guest
        self.child: "Optional[Child]" = None

    def can(self) -> "List[str]":
        """Only in a guest of its own: elsewhere it would see the MoMs of other domains, too."""
        return ["reconnect"] if self.is_guest and os.geteuid() == 0 else []

    def reconnect(self, reply: "Reply") -> None:
        """End MoM's connections; `reply` gets the answer when it is done."""
        if not self.can():
            reply(refusal(NOT_PERMITTED, "this agent may not be in a guest, or is not root, so it leaves MoM alone"))
            return
        if self.child is not None:
            reply(refusal(BUSY, "MoM's connections are just being ended"))
            return
        said: "List[bytes]" = []
        timers: "List[Timer]" = []

        def ended(status: int) -> None:
            self.child = None
            timers[0].cancel()
            self._ended(b"".join(said), reply)

        self.child = Child(self.loop, "reconnect", _become, ended, said.append)
        timers.append(self.loop.after(LIMIT_S, self._kill))

    def _kill(self) -> None:
        if self.child is not None:
            self.child.signal(signal.SIGKILL)

    @staticmethod
    def _ended(said: bytes, reply: "Reply") -> None:
        try:
            answer = parse(said)
        except BadValue:
            answer = refusal(TIMEOUT, "MoM's connections could not be ended within %g s" % LIMIT_S)
        if answer["ok"]:
            log.info("%(ended)d of MoM's %(found)d connections to PBS ended: it connects again" % answer)
        else:
            log.warning("MoM notices later that its connection is dead: %s" % answer["text"])
        reply(answer)


def _become(output: int) -> None:
    """In the child."""
    try:
        found, done = end_all()
        answer: "Doc" = {"ok": True, "found": found, "ended": done}
    except OSError as error:
        answer = refusal(FAILED, "MoM's connections cannot be ended here: %s" % error)
    os.write(output, encode(answer))
