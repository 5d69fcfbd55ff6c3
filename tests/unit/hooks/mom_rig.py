"""MoM's hook, jobs for it, and an agent that gives a test's answers."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

from magrathea_lab.pbs_standin.pbs_module import Entity, Hook, HookJob, HookOutcome, Server
from scheduler_plugin.setup.hook_texts import hook_text

HOOK = ("magrathea_mom", hook_text("magrathea_mom"))


class FakeAgent:
    """Answers each request from `answers` by its op; None: never. `heard`: the requests."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, Any] = {}
        self.heard: list[dict[str, Any]] = []
        self._held: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return  # closed
            request = json.loads(link.makefile().readline())
            self.heard.append(request)
            answer = self.answers.get(request["op"], {"ok": True})
            if isinstance(answer, list):
                answer = answer.pop(0)
            if answer is None:
                self._held.append(link)
                continue
            link.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")
            link.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for link in self._held:
            link.close()
        self._thread.join(5)


def a_job(**changes: Any) -> HookJob:
    attributes: dict[str, Any] = {
        "run_version": 2,
        "schedselect": "1:ncpus=2:mem=100mb:magrathea_accepts=preemptible",
        "exec_vnode": "(n1:ncpus=2:mem=102400kb)",
        "exec_host2": "n1:15002/0*2",
        "euser": "alice",
        "substate": 42,
    }
    return HookJob(changes.pop("id", "12.srv"), {**attributes, **changes})


def run(
    event: str,
    job: HookJob | None = None,
    jobs: tuple[HookJob, ...] = (),
    here: str = "n1",
    pbs_home: Path = Path("/nowhere"),
) -> HookOutcome:
    own = {here: Entity("name", here, {})}
    listed = {job.id: job for job in jobs} if event == "exechost_periodic" else None
    hook = Hook(*HOOK, pbs_home=pbs_home)
    return hook.run(event, server=Server("srv", {}, {}), vnode=here, job=job, vnode_list=own, job_list=listed)
