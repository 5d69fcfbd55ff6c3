"""The commands that docs/user-guide.md shows to users, and what it promises about a stop, on a real server."""

from __future__ import annotations

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from tests.documents import ROOT, blocks

USER = "alice"


def test_the_guides_job_is_stopped_for_the_urgent_one_names_it_and_continues(fleet: OpenPbsCluster) -> None:
    typed_blocks = [block.text for block in blocks(ROOT / "docs/user-guide.md") if "user" in block.words]
    first, second, look, warned = typed_blocks
    pbs = fleet.pbs

    def typed(text: str) -> str:
        return pbs.run(HEAD, ["bash", "-e", "-c", text], user=USER).stdout.strip()

    def stopped() -> str:
        job = pbs.job(low)
        return str(job.get("comment", "")) if job["job_state"] == "S" else ""

    with fleet.only(EXCLUSIVE):
        low = typed(first)
        pbs.wait(lambda: fleet.vnodes()["p1"].magrathea == "occupied-would-preempt", "a job that may be stopped", 20)
        high = typed(second)
        pbs.wait(lambda: high.partition(".")[0] in stopped(), "a stop whose comment says for whom", 20)
        shown = typed(look)
        assert low.partition(".")[0] in shown
        assert f"preempted by {high}" in " ".join(shown.split()), "the command shows comments"
        assert pbs.wait_job(low, "F", 40)["Exit_status"] == 0
        assert pbs.output(USER, low, name="job.sh") == "begun\ndone\n"
        asks = typed(warned)
        assert pbs.job(asks)["Variable_List"]["MAGRATHEA_SIGNAL"] == "B:USR1@30"
        assert pbs.wait_job(asks, "F", 40)["Exit_status"] == 0
    asked = ["qsub", "-l", "select=1:ncpus=1:magrathea_accepts=priority", "--", "/bin/true"]
    refused = pbs.run(HEAD, asked, user=USER, check=False)
    assert refused.returncode != 0, "the class cannot be requested"
