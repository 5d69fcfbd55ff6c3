"""Attacks on the running parts: what a guest, a host with a valid key, or a user tries, and what it gets: nothing."""
