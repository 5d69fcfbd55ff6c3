"""The exceptions that msgspec raises for invalid bytes.

They are not only its own. Bytes that are not UTF-8 raise UnicodeDecodeError (msgspec decodes lazily), and nesting
deeper than Python's stack raises RecursionError. Code that decodes foreign bytes must catch all of them.
"""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
