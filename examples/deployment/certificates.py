"""Keys and certificates of a deployment on one's own: an authority, a server, nodes.

Usage: python certificates.py FOLDER [--host NAME_OR_ADDRESS ...] [--nodes 2]

Writes ``ca.crt``, ``server.pem``, ``server.key`` and, for each node, ``nodeN`` and
``nodeN.pub``. Keys are readable by their owner only; ``ca.key`` is not kept.
"""

import argparse
import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey
_VALID = datetime.timedelta(days=365)


def write_certificates(folder: Path, hosts: Sequence[str], num_nodes: int) -> None:
    """Write everything that a SuperLink and its SuperNodes need.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    hosts : sequence of str
        Names and addresses under which SuperNodes reach the SuperLink.
    num_nodes : int
        How many SuperNodes are to be let in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    issuer = _name("deployment authority")
    ca = _sign(issuer, issuer, authority, authority, [], is_authority=True)
    names = [_host(host) for host in hosts]
    own = _sign(_name(hosts[0]), issuer, server, authority, names, is_authority=False)
    (folder / "ca.crt").write_bytes(_pem(ca))
    (folder / "server.pem").write_bytes(_pem(own))
    _write_key(folder / "server.key", server, serialization.PrivateFormat.PKCS8)
    for number in range(num_nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        path = folder / f"node{number}"
        _write_key(path, key, serialization.PrivateFormat.OpenSSH)
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        path.with_suffix(".pub").write_bytes(public + b"\n")


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    by: Key,
    names: list[x509.GeneralName],
    *,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
    return builder.sign(by, hashes.SHA384())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: Key, form: serialization.PrivateFormat) -> None:
    # Before anything is in it, so that nobody else ever reads the key.
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, form, serialization.NoEncryption()
        )
    )


def main() -> None:
    """Write them for the hosts that were named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", action="append")
    parser.add_argument("--nodes", type=int, default=2)
    options = parser.parse_args()
    write_certificates(options.folder, options.host or ["127.0.0.1"], options.nodes)


if __name__ == "__main__":
    main()
