"""The places that several parts must agree on if no configuration names others; the shipped units make them.

tests/unit/test_places.py compares them with deploy/ and with each part's own defaults.
"""

from __future__ import annotations

HUB_CONFIGURATION = "/etc/magrathea/hub.toml"
KEYS_DIR = "/etc/magrathea/keys"
HUB_RUN_DIR = "/run/magrathea-hub"
HUB_STATE_DIR = "/var/lib/magrathea-hub"
HUB_ENDPOINT = f"ipc://{HUB_RUN_DIR}/hub.ipc"
HUB_CONTROL = f"{HUB_RUN_DIR}/control.sock"
HEARTBEAT = f"{HUB_RUN_DIR}/heartbeat"
"""The hub touches it, and the server's hook looks at its age."""

NODED_CONFIGURATION = "/etc/magrathea/noded.toml"
NODED_RUN_DIR = "/run/magrathea"
NODED_STATE_DIR = "/var/lib/magrathea"
NODED_CONTROL = f"{NODED_RUN_DIR}/control.sock"
JOURNAL = "journal.sqlite"
"""In the daemon's state directory."""
