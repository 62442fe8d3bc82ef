# SPDX-License-Identifier: Apache-2.0
"""Sources of a model: pinned to what they stand for now, and those of what a Job has published."""

import re
from typing import Any, Final

from slmops.api.slmmodel import Publish
from slmops.api.source import OciSource, PvcSource, S3Source, Source, SourceFile
from slmops.model.observed import Resolved
from slmwire.jobs import PUBLISH_VOLUME_DIR, PublishReport
from slmwire.paths import MODEL_MANIFEST_FILE

MAX_LISTED_FILES: Final = 100
_MOST_BYTES: Final = 1 << 53
_NO_LIST: Final = "the Job's list of files is not path, sha256 and size of each"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class PublishError(ValueError):
    """What a Job reports cannot be used; the message says why."""


def pin_source(source: Source, resolved: Resolved) -> Source:
    """The source that stands for the same bytes for ever; what is pinned already stays as it is."""
    reference = resolved.reference
    if source.hf is not None:
        return Source(hf=source.hf.model_copy(update={"revision": reference}))
    if source.oci is not None and "@sha256:" in reference:
        return Source(oci=source.oci.model_copy(update={"image": reference}))
    if source.http is not None and not source.http.files and _DIGEST.fullmatch(reference):
        return Source(http=source.http.model_copy(update={"sha256": reference.removeprefix("sha256:")}))
    s3 = source.s3
    if s3 is not None and s3.manifest and _DIGEST.fullmatch(reference):
        return Source(s3=s3.model_copy(update={"sha256": reference.removeprefix("sha256:")}))
    if s3 is not None and not s3.files and len(resolved.manifest.files) <= MAX_LISTED_FILES:
        files = [SourceFile(path=f.path, sha256=f.sha256, size=f.size) for f in resolved.manifest.files]
        return Source(s3=s3.model_copy(update={"files": files}))
    return source


def is_pinned(source: Source) -> bool:
    """Whether the source stands for the same bytes whenever it is looked at."""
    if source.hf is not None:
        return _COMMIT.fullmatch(source.hf.revision) is not None
    if source.oci is not None:
        return "@sha256:" in source.oci.image
    holder = source.http or source.s3
    return holder is None or bool(holder.files) or holder.sha256 is not None


def publish_target(publish: Publish, *, version: str, variant: str) -> Publish:
    """Where one variant of one version goes: a tag, or a folder of its own."""
    tail = f"{version}-{variant}"
    if publish.oci is not None:
        return Publish(oci=publish.oci.model_copy(update={"image": f"{publish.oci.image}:{tail}"}))
    if publish.s3 is not None:
        return Publish(s3=publish.s3.model_copy(update={"prefix": f"{publish.s3.prefix}{tail}/"}))
    assert publish.pvc is not None
    path = f"{publish.pvc.path}/{tail}" if publish.pvc.path else tail
    return Publish(pvc=publish.pvc.model_copy(update={"path": path}))


def publish_body(target: Publish) -> dict[str, Any]:
    """`target` as slmopt's job file has it; credentials are mounted, not told."""
    if target.oci is not None:
        return {"oci": {"image": target.oci.image, "plainHttp": target.oci.plain_http}}
    if target.s3 is not None:
        wanted = target.s3.to_body()
        return {
            "s3": {key: wanted[key] for key in ("endpoint", "region", "bucket", "prefix") if key in wanted}
        }
    assert target.pvc is not None
    return {"pvc": {"claim": target.pvc.claim_name, "path": target.pvc.path, "mountPath": PUBLISH_VOLUME_DIR}}


def publish_access(publish: Publish) -> Source:
    """A source with the credentials of `publish`: Jobs mount them as a fetcher would."""
    if publish.oci is not None:
        image = (
            f"{publish.oci.image}:latest"
            if ":" not in publish.oci.image.split("/")[-1]
            else publish.oci.image
        )
        return Source(oci=OciSource(image=image, pull_secret_ref=publish.oci.push_secret_ref))
    if publish.s3 is not None:
        return Source(s3=S3Source(bucket=publish.s3.bucket, prefix="x/", secret_ref=publish.s3.secret_ref))
    return Source()


def published_source(target: Publish, report: PublishReport) -> Source:
    """Source of what was published to `target`. Raises PublishError.

    The report comes from a node, which may have been tampered with: only a place that the spec names is
    taken from it.
    """
    if not _DIGEST.fullmatch(str(report.digest)):
        raise PublishError(f"the digest {str(report.digest)[:80]!r} is not sha256:<64 hexadecimal digits>")
    if target.oci is not None:
        repository = target.oci.image.rpartition(":")[0]
        place, _, digest = str(report.reference).rpartition("@")
        if place != f"oci://{repository}" or not _DIGEST.fullmatch(digest):
            raise PublishError(
                f"the reference {str(report.reference)[:200]!r} is not oci://{repository}@sha256:..."
            )
        return Source(
            oci=OciSource(
                image=f"{repository}@{digest}",
                plain_http=target.oci.plain_http,
                pull_secret_ref=target.oci.pull_secret_ref,
            )
        )
    files = _listed(report)
    if target.s3 is not None:
        given = target.s3
        return Source(
            s3=S3Source(
                endpoint=given.endpoint,
                region=given.region,
                bucket=given.bucket,
                prefix=given.prefix,
                files=files,
                manifest=None if files else MODEL_MANIFEST_FILE,
                secret_ref=given.read_secret_ref,
            )
        )
    assert target.pvc is not None
    if not files:
        raise PublishError("the Job did not list its files, which a pvc source needs; publish to oci or s3")
    return Source(pvc=PvcSource(claim_name=target.pvc.claim_name, path=target.pvc.path, files=files))


def _listed(report: PublishReport) -> list[SourceFile]:
    entries: object = report.entries
    if not isinstance(entries, list | tuple):
        raise PublishError(_NO_LIST)
    if len(entries) > MAX_LISTED_FILES:
        raise PublishError(f"the Job lists {len(entries)} files; at most {MAX_LISTED_FILES} are allowed")
    try:
        files = [SourceFile.model_validate(dict(entry)) for entry in entries]
    except (ValueError, TypeError) as error:
        raise PublishError(_NO_LIST) from error
    # The API server would refuse the whole status for either.
    if len({file.path for file in files}) < len(files):
        raise PublishError("the Job lists a file twice")
    if any(file.size is not None and file.size > _MOST_BYTES for file in files):
        raise PublishError("the Job lists a file that is larger than any disk")
    return files
