"""What every implementation of a protocol must do, also the fakes and the stand-in.

A module without `test_` in its name is a contract. It has what its cases need of an implementation (a site), the cases,
and their list. A `test_` module runs all cases of a contract on the implementations that need only this machine;
tests/libvirt and tests/openpbs run the same cases on real systems.

| contract | protocol | implementations |
| --- | --- | --- |
| `driver` | `node_daemon.hypervisor.base.Driver` | local, libvirt's (also on QEMU, LXC), `tests.fakes.hypervisor` |
| `guest_channel` | `GuestChannel` (`node_daemon.guest_channel`) | it, with agent and fake agent; `tests.fakes.guest` |
| `hub` | a hub's messages (`magrathea.messages`) | the hub, `magrathea_lab.rigs.hub_rig` |
| `pbs` | `scheduler_plugin.pbs.base.Pbs` | libpbs on a real server, the stand-in's client, `tests.fakes.pbs` |

An end that a test plays by hand (`HubsEnd`, `Agent`, `FakeHost`) has no behaviour of its own, so it has no contract.

One case is not run on LXC; `tests/libvirt/test_driver_contract.py` says which one, and why.

If a case fails on the real system, the case is wrong. If it fails only elsewhere, the fake is wrong.
"""

import pytest

for contract in ("driver", "guest_channel", "hub", "pbs"):
    pytest.register_assert_rewrite(f"tests.contract.{contract}")
