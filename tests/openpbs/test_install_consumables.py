"""`magrathea pbs install --keep-consumables --protect` on a real OpenPBS: warned of, set, checked, restored."""

from __future__ import annotations

import pytest

from magrathea_lab.clusters.private_openpbs import PrivateOpenPbs

from .test_install import INSTALL, _pbs, magrathea, own_files, pbs, picture, well

__all__ = ["_pbs", "pbs"]

ATTRIBUTE = "restrict_res_to_release_on_suspend"


@pytest.mark.parametrize("before", ["", "mem", "lic_a,lic_b"])
def test_the_attribute_is_offered_set_on_request_and_restored(pbs: PrivateOpenPbs, before: str) -> None:
    pbs.qmgr("create resource lic_a type=long,flag=q\ncreate resource lic_b type=long,flag=q")
    pbs.qmgr("set server resources_available.lic_a=1")
    if before:
        pbs.qmgr(f'set server {ATTRIBUTE}="{before}"')
    was = picture(pbs)
    installed = magrathea(pbs, *INSTALL)
    assert installed.returncode == 0 and f"server {ATTRIBUTE}" in installed.stderr
    assert "install --keep-consumables" in installed.stderr or before == "mem"
    well(magrathea(pbs, "check"), 1)
    assert f"site-server-{ATTRIBUTE}" in magrathea(pbs, "--part", "server", "--format", "plain", of="doctor").stdout
    well(magrathea(pbs, "install", "--keep-consumables", "--protect", "lic_a"))
    well(magrathea(pbs, "check"))
    assert "nothing to change" in well(magrathea(pbs, "install"))
    well(magrathea(pbs, "install", "--release", "lic_b"))
    for word in ("ncpus", "mem", "lic_b"):
        assert f"{ATTRIBUTE} += {word}" in pbs.qmgr("print server") or f"{ATTRIBUTE} = {word}" in pbs.qmgr(
            "print server"
        )
    well(magrathea(pbs, "uninstall", "--resource", "lic_b", "--resource", "lic_a"))
    well(magrathea(pbs, "check"))
    well(magrathea(pbs, "uninstall"))
    assert picture(pbs) == was and own_files(pbs) == []
    if before:
        pbs.qmgr(f"unset server {ATTRIBUTE}")
    pbs.qmgr("unset server resources_available.lic_a\ndelete resource lic_a\ndelete resource lic_b")
