"""Manifests that are no JSON, or JSON that is made to hurt whoever reads it."""

from __future__ import annotations

from collections.abc import Callable

from edgevae import MANIFEST_FILE
from tests.runtime.hostile.case import Case
from tests.runtime.hostile.files import CHANGED, NO_MANIFEST

TWICE = "says something twice, under the same name"


def _text(name: str, change: Callable[[bytes], bytes], says: str = NO_MANIFEST) -> Case:
    return Case(name, lambda folder: folder.put(MANIFEST_FILE, change(folder.content(MANIFEST_FILE))), says)


def _instead(name: str, content: bytes, says: str = NO_MANIFEST) -> Case:
    return _text(name, lambda _: content, says)


def _again(name: str, pair: bytes, after: bytes = b"{") -> Case:
    """A pair of name and value that is there twice: a second time behind the first `after`."""
    return _text(f"twice-{name}", lambda content: content.replace(after, after + pair + b",", 1), TWICE)


def _version(number: int, version: bytes, says: str) -> Case:
    return _text(
        f"schema-version-{number}",
        lambda content: content.replace(b'"schema_version": 1', b'"schema_version": ' + version),
        says,
    )


TEXTS: tuple[Case, ...] = (
    _instead("empty-manifest", b""),
    _instead("blank-manifest", b" " * 1000),
    _instead("null-manifest", b"null"),
    _instead("list-manifest", b"[]"),
    _instead("zeros-manifest", b"\0" * 1000),
    _instead("object-manifest", b"{}"),
    _instead("nested-lists", b"[" * 500_000),
    _instead("nested-lists-closed", b"[" * 500_000 + b"]" * 500_000),
    _instead("nested-objects", b'{"a":' * 200_000),
    _instead("nested-below-a-version", b'{"schema_version":1,"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    _instead("long-manifest", b'"' + b"a" * 2**21 + b'"', CHANGED),
    _instead("long-list", b"[" + b"[]," * 300_000 + b"[]]"),
    _instead("pickled-manifest", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."),
    _text("byte-order-mark", lambda content: b"\xef\xbb\xbf" + content),
    _text("utf-16", lambda content: content.decode().encode("utf-16")),
    _text("not-utf-8", lambda content: content.replace(b'"name": "small"', b'"name": "sm\xe4ll"')),
    _text("surrogate-in-utf-8", lambda content: content.replace(b'"name": "small"', b'"name": "\xed\xa0\x80"')),
    _text("half-a-surrogate", lambda content: content.replace(b'"name": "small"', b'"name": "\\ud800 and more"')),
    _text("terminal-escape", lambda content: content.replace(b'"name": "small"', b'"name": "\\u001b[2Jsmall"')),
    _text("line-end-in-name", lambda content: content.replace(b'"name": "small"', b'"name": "small\\n"')),
    _text("null-in-name", lambda content: content.replace(b'"name": "small"', b'"name": "small\\u0000"')),
    _text("name-without-end", lambda content: content.replace(b'"name": "small"', b'"name": "' + b"x" * 5000 + b'"')),
    _text("two-documents", lambda content: content + content),
    _text("trailing-comma", lambda content: content.rstrip()[:-1] + b",}"),
    _text("comment", lambda content: b"// a comment\n" + content),
    _text("single-quotes", lambda content: content.replace(b'"', b"'")),
    _text("infinite-tolerance", lambda content: content.replace(b'"atol": ', b'"atol": Infinity, "": ')),
    _text("nan-tolerance", lambda content: content.replace(b'"atol": ', b'"atol": NaN, "": ')),
    _text("tolerance-out-of-range", lambda content: content.replace(b'"atol": ', b'"atol": 1e999, "": ')),
    _text("long-number", lambda content: content.replace(b'"atol": ', b'"atol": ' + b"9" * 10_000 + b', "": ')),
    _again("name", b'"name":"other"'),
    _again("the-same-name", b'"name":"small"'),
    _again("escaped-name", b'"n\\u0061me":"other"'),
    _again("schema-version", b'"schema_version":1'),
    _again("graphs", b'"graphs":{}'),
    _again("sha256", b'"sha256":"' + b"0" * 64 + b'"', b'"file": {'),
    _again("file-name", b'"file":"decoder.onnx"', b'"file": {'),
    _again("hidden-dim", b'"hidden_dim":99', b'"model": {'),
    _again("producer", b'"torch":"0"', b'"producers": {'),
    _version(0, b"0", "schema version 0, this runtime reads 1; export the model again"),
    _version(1, b"-1", "schema version -1, this runtime reads 1; export the model again"),
    _version(2, b"2", "schema version 2, this runtime reads 1; install a newer edgevae"),
    _version(3, b"18446744073709551616", "schema version 18446744073709551616"),
    _version(4, b"1" + b"0" * 100, "schema version 1000"),
    _version(5, b"1" + b"0" * 10_000, NO_MANIFEST),
    _version(6, b"1.5", NO_MANIFEST),
    _version(7, b'"1"', NO_MANIFEST),
    _version(8, b"null", NO_MANIFEST),
    _version(9, b"true", NO_MANIFEST),
    _version(10, b"[1]", NO_MANIFEST),
    _version(11, b"1e400", NO_MANIFEST),
)
