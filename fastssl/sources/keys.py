"""Keys of samples from the paths of their files, and the parts of their references."""

from __future__ import annotations

import hashlib
import os
import re

from fastssl.errors import DataError
from fastssl.shards import KEY_BYTES

_HASH_BYTES = 8
_HASHED = re.compile(rf"-[0-9a-f]{{{2 * _HASH_BYTES}}}$")


def key_of(reference: str) -> str:
    """The key of an image from its path: no two paths share one.

    The extension goes, letters become lower case, ``/`` becomes ``__`` and any other character ``_``. Where that loses
    something (anything but a ``.jpg`` in ``[0-9a-z_-]``, say) or the result is too long, a hash of the path follows.
    """
    stem, _, extension = reference.rpartition(".")
    parts = [re.sub(r"[^0-9a-z_-]", "_", part.lower()) for part in stem.split("/")]
    key = "__".join(parts)
    # Whoever knows the rule can tell the path from such a key, so it belongs to no other path.
    reversible = (
        "/".join(parts) == stem
        and extension == "jpg"
        and not any("__" in part or part[:1] == "_" or part[-1:] == "_" for part in parts)
        and not _HASHED.search(key)
    )
    if reversible and len(key) <= KEY_BYTES:
        return key
    digest = hashlib.blake2b(os.fsencode(reference), digest_size=_HASH_BYTES).hexdigest()
    # The end of a path tells more than its beginning.
    return f"{key[-(KEY_BYTES - len(digest) - 1) :]}-{digest}"


def reference_parts(reference: str, form: str) -> list[str]:
    """The parts of a reference, which are separated by slashes.

    Args:
        form: what references of the dataset are made of, as in `SCENE/CAMERA/FRAME`; its last part takes all the rest.

    Raises:
        DataError: it has fewer parts.
    """
    separators = form.count("/")
    parts = reference.split("/", separators)
    if len(parts) <= separators:
        raise DataError("a reference is not of this dataset", seen=reference, expected=form)
    return parts
