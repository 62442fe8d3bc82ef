# SPDX-License-Identifier: Apache-2.0
"""Whether spec itself says which bytes a source gives."""

from slmops.api.source import Source


def find_unpinned(source: Source) -> str | None:
    """Why the bytes of a source are not fixed by spec itself; None when they are."""
    if source.http is not None and not source.http.files and not source.http.sha256:
        return (
            "the manifest came over plain HTTP and its hash is not pinned: anybody on the way could have "
            "changed it when it was first found"
            if source.http.url.startswith("http://")
            else "the manifest's hash is not pinned: what the server gave first is taken"
        )
    if source.hf is not None and not _is_commit(source.hf.revision):
        return f"{source.hf.revision} is a branch or tag: the commit that it was first found at is taken"
    if source.oci is not None and "@sha256:" not in source.oci.image:
        return "the image is named by a tag: the digest that it was first found at is taken"
    if source.s3 is not None and not source.s3.files and not source.s3.sha256:
        return "the objects are not pinned: what the store gave first is taken"
    return None


def _is_commit(text: str) -> bool:
    return len(text) == 40 and all(letter in "0123456789abcdef" for letter in text)
