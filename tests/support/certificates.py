"""Certificates of an authority of their own, as Dask makes them."""

from __future__ import annotations

from pathlib import Path

import distributed


def make(folder: Path) -> dict[str, str]:
    """Write `ca.pem`, `cert.pem` and `key.pem`, and return their paths by `ca`, `cert` and `key`."""
    folder.mkdir(exist_ok=True)
    made = distributed.Security.temporary()
    contents = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
    for name, content in contents.items():
        (folder / f"{name}.pem").write_text(content)
    return {name: str(folder / f"{name}.pem") for name in contents}
