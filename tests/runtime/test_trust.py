"""Signed bundles: who asks for a signature gets what was signed, or an error before anything is decoded."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgevae
from edgevae import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    Bundle,
    BundleError,
    InputError,
    Manifest,
    SignatureError,
    load,
)
from edgevae.cli import main
from edgevae.export import SigningKey
from tests.keys import KeyPair, make_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def signed(bundle: Path, keys: KeyPair, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(bundle, tmp_path / "signed"))
    SigningKey(keys.private).sign_bundle(copy)
    return copy


def test_a_signed_bundle_loads_with_its_key_as_a_path_or_as_bytes_and_without_it(signed: Path, keys: KeyPair) -> None:
    expected = load(signed, provider="cpu").generate(2, seed=0)
    for public_key in (keys.public, str(keys.public), keys.public.read_bytes()):
        model = load(signed, provider="cpu", public_key=public_key)
        np.testing.assert_array_equal(model.generate(2, seed=0), expected)
        assert model.verify().passed


def test_the_signature_is_64_bytes_that_openssl_verifies_too(signed: Path, keys: KeyPair) -> None:
    assert (signed / SIGNATURE_FILE).stat().st_size == 64
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here")
    command: list[str | Path] = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", keys.public, "-rawin"]
    command += ["-in", signed / MANIFEST_FILE, "-sigfile", signed / SIGNATURE_FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "Signature Verified Successfully"), done.stderr


def remove(folder: Path) -> None:
    (folder / SIGNATURE_FILE).unlink()


def replace_by_folder(folder: Path) -> None:
    remove(folder)
    (folder / SIGNATURE_FILE).mkdir()


def replace_by_link(folder: Path) -> None:
    (folder / SIGNATURE_FILE).rename(folder.parent / "elsewhere")
    (folder / SIGNATURE_FILE).symlink_to(folder.parent / "elsewhere")


def truncate(folder: Path) -> None:
    (folder / SIGNATURE_FILE).write_bytes((folder / SIGNATURE_FILE).read_bytes()[:63])


def lengthen(folder: Path) -> None:
    with (folder / SIGNATURE_FILE).open("ab") as file:
        file.write(b"\n")


def empty(folder: Path) -> None:
    (folder / SIGNATURE_FILE).write_bytes(b"")


def zero(folder: Path) -> None:
    (folder / SIGNATURE_FILE).write_bytes(bytes(64))


def flip_a_bit_of_the_signature(folder: Path) -> None:
    content = bytearray((folder / SIGNATURE_FILE).read_bytes())
    content[40] ^= 1
    (folder / SIGNATURE_FILE).write_bytes(content)


def append_a_space_to_the_manifest(folder: Path) -> None:
    with (folder / MANIFEST_FILE).open("ab") as file:
        file.write(b" ")


def change_a_number_in_the_manifest(folder: Path) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    content["tolerances"]["atol"] = 1.0
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def spoil_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b"[" * 100_000)


ALTERED: list[tuple[Callable[[Path], None], str]] = [
    (remove, r"is not signed: it has no manifest\.json\.sig"),
    (replace_by_folder, "is not a regular file"),
    (replace_by_link, "is a link, and nothing outside of a bundle is read"),
    (truncate, "is no signature: it has 63 bytes, expected 64"),
    (lengthen, "it has 65 bytes, expected at most 64"),
    (empty, "is no signature: it has 0 bytes, expected 64"),
    (zero, "was altered after it was signed"),
    (flip_a_bit_of_the_signature, "was altered after it was signed"),
    (append_a_space_to_the_manifest, "was altered after it was signed"),
    (change_a_number_in_the_manifest, "was altered after it was signed"),
    (spoil_the_manifest, "was altered after it was signed"),
]


@pytest.mark.parametrize(("alter", "message"), ALTERED, ids=lambda value: getattr(value, "__name__", ""))
def test_unsigned_and_altered_bundles_are_refused_before_the_manifest_is_decoded(
    alter: Callable[[Path], None], message: str, signed: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(signed)
    decoded: list[bytes] = []
    monkeypatch.setattr(Manifest, "decode", staticmethod(decoded.append))
    with pytest.raises(SignatureError, match=message):
        load(signed, provider="cpu", public_key=keys.public)
    assert decoded == []


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="signed with another key than the one that was given"):
        load(signed, provider="cpu", public_key=make_keys(tmp_path, "other").public)


def test_the_signature_of_another_bundle_is_refused(signed: Path, keys: KeyPair) -> None:
    other = (signed / MANIFEST_FILE).read_bytes().replace(b'"small"', b'"other"')
    signature = (signed / SIGNATURE_FILE).read_bytes()
    (signed / MANIFEST_FILE).write_bytes(other)
    SigningKey(keys.private).sign_bundle(signed)
    load(signed, provider="cpu", public_key=keys.public)
    (signed / SIGNATURE_FILE).write_bytes(signature)
    with pytest.raises(SignatureError, match="was altered"):
        load(signed, provider="cpu", public_key=keys.public)


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx", "elbo.onnx"])
def test_an_altered_graph_is_refused_although_the_signature_is_valid(file: str, signed: Path, keys: KeyPair) -> None:
    with (signed / file).open("ab") as graph:
        graph.write(b"\0")
    with pytest.raises(BundleError, match=f"{file} was changed after export"):
        load(signed, provider="cpu", public_key=keys.public)


def test_a_file_that_is_altered_after_loading_is_refused_when_it_is_read(signed: Path, keys: KeyPair) -> None:
    model = load(signed, provider="cpu", public_key=keys.public)
    manifest = json.loads((signed / MANIFEST_FILE).read_bytes())
    (signed / "reference.npz").write_bytes(b"other")
    manifest["reference"]["sha256"] = "0" * 64  # nor does a manifest help that fits the altered file
    (signed / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="was changed after export"):
        model.verify()


def test_programs_for_pytorch_are_under_the_signature(signed: Path, keys: KeyPair) -> None:
    bundle = Bundle(signed, keys.public)
    content = (signed / "encoder.ts").read_bytes()
    assert bundle.read(bundle.manifest.torch_files["encoder.ts"]) == content
    (signed / "encoder.ts").write_bytes(content + b"\0")
    with pytest.raises(BundleError, match="was changed after export"):
        bundle.read(bundle.manifest.torch_files["encoder.ts"])


def test_a_pickled_model_asks_for_the_same_signature_where_it_is_unpickled(signed: Path, keys: KeyPair) -> None:
    public = signed.parent / "moved.pem"
    shutil.copy(keys.public, public)
    pickled = pickle.dumps(load(signed, provider="cpu", public_key=public))
    public.unlink()  # the key itself was pickled, not where it lay
    assert pickle.loads(pickled).verify().passed  # noqa: S301 - made here
    (signed / SIGNATURE_FILE).unlink()
    with pytest.raises(SignatureError, match="is not signed"):
        pickle.loads(pickled)  # noqa: S301 - made here


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no public key"),
        (b"hello", "holds no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "holds no public key"),
        (bytes(100_000), "holds no public key"),
    ],
)
def test_a_file_that_is_not_a_key_is_refused(content: bytes, message: str, signed: Path, tmp_path: Path) -> None:
    (tmp_path / "public.pem").write_bytes(content)
    for given in (content, tmp_path / "public.pem"):
        with pytest.raises(InputError, match=rf"{message}.*; expected a PEM file of an Ed25519 public key") as caught:
            load(signed, public_key=given)
        assert not isinstance(caught.value, BundleError)


@pytest.mark.parametrize(("kind", "name"), [("ed448", "Ed448"), ("rsa", "RSA"), ("ec", "(EC|EllipticCurve)")])
def test_keys_of_other_kinds_are_refused(kind: str, name: str, signed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"holds a public key of another kind, {name}; expected a PEM file"):
        load(signed, public_key=make_keys(tmp_path, kind=kind).public)


@pytest.mark.parametrize("passphrase", [None, "secret"])
def test_a_private_key_in_place_of_a_public_one_is_refused(
    passphrase: str | None, signed: Path, tmp_path: Path
) -> None:
    private = make_keys(tmp_path, passphrase=passphrase).private
    with pytest.raises(InputError, match="holds a private key, which only the one who signs may have") as caught:
        load(signed, public_key=private)
    assert private.read_text().splitlines()[1] not in str(caught.value)


def test_an_invalid_key_argument_is_refused(signed: Path, tmp_path: Path) -> None:
    for given in (tmp_path / "missing.pem", tmp_path, "with\0null"):
        with pytest.raises(InputError, match="public_key cannot be read"):
            load(signed, public_key=given)
    with pytest.raises(InputError, match="public_key must be a path, or PEM in bytes, got int"):
        load(signed, public_key=3)  # type: ignore[arg-type]  # what a caller may do


def test_the_key_is_checked_before_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no public key"):
        load(tmp_path / "missing", public_key=b"")


WITHOUT = """
import sys
sys.modules["cryptography"] = None
import edgevae
print(edgevae.load(sys.argv[1], provider="cpu").verify().passed)
try:
    edgevae.load(sys.argv[1], provider="cpu", public_key=sys.argv[2])
except edgevae.InstallError as error:
    print(error)
"""
LOADED = """
import sys
import edgevae
edgevae.load(sys.argv[1], provider="cpu")
print("cryptography" in sys.modules)
edgevae.load(sys.argv[1], provider="cpu", public_key=sys.argv[2])
print("cryptography" in sys.modules)
"""


def run(program: str, *arguments: Path) -> list[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_without_cryptography_a_bundle_runs_and_a_signature_cannot_be_asked_for(signed: Path, keys: KeyPair) -> None:
    passed, message = run(WITHOUT, signed, keys.public)
    assert passed == "True"
    assert message == (
        "public_key needs the package cryptography, which is not installed; pip install 'edgevae[signing]'"
    )


def test_cryptography_is_imported_only_for_a_public_key(signed: Path, keys: KeyPair) -> None:
    assert run(LOADED, signed, keys.public) == ["False", "True"]


def vae_run(*arguments: object, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)
    return result.exit_code, result.output


@pytest.mark.parametrize("command", [["verify"], ["info"], ["bench", "--seconds", "0.01", "--batch-size", "1"]])
def test_commands_ask_for_the_signature_of_a_public_key(
    command: list[str], signed: Path, keys: KeyPair, tmp_path: Path
) -> None:
    name, *options = command
    other = make_keys(tmp_path, "other").public
    code, output = vae_run(name, signed, *options, "--public-key", keys.public)
    assert code == 0, output
    code, output = vae_run(name, signed, *options, "--public-key", other)
    assert (code, "signed with another key" in output) == (2, True), output
    code, output = vae_run(name, signed, *options, EDGEVAE_PUBLIC_KEY=str(other))
    assert (code, "signed with another key" in output) == (2, True), output


def test_every_command_that_takes_a_bundle_takes_a_public_key() -> None:
    for name, command in main.commands.items():
        names = {parameter.name for parameter in command.params}
        assert ("bundle" in names) == ("public_key" in names), name


def test_a_bundle_without_a_valid_signature_gives_no_output(bundle: Path, keys: KeyPair, tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    code, output = vae_run("generate", bundle, "--public-key", keys.public, "--out", out)
    assert (code, "is not signed" in output, out.exists()) == (2, True, False), output


def test_a_signature_error_is_a_bundle_error() -> None:
    assert issubclass(edgevae.SignatureError, edgevae.BundleError)
