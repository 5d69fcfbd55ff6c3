"""Attacks on the running parts by a guest, a host with a valid key, or a user. All of them must fail."""
