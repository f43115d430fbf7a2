"""Certificates of one run: an authority that signs one for each role and is forgotten, in files of this user only."""

import datetime
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.security import Security

from dpipe.errors import ClusterError

_VALID = datetime.timedelta(days=30)
_ROLES = ("scheduler", "worker", "client")


@dataclass(frozen=True)
class Certificates:
    """PEM files of one run in a folder that only this user can open."""

    folder: Path

    @property
    def authority(self) -> Path:
        """Certificate of the authority that has signed the others."""
        return self.folder / "ca.pem"

    def files(self, role: str) -> tuple[str, str]:
        """Give the certificate and the key of a role."""
        return str(self.folder / f"{role}.pem"), str(self.folder / f"{role}.key")

    def security(self) -> Security:
        """Give what Dask needs to talk to those who hold certificates of this run, and to nobody else."""
        named: dict[str, str] = {}
        for role in _ROLES:
            named[f"tls_{role}_cert"], named[f"tls_{role}_key"] = self.files(role)
        return Security(require_encryption=True, tls_ca_file=str(self.authority), **named)

    def worker_options(self) -> list[str]:
        """Give the options of `dask worker`: they name files, and hold no secret."""
        certificate, key = self.files("worker")
        return ["--tls-ca-file", str(self.authority), "--tls-cert", certificate, "--tls-key", key]

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and a certificate for each role.

    Parameters
    ----------
    folder : Path
        A new folder, which only this user will be able to open. It must be seen by the nodes, too.

    Returns
    -------
    Certificates
        They are valid for 30 days. The key of the authority is kept nowhere: nobody can sign another one.

    Raises
    ------
    ClusterError
        If cryptography is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding
    except ImportError as err:
        raise ClusterError(
            "What leaves this machine is encrypted, which needs the package cryptography: pip install 'dpipe[hpc]'. "
            "On a network that nobody else can reach, tls: false in the specification does without."
        ) from err
    folder.mkdir(mode=0o700, parents=True)
    now = datetime.datetime.now(datetime.UTC)

    def signed(
        name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        own = name == "authority"
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"dpipe {name}")]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dpipe authority")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of nodes differ
            .not_valid_after(now + _VALID)
            .add_extension(x509.BasicConstraints(ca=own, path_length=0 if own else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
        )
        return builder.sign(signer, hashes.SHA256())

    made = Certificates(folder)
    authority = ec.generate_private_key(ec.SECP256R1())
    _write(made.authority, signed("authority", authority, authority).public_bytes(Encoding.PEM))
    for role in _ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, key_file = (Path(each) for each in made.files(role))
        _write(certificate, signed(role, key, authority).public_bytes(Encoding.PEM))
        _write(key_file, _private(key))
    return made


def _private(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Write a file that nobody else can read, not even for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
