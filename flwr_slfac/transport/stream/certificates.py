"""The certificate of a run: made for it, and the only one that its devices trust."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flwr_slfac.errors import SettingError

# Devices reach the server under any address; this is the name that is checked.
_NAME = "flwr-slfac.invalid"
# Clocks of devices may be a day late; no run is said to take longer than a year.
_BEFORE, _AFTER = datetime.timedelta(days=1), datetime.timedelta(days=366)


@dataclass(frozen=True)
class Identity:
    """What a service proves itself with.

    Parameters
    ----------
    certificate, key : bytes
        In PEM; the certificate may be followed by its chain.
    name : str
        A name in the certificate, which devices check.
    """

    certificate: bytes
    key: bytes
    name: str


def new_identity() -> Identity:
    """Make an ECDSA P-256 key and a certificate that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + _AFTER)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Identity(
        certificate.public_bytes(pem),
        key.private_bytes(
            pem,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        _NAME,
    )


def read_identity(certificate: str | Path, key: str | Path) -> Identity:
    """Read a user's certificate and key.

    Raises
    ------
    SettingError
        If a file cannot be read, or the certificate names no host.
    """
    try:
        pem, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
        found = x509.load_pem_x509_certificate(pem)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise SettingError(
            f"certificate {certificate} or key {key} cannot be used: {error}; give PEM "
            "files, the certificate with a DNS name (subjectAltName)"
        ) from error
    hosts = names.value.get_values_for_type(x509.DNSName)
    if not hosts:
        raise SettingError(
            f"certificate {certificate} has no DNS name; devices check the first one"
        )
    return Identity(pem, secret, hosts[0])
