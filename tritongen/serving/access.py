"""How a caller proves who it is, and that the server is who it says: TLS, client certificates, headers."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritongen.errors import InputError

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

_FRAMING = frozenset({"content-length", "transfer-encoding", "inference-header-content-length"})


@dataclass(frozen=True)
class Access:
    """TLS if `secure`; headers with their values, which may be secrets and are in no repr."""

    secure: bool = False
    ca_file: str | None = None
    """Certificates to trust; without one those of the system."""
    certificate_file: str | None = None
    """The client's own certificate; its key is in it or in `key_file`."""
    key_file: str | None = None
    insecure: bool = False
    """Trust any certificate."""
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)

    @property
    def asks_for_tls(self) -> bool:
        """Whether anything is said that has no meaning without TLS."""
        return bool(self.ca_file or self.certificate_file or self.key_file or self.insecure)

    def check(self) -> None:
        """InputError for a header that HTTP cannot carry, or that says how long a request is."""
        for name, value in self.headers:
            if name.lower() in _FRAMING:
                raise InputError(
                    "a header that every request says for itself", found=f"'{name}'", fix="leave it away"
                )
            if not (_HEADER_NAME.fullmatch(name) and value.isprintable() and value.isascii()):
                raise InputError(
                    "a header that cannot be sent",
                    found=f"'{name}'",
                    expected="a name of letters, digits and hyphens, and an ASCII value in one line",
                )

    def context(self, *protocols: str) -> ssl.SSLContext | None:
        """The TLS context that offers these application protocols (ALPN), None without TLS.

        InputError for a certificate file that cannot be used.
        """
        if not self.secure:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file:
                context.load_cert_chain(self.certificate_file, self.key_file, password=_no_password)
        except (OSError, ValueError) as error:
            raise self._unusable(error) from None
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def pem(self, host: str, port: int) -> tuple[bytes | None, bytes | None, bytes | None]:
        """(roots, key, certificates) for grpcio; who trusts any certificate trusts what the server shows.

        InputError for a certificate file that cannot be read, OSError if the server shows nothing.
        """
        try:
            files = (self.ca_file, self.key_file or self.certificate_file, self.certificate_file)
            roots, key, certificates = (None if file is None else Path(file).read_bytes() for file in files)
        except OSError as error:
            raise self._unusable(error) from None
        if self.insecure:
            roots = ssl.get_server_certificate((host, port)).encode()
        return roots, key, certificates

    def _unusable(self, error: Exception) -> InputError:
        files = ", ".join(each for each in (self.ca_file, self.certificate_file, self.key_file) if each)
        return InputError(
            "the certificates for TLS cannot be used",
            found=f"{files}: {error}",
            expected="PEM files; the key without a password",
        )


PLAIN = Access()
"""Without TLS and headers."""


def _no_password() -> str:
    raise ValueError("the key has a password")
