"""Certificate authorities of a test's own, and the files that a daemon is given of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import trustme


@dataclass
class Authority:
    """Keeps its certificate, and all that it issues, below ``directory``."""

    directory: Path
    _ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ca.cert_pem.write_to_path(str(self.file))

    @property
    def file(self) -> Path:
        """Its own certificate, which others trust."""
        return self.directory / "ca.pem"

    @property
    def chain(self) -> Path:
        return self.directory / "fullchain.pem"

    @property
    def key(self) -> Path:
        return self.directory / "privkey.pem"

    @property
    def server(self) -> dict[str, Any]:
        """The keys of ``[server]`` that name what was issued."""
        return {"tls_certificate": self.chain, "tls_key": self.key}

    def issue(self, *names: str, expires: datetime | None = None) -> Authority:
        """A certificate for ``names``, or for this machine, in place of the one before. Each file
        is replaced as a whole, as ACME clients do it.
        """
        issued = self._ca.issue_cert(*(names or ("127.0.0.1", "localhost")), not_after=expires)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        for path, text in ((self.key, issued.private_key_pem.bytes()), (self.chain, chain)):
            fresh = path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_bytes(text)
            os.replace(fresh, path)  # noqa: PTH105
        return self
