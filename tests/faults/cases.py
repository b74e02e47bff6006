"""Layers that real tools make and that some mode once got wrong, with the right answer beside each.

Each kind stands for bug reports of snapshotters, builders and registries. An answer is a tree, the same in every mode,
or a refusal by every command and mode in one line that names the layer and what in it is wrong.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zstandard

from harness.oci.descriptor import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from tests.faults.entries import device, file, folder, gzipped, hard, member, symlink, tar_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.entries import Entry

DIRECTORY = "dir"
Shown = str | bytes
"""DIRECTORY, a file's content, or a symbolic link's target after ``-> ``."""


@dataclass(frozen=True)
class Stored:
    """A layer's tar and how the registry holds it."""

    tar: bytes
    blob: bytes
    media_type: str = OCI_LAYER_GZIP


@dataclass(frozen=True)
class Fault:
    """One image; ``refusal`` is a pattern that each refusal's one line contains."""

    name: str
    why: str
    layers: tuple[Stored, ...]
    tree: dict[str, Shown] = field(default_factory=dict)
    refusal: str = ""


def _layers(*tars: Sequence[Entry]) -> tuple[Stored, ...]:
    return tuple(Stored(tar_of(*entries), gzipped(tar_of(*entries))) for entries in tars)


def _shown(name: str, why: str, tree: dict[str, Shown], *layers: Sequence[Entry]) -> Fault:
    return Fault(name, why, _layers(*layers), tree)


def _refused(name: str, why: str, refusal: str, *layers: Sequence[Entry]) -> Fault:
    return Fault(name, why, _layers(*layers), refusal=refusal)


def _stored(name: str, why: str, tar: bytes, blob: bytes, media_type: str = OCI_LAYER_GZIP) -> Fault:
    """One oddly stored layer over another that holds ``TREE``."""
    tree: dict[str, Shown] = {"x": DIRECTORY, "x/a": b"hi", "x/b": b"z" * 5000}
    return Fault(
        name, why, (*_layers([file(b"x/a", b"old"), file(b"x/b", b"old")]), Stored(tar, blob, media_type)), tree
    )


TAR = tar_of(folder(b"x"), file(b"x/a", b"hi"), file(b"x/b", b"z" * 5000))
NOISE = tar_of(file(b"a", b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(3000))))


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


XATTR = "SCHILY.xattr."
MEANINGS = (
    _shown(
        "usrmerge", "an entry below a symlink of its own layer goes where the link leads",
        {"usr": DIRECTORY, "usr/bin": DIRECTORY, "bin": "-> usr/bin", "usr/bin/tool": b"x"},
        [folder(b"usr"), folder(b"usr/bin"), symlink(b"bin", b"usr/bin"), file(b"bin/tool", b"x", mode=0o755)],
    ),
    _shown(
        "usrmerge-outside", "through a link that points out of the root, it is resolved inside it, as in containerd",
        {"bin": "-> ../../etc", "etc": DIRECTORY, "etc/tool": b"x"},
        [symlink(b"bin", b"../../etc"), file(b"bin/tool", b"x")],
    ),
    _shown(
        "usrmerge-markers", "whiteouts and opaque markers below a symlink hide what is where it leads",
        {"usr": DIRECTORY, "usr/bin": DIRECTORY, "bin": "-> usr/bin", "usr/lib": DIRECTORY, "lib": "-> /usr/lib",
         "usr/bin/kept": b"k"},
        [file(b"usr/bin/tool", b"x"), file(b"usr/bin/kept", b"k"), file(b"usr/lib/a", b"a")],
        [symlink(b"bin", b"usr/bin"), file(b"bin/.wh.tool"), symlink(b"lib", b"/usr/lib"), file(b"lib/.wh..wh..opq")],
    ),
    _shown(
        "usrmerge-through-nothing", "a link's .. leaves a directory that no layer has: the path is resolved first, and "
        "that directory is not made",
        {"bin": "-> missing/../usr/bin", "usr": DIRECTORY, "usr/bin": DIRECTORY, "usr/bin/tool": b"x",
         "lib": "-> nowhere/lib", "nowhere": DIRECTORY, "nowhere/lib": DIRECTORY},
        [symlink(b"bin", b"missing/../usr/bin"), file(b"bin/tool", b"x"), symlink(b"lib", b"nowhere/lib"),
         file(b"lib/.wh.a")],
    ),
    _shown(
        "marker-of-a-replaced-directory", "a marker goes with its directory when a later entry replaces that",
        {"s": "-> b", "b": DIRECTORY, "b/a": b"low", "b/c": DIRECTORY, "b/c/d": b"d"},
        [file(b"b/a", b"low")],
        [symlink(b"s", b"b"), file(b"b/.wh.a"), hard(b"b", b"late"), file(b"s/c/d", b"d")],
    ),
    _refused(
        "symlink-loop", "links in a circle lead nowhere", "symbolic links",
        [symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x", b"x")],
    ),
    _refused(
        "below-a-file", "nothing stands below a file of its own layer", "'f/x'.*stands below",
        [file(b"f", b"f"), file(b"f/x", b"x")],
    ),
    _refused(
        "below-a-marker", "names that begin with .wh. are markers, and hold nothing", "stands below.*marker",
        [folder(b".wh.a"), file(b".wh.a/x", b"x")],
    ),
    _refused("whiteout-of-nothing", "a marker must name something", "whiteout", [file(b"d/.wh..")]),
    _shown(
        "whiteout-and-new", "a whiteout hides the lower directory also where the layer makes it anew",
        {"a1": DIRECTORY, "a1/newfile": b"new"},
        [folder(b"a1"), file(b"a1/file", b"old")], [file(b".wh.a1"), file(b"a1/newfile", b"new")],
    ),
    _shown(
        "new-and-whiteout", "wherever the whiteout stands",
        {"a1": DIRECTORY, "a1/newfile": b"new", "b": b"mine"},
        [folder(b"a1"), file(b"a1/file", b"old"), file(b"b", b"old")],
        [file(b"a1/newfile", b"new"), file(b".wh.a1"), file(b"b", b"mine"), file(b".wh.b")],
    ),
    _shown(
        "overlay-whiteout", "a device 0/0 is OverlayFS's whiteout, as containerd leaves it in an upper directory",
        {"b": b"b"}, [file(b"a", b"a"), file(b"b", b"b")], [device(b"a", 0, 0)],
    ),
    _shown(
        "replaced-twice", "a symlink and then a directory replaced what lay below, so its content is gone",
        {"a": DIRECTORY}, [folder(b"a"), file(b"a/x", b"x")], [symlink(b"a", b"t"), folder(b"a")],
    ),
    _shown(
        "replaced-thrice", "a directory, a file, a directory: what was in the first is gone",
        {"a": DIRECTORY, "a/new": b"n"},
        [file(b"a/low", b"x")], [file(b"a/own", b"x"), file(b"a", b"f"), folder(b"a"), file(b"a/new", b"n")],
    ),
    _shown(
        "opaque-inside", "an opaque directory hides what lower layers have in it, however deep",
        {"d": DIRECTORY, "d/e": DIRECTORY, "d/e/new": b"n"},
        [file(b"d/e/old", b"o"), file(b"d/old", b"o")],
        [folder(b"d"), file(b"d/.wh..wh..opq"), file(b"d/e/new", b"n")],
    ),
    _shown(
        "opaque-root", "an opaque marker at the root hides all lower layers",
        {"new": b"n"}, [file(b"old", b"o")], [file(b".wh..wh..opq"), file(b"new", b"n")],
    ),
    _shown(
        "opaque-attribute", "overlay attributes leaked into a tar: opaque is obeyed, the others are never shown",
        {"d": DIRECTORY, "d/up": b"up"},
        [folder(b"d"), file(b"d/low", b"low")],
        [folder(b"d", pax={XATTR + "trusted.overlay.opaque": b"y"}),
         file(b"d/up", b"up", pax={XATTR + "user.overlay.impure": b"y", XATTR + "trusted.overlay.redirect": b"/x"})],
    ),
    _shown(
        "attributes-nobody-holds", "attributes that the kernel would not take are left out, as Docker does",
        {"a": b"a", "s": "-> a"},
        [file(b"a", b"a", pax={XATTR + "com.apple.quarantine": b"1", XATTR + "security.capability": b"short",
                               XATTR + "user.kept": b"1"}),
         symlink(b"s", b"a", pax={XATTR + "user.no": b"1"})],
    ),
    _shown(
        "absolute", "names that begin with / are read from the root (distroless, kaniko and Paketo have them)",
        {"usr": DIRECTORY, "usr/x": b"x", "usr/y": b"y"},
        [folder(b"/"), folder(b"/usr/"), file(b"/usr/x", b"x"), file(b"./usr/y", b"y")],
    ),
    _shown(
        "dots", "names are cleaned as path.Clean does it",
        {"a": DIRECTORY, "b": DIRECTORY, "b/x": b"x", "a/y": b"y"},
        [folder(b"a"), file(b"a/../b/./x", b"x"), file(b"a//y", b"y")],
    ),
    _refused("climbing", "a name that leaves the root is refused", "leave the layer's root", [file(b"../x", b"x")]),
    _shown(
        "link-to-lower", "a hard link to a lower layer's file is another name of it",
        {"d": DIRECTORY, "d/one": b"one", "d/copy": b"one"},
        [folder(b"d"), file(b"d/one", b"one")], [folder(b"d"), hard(b"d/copy", b"d/one")],
    ),
    _shown(
        "links-to-lower", "more of them, to a symlink, through a layer between, and of a file with names already",
        {"one": b"one", "two": b"one", "s": "-> one", "s2": "-> one", "three": b"one", "four": b"one", "m": b"m"},
        [file(b"one", b"one"), hard(b"two", b"one"), symlink(b"s", b"one")], [file(b"m", b"m")],
        [hard(b"three", b"two"), hard(b"four", b"three"), hard(b"s2", b"s")],
    ),
    _refused(
        "link-to-hidden", "what the layer itself removes is no target", "'b'.*hard link to 'a'",
        [file(b"a", b"a")], [file(b".wh.a"), hard(b"b", b"a")],
    ),
    _refused("link-to-nothing", "no layer has the target", "'b'.*hard link to 'a'", [hard(b"b", b"a")]),
    _refused("link-to-directory", "directories have one name", "directory", [folder(b"d"), hard(b"l", b"d")]),
    _refused("link-to-itself", "a name is no link to itself", "itself", [file(b"a", b"a"), hard(b"a", b"a")]),
    _refused("links-in-a-circle", "they lead nowhere", "circle", [hard(b"a", b"b"), hard(b"b", b"a")]),
    _shown(
        "link-before-target", "a hard link may stand before the file",
        {"a": b"late", "d": DIRECTORY, "d/late": b"late"}, [hard(b"a", b"d/late"), file(b"d/late", b"late")],
    ),
    _shown(
        "links-before-targets-twice", "of links of one name to files that come later the last counts",
        {"d": b"two", "e": b"two"},
        [hard(b"d", b".wh..wh.plnk/1"), hard(b"d", b".wh..wh.plnk/2"), hard(b"e", b"d"),
         file(b".wh..wh.plnk/2", b"two"), file(b".wh..wh.plnk/1", b"one")],
    ),
    _shown(
        "link-keeps-replaced", "a link keeps the file that its target's name stood for",
        {"a": b"new", "b": b"old", "c": b"old"},
        [file(b"a", b"old"), hard(b"b", b"a"), hard(b"c", b"b"), file(b"a", b"new")],
    ),
    _shown(
        "aufs-plnk", "what lies below .wh..wh.plnk is never shown, and links into it keep their content",
        {"etc": DIRECTORY, "etc/a": b"linked"},
        [folder(b".wh..wh.plnk"), file(b".wh..wh.plnk/1.2", b"linked"), file(b".wh..wh.aufs"), folder(b".wh..wh.orph"),
         folder(b"etc"), hard(b"etc/a", b".wh..wh.plnk/1.2")],
    ),
    _shown(
        "repeated", "the last entry of a name counts, whatever the two are",
        {"a": b"2", "d": DIRECTORY, "d/kept": b"k", "l": "-> new", "was": b"file"},
        [file(b"a", b"1"), folder(b"d", 0o700), file(b"d/kept", b"k"), symlink(b"l", b"old"), file(b"was/in", b"x"),
         file(b"a", b"2"), folder(b"d", 0o711), symlink(b"l", b"new"), file(b"was", b"file")],
    ),
    _refused("root-is-a-file", "the root is a directory", "root is not a directory", [file(b"./", b"x", flag=b"0")]),
    _refused("uid-minus-two", "an owner that no kernel takes", "'a'.*owner -2",
             [file(b"a", b"a", uid=struct.pack(">q", -2))]),
    _refused("uid-too-large", "an owner beyond 32 bits", "'a'.*owner 9999999999999",
             [file(b"a", b"a", uid=b"\x80" + (9_999_999_999_999).to_bytes(7, "big"))]),
    _refused("uid-of-no-one", "4294967295 is no owner: chown takes it for 'leave it'", "'a'.*owner 4294967295",
             [file(b"a", b"a", uid=b"\x80" + (0xFFFFFFFF).to_bytes(7, "big"))]),
    _refused("device-too-large", "a device number that no kernel takes", "'n'.*device 4096",
             [device(b"n", 4096, 1)]),
    _refused("component-too-long", "a name that no directory can hold", "longer than 255", [file(b"n" * 256, b"x")]),
    _refused("empty-symlink", "a symlink without a target", "'s'.*symbolic link", [symlink(b"s", b"")]),
)  # fmt: skip
STORED = (
    Fault(
        "gzip-of-nothing", "a gzip stream of no bytes is a layer without entries",
        (Stored(b"", gzipped(b"")), Stored(TAR, gzipped(TAR))),
        {"x": DIRECTORY, "x/a": b"hi", "x/b": b"z" * 5000},
    ),
    _stored("empty-member-first", "an empty gzip member before the first", TAR, member(b"") + member(TAR)),
    _stored("empty-members-around", "empty members before, between and behind", TAR,
            member(b"") * 3 + member(TAR[:700]) + member(b"") + member(TAR[700:]) + member(b"")),
    _stored("gzip-padded", "zero bytes behind the gzip stream are padding", TAR, gzipped(TAR) + bytes(512)),
    _stored("gzip-called-tar", "the first bytes say what a layer is; the media type is wrong", TAR, gzipped(TAR),
            OCI_LAYER),
    _stored("tar-called-gzip", "the same the other way round", TAR, TAR),
    _stored("zstd-called-gzip", "zstd under gzip's media type", TAR, _zstd(TAR)),
    _stored("tar-called-zstd", "a plain tar under zstd's", TAR, TAR, OCI_LAYER_ZSTD),
    _stored("zstd", "a zstd layer as it should be", TAR, _zstd(TAR), OCI_LAYER_ZSTD),
    _stored("zstd-frames", "several frames, an empty one and a skippable one among them", TAR,
            _zstd(TAR[:700]) + _zstd(b"") + b"\x50\x2a\x4d\x18\x04\0\0\0note" + _zstd(TAR[700:]), OCI_LAYER_ZSTD),
    Fault("zstd-cut", "a zstd frame that ends early is an error, never a layer that is not there",
          (Stored(NOISE, _zstd(NOISE)[:-30], OCI_LAYER_ZSTD),), refusal="ends early"),
    Fault("zstd-cut-to-nothing", "the same with most of it missing",
          (Stored(NOISE, _zstd(NOISE)[:20], OCI_LAYER_ZSTD),), refusal="ends early"),
    Fault("gzip-cut", "a gzip member that ends early", (Stored(NOISE, gzipped(NOISE)[:-30]),), refusal="ends early"),
    Fault("gzip-without-trailer", "a gzip member that lacks the last byte of its trailer",
          (Stored(NOISE, gzipped(NOISE)[:-1]),), refusal="ends early"),
    Fault("tar-cut", "a tar that ends inside a file", (Stored(NOISE[:-3000], gzipped(NOISE[:-3000])),),
          refusal="ends"),
    Fault("gzip-trailing-garbage", "what stands behind a stream and is no stream is said to be that",
          (Stored(TAR, gzipped(TAR) + b"garbage"),), refusal="behind"),
    Fault("zstd-trailing-garbage", "the same behind a zstd frame",
          (Stored(TAR, _zstd(TAR) + b"garbage", OCI_LAYER_ZSTD),), refusal="behind"),
    Fault("another-diff-id", "a layer that is not what the config says", (Stored(TAR, gzipped(NOISE)),),
          refusal="digest|diff ID"),
)  # fmt: skip
FAULTS = (*MEANINGS, *STORED)
