"""What stands in for PBS, hypervisors, agents, hubs and libvirt in tests that start no process.

Every fake passes the contract of what it stands in for (tests/contract).
"""
