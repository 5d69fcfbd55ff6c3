"""The PBS stand-in's server and scheduler: one process, one thread, no root. It saves nothing to disk.

    python -m magrathea_lab.pbs_standin.server --dir D --hook .../hooks/magrathea_server.py --queue high=priority

It listens on D/pbs.sock: one JSON line per request, one per answer. MoMs connect there too, and then receive requests
themselves. If it differs from OpenPBS, it is wrong.

Rule 1: it is no batch system. It lacks everything that Magrathea does not touch (users, limits, reservations, arrays).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from magrathea.pbs_text.placement import vnodes_of
from magrathea.pbs_text.select import CLASS_RESOURCE, plus_parts, resource_names
from magrathea.pbs_text.states import PRERUN_SUBSTATE, RUNNING_SUBSTATE, SUSPENDED_SUBSTATE
from scheduler_plugin.pbs.base import Code

from ..processes import die_with_parent
from .model import StandInError, StandInJob, StandInVnode, assign, chunks_of
from .pbs_module import Entity, Hook, HookJob, Server

Json = dict[str, Any]

MOST_RUNS = 20
"""A job whose begin is rejected is held if it has been started more often."""
LINE_LIMIT = 4 << 20
SERVER_GIVES = "protected"
"""The class in the server's default chunk, as `magrathea pbs install` sets it."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} server: {text}", file=sys.stderr, flush=True)  # noqa: T201


class ConnectedMom:
    """A connected MoM. `call` waits without a limit: a MoM in a begin hook does not answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._next = 0

    async def call(self, op: str, **parameters: Any) -> Json:
        self._next += 1
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = answer
        self._writer.write(json.dumps({"id": self._next, "op": op, **parameters}).encode() + b"\n")
        return await answer

    def answered(self, message: Json) -> None:
        self._waiting.pop(message["id"]).set_result(message)

    def lost(self) -> None:
        for answer in self._waiting.values():
            answer.set_exception(StandInError(Code.NO_MOM, "the MoM went away", transient=True))


class StandIn:
    """Server and scheduler. `queues`: name -> the class that the queue's default chunk asks for ("" for none)."""

    def __init__(self, name: str, directory: Path, queues: dict[str, str], hook: Hook | None, cycle_s: float) -> None:
        self.name, self.directory, self.queues, self.hook, self.cycle_s = name, directory, queues, hook, cycle_s
        self.scheduling = True
        self.jobs: dict[str, StandInJob] = {}
        self.vnodes: dict[str, StandInVnode] = {}
        self.moms: dict[str, ConnectedMom] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # Requests of users and of the hub: each `do_` method is an operation, and returns the answer.

    def job(self, id: str) -> StandInJob:
        found = self.jobs.get(id) or self.jobs.get(f"{id}.{self.name}")
        if found is None:
            raise StandInError(Code.UNKNOWN_JOB, f"unknown job id {id}")
        return found

    def live(self, id: str) -> StandInJob:
        job = self.job(id)
        if job.state == "F":
            raise StandInError(Code.FINISHED_JOB, f"job {job.id} has finished")
        return job

    def do_submit(self, **given: Any) -> str:
        queue = given["queue"]
        if queue not in self.queues:
            raise StandInError(Code.BAD_VALUE, f"unknown queue {queue}")
        select = given.get("select") or "1:ncpus=1"
        chunks_of(select)  # raises if it cannot be parsed
        if any(name.startswith("magrathea") for name in resource_names(select)):
            raise StandInError(
                Code.BAD_VALUE, "Resource invalid in select: magrathea resources are the queue's to give"
            )
        wanted = self.queues[queue] or SERVER_GIVES
        id = f"{len(self.jobs) + 1}.{self.name}"
        schedselect = "+".join(f"{part}:{CLASS_RESOURCE}={wanted}" for part in plus_parts(select))
        job = StandInJob(
            id=id, queue=queue, schedselect=schedselect, **{k: v for k, v in given.items() if k in StandInJob.GIVEN}
        )
        job.moved("Q", 10)
        self.jobs[id] = job
        self._wake.set()
        return id

    def do_jobs(self, finished: bool = False) -> list[Json]:
        return [job.shown() for job in self.jobs.values() if finished or job.state != "F"]

    def do_job(self, job: str) -> Json:
        return self.job(job).shown()

    def do_vnodes(self) -> list[Json]:
        return [vnode.shown(self.jobs.values()) for vnode in self.vnodes.values()]

    def do_server(self) -> dict[str, str]:
        return {"scheduling": str(self.scheduling), "server_name": self.name}

    def do_set_scheduling(self, value: bool) -> None:
        self.scheduling = value
        if value:
            self._wake.set()

    def do_set_vnode(self, name: str, attributes: dict[str, str]) -> None:
        if name not in self.vnodes:
            raise StandInError(Code.UNKNOWN_VNODE, f"unknown node {name}")
        self.vnodes[name].set(attributes)

    def do_offline(self, name: str, value: bool) -> None:
        self.vnodes[name].offline = value

    def do_set_comment(self, job: str, text: str) -> None:
        self.live(job).comment = text

    async def do_set_walltime(self, job: str, seconds: int) -> None:
        found = self.live(job)
        found.walltime_s = seconds
        if found.running:
            await self.relay(found, "walltime", seconds=seconds)

    async def do_read(self, job: str, path: str) -> str:
        """The content of a file on the job's machine; empty if there is none. For MoMs in guests, which share no files
        with us."""
        found = self.job(job)
        mom = self.moms.get(found.vnodes[0]) if found.vnodes else None
        return (
            ""
            if mom is None
            else str((await mom.call("read", job=self.sent(found, found.vnodes[0]), path=path))["text"])
        )

    async def do_delete(self, job: str) -> None:
        found = self.live(job)
        found.deleted = True
        if found.vnodes:
            await self.relay(found, "signal", wanted="delete")
        else:
            self.finish(found, None, "deleted")

    async def do_suspend(self, job: str, admin: bool) -> None:
        found = self.live(job)
        if found.substate != RUNNING_SUBSTATE:
            raise StandInError(Code.BAD_STATE, f"{found.id} is in substate {found.substate}, not running")
        await self.relay(found, "signal", wanted="suspend")
        if found.substate == RUNNING_SUBSTATE:  # it may have ended meanwhile
            found.admin_suspended = admin
            found.moved("S", SUSPENDED_SUBSTATE)
            for name in found.vnodes if admin else ():
                self.vnodes[name].maintenance_jobs.append(found.id)
            self._wake.set()

    async def do_resume(self, job: str, admin: bool) -> None:
        found = self.live(job)
        if admin and found.running and not found.admin_suspended:
            raise StandInError(Code.WRONG_RESUME, f"{found.id} was not suspended by an admin")
        if found.substate != SUSPENDED_SUBSTATE:
            raise StandInError(Code.BAD_STATE, f"{found.id} is in substate {found.substate}, not suspended")
        if found.admin_suspended and not admin:
            raise StandInError(Code.WRONG_RESUME, f"{found.id} was suspended by an admin")
        self.end_maintenance(found)
        await self.relay(found, "signal", wanted="resume")
        if found.substate == SUSPENDED_SUBSTATE:
            found.moved("R", RUNNING_SUBSTATE)

    async def do_rerun(self, job: str, force: bool = False) -> None:
        found = self.live(job)
        if not found.rerunnable and not force:
            raise StandInError(Code.NOT_RERUNNABLE, f"{found.id} forbids it")
        if not (found.state == "R" or (force and found.state == "S")):
            raise StandInError(Code.BAD_STATE, f"{found.id} is {found.state}")
        found.requeued = True
        await self.relay(found, "signal", wanted="kill")

    # Running jobs

    async def relay(self, job: StandInJob, op: str, **parameters: Any) -> None:
        """Send the operation to all MoMs of a job; raise the first refusal."""
        moms = [(name, self.moms.get(name)) for name in job.vnodes]
        if missing := [name for name, mom in moms if mom is None]:
            raise StandInError(Code.NO_MOM, f"no MoM of {', '.join(missing)} is there", transient=True)
        calls = [mom.call(op, job=self.sent(job, name), **parameters) for name, mom in moms if mom is not None]
        for answer in await asyncio.gather(*calls):
            if not answer["ok"]:
                raise StandInError(answer.get("code", Code.MOM_REJECTED), answer["text"])

    def sent(self, job: StandInJob, vnode: str) -> Json:
        """The job's data for a MoM; the MoM's hooks see the same."""
        return {
            **job.attributes(), "mother_superior": vnode == job.vnodes[0] or job.everywhere, "server": self.name,
            "script": job.script, "output": job.output, "workdir": job.workdir, "variables": job.variables,
            "walltime_s": job.walltime_s,
        }  # fmt: skip

    async def start(self, job: StandInJob) -> None:
        """Start a job after its runjob event was accepted: begin on the mother superior, then on its sisters, then
        launch."""
        try:
            begun: list[str] = []
            for name in job.vnodes:
                mom = self.moms.get(name)
                if mom is None:
                    answer: Json = {"ok": False, "text": f"no MoM on {name}", "changes": {}}
                else:
                    answer = await mom.call("begin", job=self.sent(job, name))
                if not answer["ok"]:
                    for other in begun:
                        await self.moms[other].call("abort", job=self.sent(job, other))
                    self.requeue(
                        job, "job not started, Execution server rejected request", answer["changes"], rejected=True
                    )
                    return
                begun.append(name)
            await self.relay(job, "launch")
        except StandInError as error:
            self.requeue(job, f"job not started, {error.text}", {}, rejected=True)

    def requeue(self, job: StandInJob, comment: str, changes: Json, *, rejected: bool) -> None:
        """Requeue a job. `changes`: what MoM's hook set on it. `rejected`: its start was rejected."""
        self.end_maintenance(job)
        job.exec_vnode, job.comment, job.requeued = "", comment, False
        job.run_count = int(changes.get("run_count", job.run_count))
        if job.deleted:
            self.finish(job, None, "deleted")
        elif rejected and job.run_count > MOST_RUNS:
            job.moved("H", 20)
        else:
            job.moved("Q", 10)
            self.wait_until(job, float(changes.get("Execution_Time", 0)))
        self._wake.set()

    def wait_until(self, job: StandInJob, at: float) -> None:
        """Let a job wait for its execution time, if that is to come."""
        job.execution_time = at
        if at > time.time():
            job.moved("W", 30)
            asyncio.get_running_loop().call_later(at - time.time(), self.waited, job)

    def waited(self, job: StandInJob) -> None:
        if job.state == "W":
            job.moved("Q", 10)
            self._wake.set()

    def finish(self, job: StandInJob, code: int | None, why: str) -> None:
        self.end_maintenance(job)
        job.exit_status, job.why = code, why
        job.moved("F", 92)
        self._wake.set()

    def end_maintenance(self, job: StandInJob) -> None:
        job.admin_suspended = False
        for vnode in self.vnodes.values():
            vnode.maintenance_jobs = [id for id in vnode.maintenance_jobs if id != job.id]

    def heard(self, vnode: str, note: Json) -> None:
        """Handle a MoM's event. Events of earlier runs change nothing; the mother superior alone tells its end."""
        job = self.jobs[note["job"]]
        if job.run_version != note["run"] or not job.vnodes:
            return
        is_mother = vnode == job.vnodes[0]
        if note["event"] == "running" or not is_mother:
            job.launching.discard(vnode)
            if is_mother:
                job.started_at = time.time()
            if not job.launching and job.substate == PRERUN_SUBSTATE:
                job.moved("R", RUNNING_SUBSTATE)
            return
        job.used_s = note["used_s"]
        for sister in job.vnodes[1:]:
            if sister in self.moms:
                self.spawn(self.moms[sister].call("signal", job=self.sent(job, sister), wanted="kill"))
        if job.requeued or note["code"] is None:
            self.requeue(job, "job requeued", note["changes"], rejected=not job.requeued)
        else:
            self.finish(job, note["code"], note["why"])

    # Scheduling

    async def schedule(self) -> None:
        """Run a cycle whenever the scheduler is woken, else periodically; never while `scheduling` is false."""
        while True:
            try:
                async with asyncio.timeout(self.cycle_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self.scheduling:
                self.cycle()

    def cycle(self) -> None:
        """First come, first served. A job that does not fit now does not delay the next one."""
        for job in [j for j in self.jobs.values() if j.state == "Q"]:
            exec_vnode, comment = assign(job, self.vnodes.values(), self.jobs.values())
            if exec_vnode:
                comment = self.run_job(job, exec_vnode)
            if comment:
                job.comment = comment

    def run_job(self, job: StandInJob, exec_vnode: str) -> str:
        """Ask the runjob hook, then send the job to its MoMs. Returns the reason for the job's comment if it may not
        run."""
        if self.hook is not None:
            vnodes = {v.name: v.for_hook(self.jobs.values()) for v in self.vnodes.values()}
            jobs = {j.id: j.attributes() for j in self.jobs.values() if j.state != "F"}
            gives = {CLASS_RESOURCE: self.queues[job.queue]} if self.queues[job.queue] else {}
            asked = HookJob(job.id, {**job.attributes(), "exec_vnode": exec_vnode}, gives)
            lists = {name: Entity("name", name, vnodes[name]) for name in vnodes_of(exec_vnode)}
            server = Server(self.name, vnodes, jobs, {CLASS_RESOURCE: SERVER_GIVES})
            outcome = self.hook.run("runjob", server=server, job=asked, vnode_list=lists)
            for line in outcome.log:
                say(f"runjob {job.id}: {line}")
            if not outcome.accepted:
                job.rejections += 1
                say(f"runjob {job.id} rejected: {outcome.message}")
                self.wait_until(job, float(outcome.changes.get("Execution_Time", 0)))
                return f"Not Running: PBS Error: {outcome.message}"
        job.exec_vnode, job.comment = exec_vnode, "Job run"
        job.run_version += 1
        job.run_count += 1
        job.launching = set(job.vnodes)
        job.moved("R", PRERUN_SUBSTATE)
        self.spawn(self.start(job))
        return ""

    # Connections

    def spawn(self, work: Any) -> None:
        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled() and done.exception() is not None:
                say(f"work in the background failed: {done.exception()!r}")

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def answer(self, request: Json) -> Json:
        try:
            operation = getattr(self, f"do_{request.pop('op')}", None)
            if operation is None:
                raise StandInError(Code.PROTOCOL, "unknown operation")
            result = operation(**request)
            return {"ok": True, "result": await result if asyncio.iscoroutine(result) else result}
        except StandInError as error:
            return {"ok": False, "code": int(error.code), "text": error.text, "transient": error.transient}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                request = json.loads(line)
                if request.get("op") == "mom":
                    await self.serve_mom(request, reader, writer)
                    return
                writer.write(json.dumps(await self.answer(request)).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the client has gone; what it asked for is done
        finally:
            writer.close()

    async def serve_mom(self, offer: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, mom = offer["vnode"], ConnectedMom(writer)
        resources = {"ncpus": str(offer["ncpus"]), "mem": f"{offer['mem_mib']}mb", "vnode": name, "host": name}
        vnode = self.vnodes.setdefault(name, StandInVnode(name))
        vnode.offered = {f"resources_available.{key}": value for key, value in resources.items()}
        vnode.attributes.update(vnode.offered)
        vnode.up, self.moms[name] = True, mom
        writer.write(json.dumps({"server": self.name}).encode() + b"\n")
        self._wake.set()
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "event" in message:
                    self.heard(name, message)
                else:
                    mom.answered(message)
        finally:
            mom.lost()
            vnode.up = False
            if self.moms.get(name) is mom:
                del self.moms[name]

    async def run(self) -> None:
        path = self.directory / "pbs.sock"
        path.unlink(missing_ok=True)
        async with await asyncio.start_unix_server(self.connected, str(path), limit=LINE_LIMIT):
            await self.schedule()


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--name", default="standin", show_default=True, help="Server name, the second half of job ids.")
@click.option("--hook", type=click.Path(path_type=Path, exists=True), help="The server hook file.")
@click.option("--hook-config", type=click.Path(path_type=Path))
@click.option("--queue", "queues", multiple=True, default=["high=priority", "low=preemptible", "normal="])
@click.option("--cycle-s", default=10.0, show_default=True, help="Seconds between periodic scheduling cycles.")
def main(
    directory: Path, name: str, hook: Path | None, hook_config: Path | None, queues: list[str], cycle_s: float
) -> None:
    """The PBS stand-in: a server and scheduler for demo, tests and simulation. It is no batch system."""
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # there is nothing to save
    loaded = None if hook is None else Hook.of_file(hook, hook_config)
    classes = dict(queue.split("=", 1) for queue in queues)
    asyncio.run(StandIn(name, directory, classes, loaded, cycle_s).run())


if __name__ == "__main__":
    main()
