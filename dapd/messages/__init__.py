"""The message-level structures of DAP-18, bytes <-> frozen dataclasses, without judgement.

What holds reports (``Report``, ``VerifyInit`` and so on) belongs to the Rust extension; whether
values make sense is decided in ``dapd.protocol``. Every encoding here is canonical: bytes that
decode encode to the same bytes.
"""
