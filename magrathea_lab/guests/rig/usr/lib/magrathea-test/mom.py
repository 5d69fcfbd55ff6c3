"""A stand-in for MoM inside a guest: does what its host asks over a virtio-serial port, one JSON line each way.

    mom.py [SOCKET]     SOCKET: the unix socket to listen on, for a container, which has no such port

Like MoM, it knows which jobs run here. It claims, launches and releases them over the agent's socket, as the MoM hook
does. Every request gets its own thread, since a claim takes time.
"""

import base64
import json
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

PORT = "/dev/virtio-ports/org.magrathea.test"
AGENT = "/run/agent.sock"
GROUPS = "/sys/fs/cgroup/pbs"

jobs = {}
writing = threading.Lock()


def ask_agent(message, seconds=4.0, sent=lambda: None):
    """The agent's answer. `sent` is called once the question is sent."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(seconds)
            link.connect(AGENT)
            link.sendall(json.dumps(message).encode() + b"\n")
            sent()
            data = b""
            while not data.endswith(b"\n"):
                piece = link.recv(65536)
                if not piece:
                    raise OSError("the agent has closed the connection")
                data += piece
        return json.loads(data.decode())
    except (OSError, ValueError) as error:
        return {"ok": False, "code": "no-agent", "text": str(error)}


def processes(session):
    """(pid, state letter, resident KiB, swapped KiB) of a session's processes."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % name) as file:
                fields = file.read().rpartition(")")[2].split()
            if int(fields[3]) != session or fields[0] in "ZX":
                continue
            with open("/proc/%s/status" % name) as file:
                status = dict(line.split(":", 1) for line in file)
        except OSError:
            continue
        sizes = [int(status.get(key, "0").split()[0]) for key in ("VmRSS", "VmSwap")]
        found.append((int(name), fields[0], sizes[0], sizes[1]))
    return found


def kill_session(session):
    for pid, _, _, _ in processes(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended meanwhile


class Job:
    def __init__(self, described):
        self.described = described
        self.process = None
        self.released = None

    def key(self):
        return {"id": self.described["id"], "run": self.described["run"]}

    def output(self):
        return "/var/spool/%s.out" % self.described["id"]


def job_of(request):
    job = jobs.get(request["job"]["id"])
    if job is None:
        raise KeyError("no job %s here" % request["job"]["id"])
    return job


def claim(request):
    job = Job(request["job"])
    before = jobs.get(job.described["id"])

    def sent():
        jobs[job.described["id"]] = job  # as in PBS: MoM's list has the job from the moment its hook asks

    answer = ask_agent({"op": "claim", "job": job.described, "deadline_s": 1.8}, sent=sent)
    if not answer.get("ok") and jobs.get(job.described["id"]) is job:
        del jobs[job.described["id"]]
        if before is not None:
            jobs[job.described["id"]] = before
    return answer


def prepared(request):
    return ask_agent({"op": "prepared", "job": job_of(request).described, "deadline_s": request.get("deadline_s", 1.0)})


def start(request):
    """Run the job's script as its owner, in its own session; release the job when the script has ended."""
    job = job_of(request)
    user = pwd.getpwnam(job.described["owner"])
    group = None
    if request.get("cgroup"):
        group = "%s/%s" % (GROUPS, job.described["id"])
        os.makedirs(group, exist_ok=True)
    environment = {"PATH": "/usr/bin:/bin", "PBS_JOBID": job.described["id"], "HOME": user.pw_dir}
    with open(job.output(), "ab") as out:
        job.process = subprocess.Popen(
            ["/bin/sh", "-c", 'read line; eval "$0"', request["script"]],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=environment,
            cwd="/tmp",
            start_new_session=True,
            user=user.pw_uid,
            group=user.pw_gid,
        )
    if group is not None:
        with open(group + "/cgroup.procs", "w") as file:
            file.write(str(job.process.pid))
    job.process.stdin.write(b"go\n")
    job.process.stdin.close()
    threading.Thread(target=ended, args=(job,), daemon=True).start()
    return {"ok": True, "pid": job.process.pid}


def ended(job):
    job.process.wait()
    kill_session(job.process.pid)
    job.released = ask_agent({"op": "release", "job": job.key()})


def release(request):
    job = job_of(request)
    job.released = ask_agent({"op": "release", "job": job.key()})
    return job.released


def kill(request):
    """Kill the job's processes, as qdel does. The thread that started the job then releases it."""
    job = job_of(request)
    if job.process is None:
        return release(request)
    kill_session(job.process.pid)
    return {"ok": True}


def forget(request):
    jobs.pop(request["job"]["id"], None)
    return {"ok": True}


def look(request):
    """The present state of each job here."""
    found = {}
    for name, job in list(jobs.items()):
        present = processes(job.process.pid) if job.process else []
        try:
            with open(job.output(), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2048))
                out = file.read().decode(errors="replace")
        except OSError:
            out = ""
        found[name] = {
            "run": job.described["run"],
            "states": "".join(state for _, state, _, _ in present),
            "resident_mib": sum(one[2] for one in present) // 1024,
            "swapped_mib": sum(one[3] for one in present) // 1024,
            "code": job.process.poll() if job.process else None,
            "released": bool(job.released and job.released.get("ok")),
            "output": out,
        }
    return {"ok": True, "jobs": found}


def tell_jobs(request):
    """Send MoM's list to the agent; `suspended`: jobs that PBS holds suspended."""
    listed = []
    for job in list(jobs.values()):
        if job.released is not None or (job.process is not None and job.process.poll() is not None):
            continue
        entry = {key: job.described[key] for key in ("id", "run", "cpus", "memory_mib", "rerunnable", "owner")}
        held = [job.described["id"], job.described["run"]] in request["suspended"]
        entry["substate"] = 43 if held else 42 if job.process else 41
        listed.append(entry)
    return ask_agent({"op": "jobs", "jobs": listed})


def sh(request):
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", request["script"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=request.get("timeout_s", 20),
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "code": "timeout", "text": "it has not ended in time"}
    return {"ok": True, "code": done.returncode, "output": done.stdout[-40000:].decode(errors="replace")}


def kill_all(request):
    """Kill the processes that have these words in their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open("/proc/%s/cmdline" % name, "rb") as file:
                    line = file.read().replace(b"\0", b" ").decode(errors="replace")
                if request["words"] in line:
                    os.kill(int(name), signal.SIGKILL)
                    found.append(int(name))
            except OSError:
                continue
    return {"ok": True, "pids": found}


def write(request):
    with open(request["path"], "wb") as file:
        file.write(base64.b64decode(request["content"]))
    os.chmod(request["path"], request.get("mode", 0o644))
    return {"ok": True}


def memory(request):
    with open("/proc/meminfo") as file:
        sizes = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in file}
    return {"ok": True, "mib": sizes}


def agent(request):
    return ask_agent(request["message"])


def ping(request):
    return {"ok": True, "name": os.uname().nodename, "up_s": time.monotonic(), "unix_s": time.time()}


OPS = {
    op.__name__: op
    for op in (claim, prepared, start, release, kill, forget, look, tell_jobs, sh, kill_all, write, memory, agent, ping)
}


def answer(port, request):
    try:
        said = OPS[request["op"]](request)
    except Exception as error:  # the host's test must see any error
        said = {"ok": False, "code": "defect", "text": "%s: %s" % (type(error).__name__, error)}
    line = json.dumps({**said, "id": request["id"]}).encode() + b"\n"
    with writing:
        while line:
            try:
                line = line[os.write(port, line) :]
            except BlockingIOError:
                time.sleep(0.01)


def power_button():
    """Do what acpid would do. Works only if the guest's command line has magrathea.acpi."""
    for name in sorted(os.listdir("/dev/input")) if os.path.isdir("/dev/input") else []:
        if name.startswith("event"):
            threading.Thread(target=watch_button, args=("/dev/input/" + name,), daemon=True).start()


def watch_button(path):
    size = struct.calcsize("llHHi")
    with open(path, "rb", buffering=0) as device:
        while True:
            _, _, kind, code, value = struct.unpack("llHHi", device.read(size))
            if (kind, code, value) == (1, 116, 1):
                subprocess.call(["/bin/poweroff"])


def serve(port, away):
    """Answer requests until the other side has gone and `away` tells that no more will come."""
    buffer = b""
    while True:
        piece = os.read(port, 65536)
        if not piece:  # the host is away: its unfinished line is void
            buffer = b""
            if away():
                return
            continue
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            try:
                request = json.loads(line.decode())
            except ValueError:
                continue
            threading.Thread(target=answer, args=(port, request), daemon=True).start()


def listen(path):
    if os.path.exists(path):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(8)
    while True:
        link, _ = server.accept()
        threading.Thread(target=serve_one, args=(link,), daemon=True).start()


def serve_one(link):
    try:
        serve(link.fileno(), lambda: True)
    except OSError:
        link.close()  # the host went away without notice


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if len(sys.argv) > 1:
        listen(sys.argv[1])
    with open("/proc/cmdline") as file:
        if "magrathea.acpi" in file.read().split():
            power_button()
    serve(os.open(PORT, os.O_RDWR), lambda: time.sleep(0.05))


sys.exit(main())
