"""The message-level structures of DAP-18 as frozen dataclasses, and their encoding.

The Rust extension parses the structures of single reports (``Report``, ``VerifyInit``, ...), and
``dapd.protocol`` decides whether values make sense. Every encoding here is canonical: bytes that
decode encode to the same bytes.
"""
