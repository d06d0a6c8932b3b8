"""Go's sealed format, opened by the real openssl; the `cryptography` package is the independent oracle."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

import tazpod

DATA = Path(__file__).parent / "data" / "go-vault"
MIB = 1 << 20
SALT, NONCE = bytes(range(32)), bytes(range(100, 112))
PASSPHRASE = b"a passphrase of the tests"
BITS = range(8)


# ---- the oracle --------------------------------------------------------------------------------------
@cache
def oracle_key(salt: bytes, passphrase: bytes) -> bytes:
    return PBKDF2HMAC(SHA256(), 32, salt, 100_000).derive(passphrase)


def seal(plain: bytes, passphrase: bytes = PASSPHRASE, salt: bytes = SALT, nonce: bytes = NONCE) -> bytes:
    return salt + nonce + AESGCM(oracle_key(salt, passphrase)).encrypt(nonce, plain, None)


def split(sealed: bytes) -> tuple[bytes, bytes, bytes]:
    return sealed[32:44], sealed[44:-16], sealed[-16:]


def flip(data: bytes, byte: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[byte] ^= 1 << bit
    return bytes(changed)


@pytest.fixture
def key_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real key derivation, but once for each salt and passphrase."""
    real = cache(tazpod._go_key)
    monkeypatch.setattr(tazpod, "_go_key", lambda sealed, passphrase: real(sealed[:32], passphrase))


@pytest.fixture
def wrap_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real wrapping, but once for each key: a sweep starts one program a flip instead of three."""
    monkeypatch.setattr(tazpod, "_cms_wrap", cache(tazpod._cms_wrap))


def outcome(what: Callable[[], bytes]) -> str:
    try:
        return f"opened {len(what())} bytes"
    except tazpod.VaultError as error:
        return type(error).__name__


def assert_all_refused(attempts: Iterable[Callable[[], bytes]], count: int) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(outcome, attempts))
    assert len(outcomes) == count
    assert set(outcomes) == {"WrongPassphrase"}


# ---- what Go wrote -----------------------------------------------------------------------------------
MANIFEST = json.loads((DATA / "manifest.json").read_text("utf-8"))


@pytest.mark.parametrize("name", MANIFEST["vaults"])
def test_a_vault_made_by_go_opens_to_what_its_manifest_says(name: str) -> None:
    told = MANIFEST["vaults"][name]
    sealed = (DATA / name).read_bytes()
    assert (len(sealed), hashlib.sha256(sealed).hexdigest()) == (told["bytes"], told["sha256"])
    plain = gzip.decompress(tazpod.open_go_vault(sealed, told["passphrase"].encode()))
    found = {}
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        for entry in tar:
            stream = tar.extractfile(entry)
            content = stream.read() if stream else None
            found[entry.name] = {
                "mode": f"{entry.mode & 0o7777:04o}",
                "sha256": None if content is None else hashlib.sha256(content).hexdigest(),
                "size": None if content is None else len(content),
                "type": "dir" if entry.isdir() else "file" if entry.isfile() else "other",
            }
    assert found == told["entries"]


@pytest.mark.parametrize("name", MANIFEST["damaged"])
def test_a_damaged_vault_made_by_go_is_refused(name: str) -> None:
    passphrase = MANIFEST["vaults"]["vault1.tar.aes"]["passphrase"].encode()
    with pytest.raises(tazpod.WrongPassphrase, match="wrong passphrase, or the file is damaged"):
        tazpod.open_go_vault((DATA / name).read_bytes(), passphrase)


# ---- vectors -----------------------------------------------------------------------------------------
# sizes around the AES block, around each step of a DER length, and the largest vault
SIZES = [
    0,
    1,
    15,
    16,
    17,
    31,
    32,
    33,
    127,
    128,
    255,
    256,
    257,
    65_535,
    65_536,
    MIB - 1,
    MIB,
    MIB + 1,
    64 * MIB,
]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_opens(size: int, key_once: None) -> None:
    plain = random.Random(size).randbytes(size)
    assert tazpod.open_go_vault(seal(plain), PASSPHRASE) == plain


@pytest.mark.parametrize(
    "plain",
    [
        bytes(4096),
        b"\xff" * 4096,
        bytes(range(256)) * 16,
        b"\r\n" * 999 + b"\n\r\r\n\n",
        b"Content-Type: text/plain\r\n\r\nMIME\r\n",
    ],
    ids=["zero", "ones", "every byte", "line ends", "mime"],
)
@pytest.mark.parametrize("nonce", [bytes(12), b"\xff" * 12, NONCE], ids=["zero", "ones", "any"])
def test_no_byte_is_special(plain: bytes, nonce: bytes, key_once: None) -> None:
    assert tazpod.open_go_vault(seal(plain, nonce=nonce), PASSPHRASE) == plain


@pytest.mark.parametrize(
    "passphrase",
    [b"x", b" ", b"0123456789abcdef" * 256, "pässwörd ☃ 秘密 🗝".encode(), b"\xff\xfe\x80", b" two words\t"],
    ids=["1 byte", "a space", "4 KiB", "unicode", "not utf-8", "spaces kept"],
)
def test_a_passphrase_is_its_bytes(passphrase: bytes) -> None:
    assert tazpod.open_go_vault(seal(b"plain", passphrase), passphrase) == b"plain"


@pytest.mark.parametrize("salt", [bytes(32), b"\xff" * 32], ids=["zero", "ones"])
def test_any_salt_will_do(salt: bytes) -> None:
    assert tazpod.open_go_vault(seal(b"plain", salt=salt), PASSPHRASE) == b"plain"


GCM_KEY = "feffe9928665731c6d6a8f9467308308" * 2
GCM_SPECIFICATION = [  # test cases 13, 14 and 15 of McGrew and Viega: key, nonce, plaintext, ciphertext, tag
    ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    ("00" * 32, "00" * 12, "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"),
    (
        GCM_KEY,
        "cafebabefacedbaddecaf888",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
        "b094dac5d93471bdec1a502270e3cc6c",
    ),
]


@pytest.mark.parametrize("vector", GCM_SPECIFICATION, ids=["13", "14", "15"])
def test_the_vectors_of_the_gcm_specification_open(vector: tuple[str, ...]) -> None:
    key, nonce, plain, ciphertext, tag = map(bytes.fromhex, vector)
    assert tazpod._cms_open(key, nonce, ciphertext, tag) == plain


@pytest.mark.parametrize("seed", range(12))
def test_any_key_can_be_wrapped(seed: int) -> None:
    key = {0: b"\xff" * 32, 1: b"\0" * 31 + b"\1"}.get(seed, random.Random(seed).randbytes(32))
    nonce, ciphertext, tag = split(SALT + NONCE + AESGCM(key).encrypt(NONCE, b"plain", None))
    assert tazpod._cms_open(key, nonce, ciphertext, tag) == b"plain"


def test_a_wrapped_key_is_padded_at_random() -> None:
    assert tazpod._cms_wrap(bytes(32)) != tazpod._cms_wrap(bytes(32))


# ---- the message -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, "0400"),
        (127, "047f"),
        (128, "048180"),
        (255, "0481ff"),
        (256, "04820100"),
        (65_535, "0482ffff"),
        (65_536, "0483010000"),
    ],
)
def test_der_lengths_are_the_shortest(size: int, head: str) -> None:
    assert tazpod._der(4, bytes(size)) == bytes.fromhex(head) + bytes(size)
    assert tazpod._der(4, b"", bytes(size // 2), bytes(size - size // 2)) == bytes.fromhex(head) + bytes(size)


@pytest.mark.parametrize(
    ("dotted", "encoded"),
    [
        ("1.2.840.113549.1.9.16.1.23", "060b2a864886f70d0109100117"),
        ("2.16.840.1.101.3.4.1.46", "060960864801650304012e"),
        ("1.2.128.16383.16384.2097151.2097152", "060f2a8100ff7f818000ffff7f81808000"),
    ],
)
def test_object_identifiers(dotted: str, encoded: str) -> None:
    expected = bytes.fromhex(encoded)
    assert tazpod._oid(dotted) == expected


def test_openssl_reads_the_message_as_what_it_is_meant_to_be() -> None:
    nonce, ciphertext, tag = split(seal(b"some plain text"))
    message = tazpod._cms_message(bytes(48), nonce, ciphertext, tag)
    print_it = ["openssl", "cms", "-cmsout", "-noout", "-print", "-inform", "DER"]
    shown = subprocess.run(print_it, input=message, capture_output=True, check=True).stdout.decode()
    names = [
        "id-smime-ct-authEnvelopedData",
        "pwri",
        "PBKDF2",
        "id-alg-PWRI-KEK",
        "pkcs7-data",
        "aes-256-gcm",
    ]
    places = [shown.index(name) for name in names]
    assert places == sorted(places)
    for part in (ciphertext, tag):
        assert part[:8].hex(" ") in shown.replace("-", " ")


# ---- what must be refused ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "passphrase",
    [
        b"",
        PASSPHRASE[:-1],
        PASSPHRASE + b"\n",
        PASSPHRASE + b" ",
        PASSPHRASE.upper(),
        PASSPHRASE[::-1],
        b"p" * 4096,
    ],
    ids=["empty", "short", "newline", "space", "capitals", "reversed", "long"],
)
def test_a_wrong_passphrase_is_refused(passphrase: bytes) -> None:
    with pytest.raises(tazpod.WrongPassphrase) as caught:
        tazpod.open_go_vault(seal(b"plain text of a vault"), passphrase)
    assert str(caught.value) == "wrong passphrase, or the file is damaged"


def test_two_ways_to_write_one_letter_are_two_passphrases() -> None:
    with pytest.raises(tazpod.WrongPassphrase):
        tazpod.open_go_vault(seal(b"plain", "é".encode()), "e\u0301".encode())


PLACES = {
    "salt": 0,
    "salt, last byte": 31,
    "nonce": 32,
    "nonce, last byte": 43,
    "first byte": 44,
    "middle": 44 + MIB // 2,
    "last byte": 43 + MIB,
    **{f"tag, byte {n}": 44 + MIB + n for n in range(16)},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_changed_byte_in_a_large_vault_is_refused(place: int, key_once: None) -> None:
    sealed = seal(bytes(MIB))
    with pytest.raises(tazpod.WrongPassphrase):
        tazpod.open_go_vault(flip(sealed, place, place % 8), PASSPHRASE)


SMALL = b"a vault of 21 bytes.\n"


def test_every_flipped_bit_after_the_salt_is_refused(wrap_once: None) -> None:
    """All (12 + 21 + 16) * 8 = 392 of them."""
    sealed = seal(SMALL)
    key = tazpod._go_key(sealed, PASSPHRASE)
    assert tazpod._cms_open(key, *split(sealed)) == SMALL

    def attempt(byte: int, bit: int) -> Callable[[], bytes]:
        return lambda: tazpod._cms_open(key, *split(flip(sealed, byte, bit)))

    assert_all_refused((attempt(byte, bit) for byte in range(32, len(sealed)) for bit in BITS), 392)


def test_a_flipped_bit_in_every_byte_of_the_salt_is_refused() -> None:
    sealed = seal(SMALL)

    def attempt(byte: int) -> Callable[[], bytes]:
        return lambda: tazpod.open_go_vault(flip(sealed, byte, byte % 8), PASSPHRASE)

    assert_all_refused((attempt(byte) for byte in range(32)), 32)


def test_a_flipped_bit_in_every_byte_of_go_s_own_vault_is_refused(wrap_once: None) -> None:
    """After the salt, which the long form below includes: 672 bytes."""
    sealed = (DATA / "vault1.tar.aes").read_bytes()
    key = tazpod._go_key(sealed, MANIFEST["vaults"]["vault1.tar.aes"]["passphrase"].encode())
    bit = random.Random(1)

    def attempt(byte: int) -> Callable[[], bytes]:
        return lambda: tazpod._cms_open(key, *split(flip(sealed, byte, bit.randrange(8))))

    assert_all_refused((attempt(byte) for byte in range(32, 704)), 672)


@pytest.mark.long
def test_every_flipped_bit_of_go_s_own_vault_is_refused() -> None:
    """All 704 * 8 = 5632 of them, each opened whole: nothing is cached."""
    sealed = (DATA / "vault1.tar.aes").read_bytes()
    passphrase = MANIFEST["vaults"]["vault1.tar.aes"]["passphrase"].encode()

    def attempt(byte: int, bit: int) -> Callable[[], bytes]:
        return lambda: tazpod.open_go_vault(flip(sealed, byte, bit), passphrase)

    assert_all_refused((attempt(byte, bit) for byte in range(704) for bit in BITS), 5632)


def test_every_length_short_of_the_whole_is_refused(key_once: None, wrap_once: None) -> None:
    sealed = seal(SMALL)
    assert_cut_refused(sealed, PASSPHRASE)


@pytest.mark.long
def test_go_s_own_vault_cut_to_every_length_is_refused(key_once: None, wrap_once: None) -> None:
    passphrase = MANIFEST["vaults"]["vault1.tar.aes"]["passphrase"].encode()
    assert_cut_refused((DATA / "vault1.tar.aes").read_bytes(), passphrase)


def assert_cut_refused(sealed: bytes, passphrase: bytes) -> None:
    for length in range(60):
        with pytest.raises(tazpod.VaultError, match="cut short") as caught:
            tazpod.open_go_vault(sealed[:length], passphrase)
        assert not isinstance(caught.value, tazpod.WrongPassphrase)

    def attempt(length: int) -> Callable[[], bytes]:
        return lambda: tazpod.open_go_vault(sealed[:length], passphrase)

    lengths = range(60, len(sealed))
    assert_all_refused((attempt(length) for length in lengths), len(lengths))


@pytest.mark.parametrize(
    "extra", [b"\0", b"\n", bytes(16), b"x" * 4096], ids=["NUL", "newline", "16", "4096"]
)
def test_bytes_too_many_are_refused(extra: bytes, key_once: None) -> None:
    sealed = seal(SMALL)
    for changed in (sealed + extra, extra + sealed, sealed[:44] + extra + sealed[44:]):
        with pytest.raises(tazpod.WrongPassphrase):
            tazpod.open_go_vault(changed, PASSPHRASE)


@pytest.mark.parametrize("size", [60, 61, 4096])
def test_what_is_no_vault_at_all_is_refused(size: int) -> None:
    for junk in (bytes(size), random.Random(size).randbytes(size)):
        with pytest.raises(tazpod.WrongPassphrase):
            tazpod.open_go_vault(junk, PASSPHRASE)


# ---- openssl misbehaving -----------------------------------------------------------------------------
FAILED = "Error decrypting CMS structure\n"
PROVIDER = "4037348F:error:0308010C:digital envelope routines:inner_evp_generic_fetch:unsupported:x.c:376:\n"
ANSWERS = [  # status, bytes of the 21 that came out, stderr; what 3.0.19 and 3.5.7 say, and more
    (0, 21, "", "opened 21 bytes"),
    (4, 21, FAILED, "WrongPassphrase"),
    (4, 21, FAILED + "40:error:1C800066:Provider routines:any:cipher operation failed:\n", "WrongPassphrase"),
    (4, 0, FAILED, "WrongPassphrase"),
    (0, 20, "", "VaultError"),
    (0, 22, "", "VaultError"),
    (0, 0, "", "VaultError"),
    (1, 21, "", "VaultError"),
    (2, 0, "Error reading SMIME Content Info\n40:error:0680008E:asn1:not enough data:\n", "VaultError"),
    (3, 21, FAILED, "VaultError"),
    (-9, 21, "", "VaultError"),
    (137, 0, "Killed\n", "VaultError"),
    (127, 0, "openssl: not found\n", "VaultError"),
    (4, 0, "Error decrypting CMS using password\n" + PROVIDER, "VaultError"),
]


@pytest.mark.parametrize(("code", "size", "err", "expected"), ANSWERS)
def test_how_an_answer_is_judged(
    code: int, size: int, err: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tazpod, "_cms_wrap", lambda key: bytes(48))
    monkeypatch.setattr(tazpod, "act", lambda argv, data: tazpod.Result(code, bytes(size), err))
    assert outcome(lambda: tazpod._cms_open(bytes(32), NONCE, bytes(21), bytes(16))) == expected


def test_a_failure_with_nothing_to_decrypt_is_judged_by_the_error_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tazpod, "_cms_wrap", lambda key: bytes(48))
    for err, expected in ((FAILED, "WrongPassphrase"), (FAILED + PROVIDER, "VaultError")):
        monkeypatch.setattr(tazpod, "act", lambda argv, data, err=err: tazpod.Result(4, b"", err))
        assert outcome(lambda: tazpod._cms_open(bytes(32), NONCE, b"", bytes(16))) == expected


def test_a_silent_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tazpod, "act", lambda argv, data: tazpod.Result(-9, b"", ""))
    with pytest.raises(tazpod.VaultError, match=r"^openssl failed \(status -9\): it said nothing$"):
        tazpod._cms_open(bytes(32), NONCE, bytes(21), bytes(16))


def test_the_first_error_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = tazpod.Result(4, b"half a secret", "Error decrypting\n" + PROVIDER + "40:error:second\n")
    monkeypatch.setattr(tazpod, "act", lambda argv, data: told)
    with pytest.raises(tazpod.VaultError) as caught:
        tazpod._cms_open(bytes(32), NONCE, bytes(21), bytes(16))
    assert str(caught.value) == f"openssl failed (status 4): {PROVIDER.strip()}"


# ---- secrets -----------------------------------------------------------------------------------------
OPENSSL = shutil.which("openssl") or "openssl"
SECRET_PASSPHRASE = b"canary-in-the-passphrase"
SECRET_PLAIN = b"canary-in-the-plaintext\n" * 4096
CHILD = """
import base64, importlib, json, sys
tazpod, asked = importlib.import_module(sys.argv[1]), json.load(sys.stdin)
try:
    plain = tazpod.open_go_vault(*(base64.b64decode(asked[name]) for name in ("sealed", "passphrase")))
    print(base64.b64encode(plain).decode())
except Exception as error:
    print(type(error).__name__, error)
"""


def secrets_of(sealed: bytes) -> list[bytes]:
    raw = [SECRET_PASSPHRASE, oracle_key(sealed[:32], SECRET_PASSPHRASE), b"canary-in-the-plaintext"]
    pieces = [*raw, raw[1][:8], raw[1][8:16], raw[1][16:24], raw[1][24:]]
    hexed = [shown for piece in pieces for shown in (piece.hex().encode(), piece.hex().upper().encode())]
    return pieces + hexed + [base64.b64encode(piece).rstrip(b"=")[:-1] for piece in pieces]


class Child:
    """The vault opened in a process of its own, with its own PATH and empty folders to leave traces in."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.places = [folder / name for name in ("cwd", "tmp", "home")]
        for place in [self.bin, *self.places]:
            place.mkdir()
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "TMPDIR": str(self.places[1]),
            "HOME": str(self.places[2]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(str(tazpod.__file__)).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }

    def fake_openssl(self, script: str) -> None:
        (self.bin / "openssl").write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / "openssl").chmod(0o755)

    def open(self, sealed: bytes, limit: Callable[[], None] | None = None) -> str:
        asked = {"sealed": sealed, "passphrase": SECRET_PASSPHRASE}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, tazpod.__name__],
            input=json.dumps({name: base64.b64encode(value).decode() for name, value in asked.items()}),
            capture_output=True,
            text=True,
            check=True,
            cwd=self.places[0],
            env=self.environment,
            preexec_fn=limit,
        )
        assert done.stderr == ""
        return done.stdout.strip()

    def traces(self) -> list[Path]:
        return [found for place in self.places for found in place.rglob("*")]


@pytest.fixture
def child(tmp_path: Path) -> Child:
    return Child(tmp_path)


class Sampler(threading.Thread):
    """Reads what every user may see of every process, again and again, until stopped.

    A fake openssl that left its `PID.argv` in `records` waits for `PID.seen`: so none can be missed.
    """

    def __init__(self, records: Path) -> None:
        super().__init__(daemon=True)
        self.records, self.stopped, self.seen = records, threading.Event(), set[bytes]()

    def run(self) -> None:
        while not self.stopped.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                waiting = (self.records / f"{process.name}.argv").exists()
                try:
                    self.seen |= {(process / name).read_bytes() for name in ("cmdline", "environ")}
                except OSError:  # gone, or not ours
                    continue
                if waiting:
                    (self.records / f"{process.name}.seen").touch()

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()


def test_no_secret_is_in_argv_environment_or_a_file(child: Child, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    child.environment["RECORDS"] = str(records)
    child.fake_openssl(
        'cat /proc/$$/environ >"$RECORDS/$$.environ"\n'
        'for fd in /proc/$$/fd/*; do readlink "$fd"; done >"$RECORDS/$$.fds"\n'
        'for word in "$@"; do printf "%s\\n" "$word"; done >"$RECORDS/$$.argv"\n'
        'until [ -e "$RECORDS/$$.seen" ]; do sleep 0.01; done\n'
        f'exec {OPENSSL} "$@"'
    )
    all_argv = []
    for salt in (SALT, SALT[::-1]):  # two keys
        sealed = seal(SECRET_PLAIN, SECRET_PASSPHRASE, salt=salt)
        with Sampler(records) as sampler:
            assert child.open(sealed) == base64.b64encode(SECRET_PLAIN).decode()
        seen = [argv for argv in sampler.seen if str(child.bin / "openssl").encode() in argv.split(b"\0")]
        assert sorted(argv.split(b"\0")[2] for argv in seen) == [b"cms", b"enc"]
        shown = b"\n".join([*sampler.seen, *(record.read_bytes() for record in records.iterdir())])
        assert [secret for secret in secrets_of(sealed) if secret in shown] == []
        all_argv.append(sorted(record.read_text() for record in records.glob("*.argv")))
        descriptors = {fd for record in records.glob("*.fds") for fd in record.read_text().split("\n") if fd}
        known = {str(child.bin / "openssl"), *map(str, records.glob("*"))}
        kinds = ("pipe:", "socket:", "/dev/null", "/memfd:", "/proc/")
        assert [fd for fd in descriptors - known if not fd.startswith(kinds)] == []
        assert child.traces() == []
        for record in records.iterdir():
            record.unlink()
    assert [argv.split("\n")[0] for argv in all_argv[0]] == ["cms", "enc", "enc"]
    assert all_argv[0] == all_argv[1], "argv must be the same for every vault and key"


def test_it_opens_where_no_byte_can_be_written_to_any_file(child: Child) -> None:
    sealed = seal(SECRET_PLAIN, SECRET_PASSPHRASE)
    opened = child.open(sealed, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert opened == base64.b64encode(SECRET_PLAIN).decode()


REAL = f'{OPENSSL} "$@"'
BROKEN = {
    "silent failure": "cat >/dev/null; exit 1",
    "silent success": "cat >/dev/null",
    "does not read": "exit 0",
    "killed": "kill -9 $$",
    "old: no cms": f'[ "$1" = enc ] && exec {REAL}; echo "Invalid command \'cms\'" >&2; exit 1',
    "no algorithms": f"export OPENSSL_CONF=$0.cnf; exec {REAL}",
    "no algorithms in cms": f'[ "$1" = enc ] || export OPENSSL_CONF=$0.cnf; exec {REAL}',
    "output cut": f'[ "$1" = enc ] && exec {REAL}; {REAL} | head -c 1000',
    "fails after enc": f"{REAL}; exit 1",
    "wrong wrap": f'[ "$1" = cms ] && exec {REAL}; cat',
}


@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN)
def test_a_broken_openssl_is_not_a_wrong_passphrase(script: str, child: Child) -> None:
    child.fake_openssl(script)
    (child.bin / "openssl.cnf").write_text(
        "openssl_conf = a\n[a]\nproviders = p\n[p]\nnull = n\n[n]\nactivate = 1\n"
    )
    sealed = seal(SECRET_PLAIN, SECRET_PASSPHRASE)
    told = child.open(sealed)
    assert "openssl" in told and not told.startswith("WrongPassphrase")
    assert told.split(" ")[0].isidentifier(), "an error, not a plaintext"
    assert [secret for secret in secrets_of(sealed) if secret in told.encode()] == []
    assert child.traces() == []


def test_a_missing_openssl_is_not_a_wrong_passphrase(child: Child) -> None:
    child.environment["PATH"] = str(child.bin)
    told = child.open(seal(SECRET_PLAIN, SECRET_PASSPHRASE))
    assert "openssl" in told and not told.startswith("WrongPassphrase")


def test_no_secret_is_in_an_error() -> None:
    sealed = flip(seal(SECRET_PLAIN, SECRET_PASSPHRASE), 100)
    with pytest.raises(tazpod.WrongPassphrase) as caught:
        tazpod.open_go_vault(sealed, SECRET_PASSPHRASE)
    shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb)).encode()
    assert [secret for secret in secrets_of(sealed) if secret in shown] == []
