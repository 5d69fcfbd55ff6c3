"""Replacements for PBS, hypervisors, agents, hubs and libvirt, in tests that start no process.

Every fake passes the contract of the part that it replaces (tests/contract).
"""
