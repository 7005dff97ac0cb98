"""Signing: the last thing that is done to a bundle, with a key that is looked at before all else."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgevae import MANIFEST_FILE, SIGNATURE_FILE, BundleError, Manifest, SignatureError, load
from edgevae.cli import main as run_main
from edgevae.export import ExportError, SigningKey, Source, build_wheel, export_bundle
from edgevae.export.cli import main, passphrase_of_signing_key
from edgevae.train.cli import main as train_main
from tests.keys import KeyPair, make_keys

PASSPHRASE = "EDGEVAE_SIGN_PASSPHRASE"  # noqa: S105 - the name of a variable of the environment


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    options = ["--dataset", "digits", "--epochs", "1", "--z-dim", "3", "--hidden-dim", "8", "--no-report"]
    result = CliRunner().invoke(train_main, [*options, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def signed(source: Source, keys: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest is written several times before it is signed."""
    out = tmp_path_factory.mktemp("signed") / "small"
    key = SigningKey(keys.private)
    export_bundle(source, out, ["onnx", "torchscript"], precisions={"fp16": 0.05}, sign=key)
    return out


def vae_export(*arguments: object, **environment: str | None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def test_a_bundle_is_signed_after_all_that_changes_its_manifest(signed: Path, keys: KeyPair) -> None:
    for precision in ("fp32", "fp16"):
        with load(signed, provider="cpu", precision=precision, public_key=keys.public) as model:
            assert model.verify().passed
    assert SigningKey(keys.private).public_key == keys.public.read_bytes()


def test_without_a_key_nothing_is_signed_and_an_older_signature_goes_with_its_bundle(
    source: Source, signed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(signed, tmp_path / "small"))
    export_bundle(source, out, part="decoder", overwrite=True)
    assert not (out / SIGNATURE_FILE).exists()


def test_a_wheel_carries_the_signature_and_its_load_asks_for_it(
    signed: Path, keys: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(build_wheel(signed, tmp_path)) as archive:
        archive.extractall(tmp_path)
    assert not (tmp_path / "small" / "bundle" / "encoder.ts").exists()
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        assert (tmp_path / "small" / "bundle" / name).read_bytes() == (signed / name).read_bytes()
    monkeypatch.syspath_prepend(tmp_path)
    import small  # type: ignore[import-not-found]  # made by this test

    assert small.load("cpu", public_key=keys.public).verify().passed
    with pytest.raises(small.runtime.SignatureError, match="signed with another key"):
        small.load("cpu", public_key=make_keys(tmp_path, "other").public)
    monkeypatch.delitem(sys.modules, "small")


def test_the_wheel_of_an_unsigned_bundle_has_no_signature(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(bundle, tmp_path)) as archive:
        assert f"small/bundle/{SIGNATURE_FILE}" not in archive.namelist()
        assert not Manifest.decode(archive.read(f"small/bundle/{MANIFEST_FILE}")).torch_files


@pytest.mark.parametrize("name", ["README.md", SIGNATURE_FILE])
def test_a_wheel_takes_no_file_from_outside_of_the_bundle(name: str, signed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(signed, tmp_path / "small"))
    (out / name).unlink()
    (out / name).symlink_to(signed / name)
    with pytest.raises(ExportError, match=f"{name} is a symbolic link; replace it by the file itself"):
        build_wheel(out, tmp_path)


@pytest.mark.parametrize(
    "stated",
    [
        {"version": "1.0.0\n"},
        {"version": "v1.0.0"},
        {"license": "MIT\nRequires-Dist: other"},
        {"license": "MIT\n"},
        {"license": " MIT"},
    ],
)
def test_a_foreign_manifest_adds_no_line_to_the_metadata_of_a_wheel(
    stated: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "small"))
    manifest = (out / MANIFEST_FILE).read_text()
    for key, value in stated.items():
        before = {"version": '"version": "1.0.0"', "license": '"license": ""'}[key]
        assert manifest.count(before) == 1
        manifest = manifest.replace(before, f'"{key}": "{value}"'.replace("\n", "\\n"))
    (out / MANIFEST_FILE).write_text(manifest)
    with pytest.raises((ExportError, BundleError), match=r"must be|is not a valid manifest"):
        build_wheel(out, tmp_path)
    assert list(tmp_path.glob("*.whl")) == []


def test_on_the_command_line_a_bundle_is_signed(run: Path, keys: KeyPair, tmp_path: Path) -> None:
    result = vae_export(
        run, "--sign", keys.private, "--format", "wheel", "--graphs", "decoder", "--out", tmp_path / "small"
    )
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "small", provider="cpu", public_key=keys.public).verify().passed
    with zipfile.ZipFile(tmp_path / "small-1.0.0-py3-none-any.whl") as archive:
        assert f"small/bundle/{SIGNATURE_FILE}" in archive.namelist()
    with pytest.raises(SignatureError):
        load(tmp_path / "small", public_key=make_keys(tmp_path, "other").public)


def test_the_passphrase_is_read_from_the_environment_or_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "open sesame"
    keys = make_keys(tmp_path, passphrase=words)
    monkeypatch.setenv(PASSPHRASE, words)
    assert SigningKey(keys.private, passphrase_of_signing_key).public_key == keys.public.read_bytes()
    monkeypatch.delenv(PASSPHRASE)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ExportError, match=f"the signing key is encrypted; set {PASSPHRASE} to its passphrase"):
        SigningKey(keys.private, passphrase_of_signing_key)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    asked: list[bool] = []

    def prompt(_text: str, *, hide_input: bool) -> str:
        asked.append(hide_input)
        return words

    monkeypatch.setattr("click.prompt", prompt)
    assert SigningKey(keys.private, passphrase_of_signing_key).public_key == keys.public.read_bytes()
    assert asked == [True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({"kind": "ed448"}, "holds a private key of another kind, Ed448; expected a PEM file of an Ed25519"),
        ({"kind": "rsa"}, "holds a private key of another kind, RSA"),
        ({"kind": "ec"}, "holds a private key of another kind, "),
        ({"passphrase": "right"}, "cannot be decrypted: the passphrase is wrong, or the file damaged"),
    ],
)
def test_other_keys_are_refused_before_any_work(make: dict[str, str], message: str, run: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path, **make)
    result = vae_export(run, "--sign", keys.private, "--out", tmp_path / "small", **{PASSPHRASE: "wrong"})
    assert (result.exit_code, message in result.output) == (1, True), result.output
    assert "verified with" not in result.output
    assert not (tmp_path / "small").exists()


def test_a_file_that_is_not_a_private_key_is_refused(keys: KeyPair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds a public key, which checks signatures and makes none"):
        SigningKey(keys.public)
    (tmp_path / "none.pem").write_bytes(b"hello")
    with pytest.raises(ExportError, match=r"holds no private key: .*; expected a PEM file of an Ed25519 private key"):
        SigningKey(tmp_path / "none.pem")
    with pytest.raises(ExportError, match=r"the signing key cannot be read: .*; expected"):
        SigningKey(tmp_path / "missing.pem")
    with pytest.raises(ExportError, match="is encrypted; give its passphrase"):
        SigningKey(make_keys(tmp_path, passphrase=str(tmp_path)).private)


def test_keys_that_openssl_makes_sign(source: Source, bundle: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here")
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    commands: tuple[list[str | Path], ...] = (
        ["genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", private],
        ["pkey", "-in", private, "-passin", "pass:secret", "-pubout", "-out", public],
    )
    for command in commands:
        subprocess.run([openssl, *command], check=True, capture_output=True)
    out = Path(shutil.copytree(bundle, tmp_path / "small"))
    SigningKey(private, lambda: "secret").sign_bundle(out)
    assert load(out, provider="cpu", public_key=public).verify().passed


def test_the_documented_steps_work(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here")
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "--sign" in block)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [line[0] for line in lines] == ["openssl", "openssl", "vae-export", "vae-run", "openssl"]
    shutil.copytree(run, tmp_path / "runs" / "mnist-mlp")
    monkeypatch.chdir(tmp_path)
    for program, *arguments in lines:
        if program == "openssl":
            subprocess.run([openssl, *arguments], check=True, capture_output=True)
        else:
            result = CliRunner().invoke(main if program == "vae-export" else run_main, arguments)
            assert result.exit_code == 0, result.output


def test_without_cryptography_the_error_says_what_to_install(keys: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ExportError, match=r"signing needs the package cryptography.*pip install 'edgevae\[signing\]'"):
        SigningKey(keys.private)


def test_a_failure_to_sign_leaves_no_bundle(
    source: Source, keys: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: SigningKey, _folder: Path) -> None:
        raise ExportError("the key is gone")

    monkeypatch.setattr(SigningKey, "sign_bundle", fail)
    with pytest.raises(ExportError, match="the key is gone"):
        export_bundle(source, tmp_path / "out" / "small", sign=SigningKey(keys.private))
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == []
