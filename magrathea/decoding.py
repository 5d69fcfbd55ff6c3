"""What msgspec raises for bytes that are not what they should be.

Not its own errors only: bytes that are no UTF-8 raise UnicodeDecodeError (msgspec decodes lazily), and nesting deeper
than Python's stack allows raises RecursionError. Whoever decodes what others wrote catches all of them.
"""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
