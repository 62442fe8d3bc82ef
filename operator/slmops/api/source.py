# SPDX-License-Identifier: Apache-2.0
"""`spec.variants[].source`: where the files of a model come from."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import ApiModel, SecretName, Sha256, cel, exactly_one_of, keyed, validations

FILE_PATH_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*$"
"""What `slmwire.manifest` takes as a path: the file is made on the node by this name."""
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+[^\s#@]*$", max_length=1024)]
IMAGE_PATTERN: Final = (
    r"^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
SOURCE_KINDS: Final = ("http", "hf", "oci", "s3", "pvc", "file")

NO_DOTS: Final = cel(
    "!self.split('/').exists(part, part == '.' || part == '..')", "the path must not contain . or .. segments"
)


class SecretKeyRef(ApiModel):
    """A key of a Secret in the SLMDeployment's namespace."""

    name: SecretName = Field(description="Name of the Secret.")
    key: str = Field(default="token", min_length=1, max_length=253, description="Key that holds the token.")


class SecretRef(ApiModel):
    """A Secret in the SLMDeployment's namespace."""

    name: SecretName = Field(description="Name of the Secret.")


class SourceFile(ApiModel):
    """One file of a model, pinned by its hash."""

    path: str = Field(
        pattern=FILE_PATH_PATTERN,
        max_length=200,
        description="Path relative to the model's directory; no segment may begin with a dot.",
    )
    sha256: Sha256 = Field(description="SHA-256 of the whole file, 64 lower-case hexadecimal digits.")
    size: int | None = Field(
        default=None,
        ge=0,
        description="Size in bytes. Optional for http and s3, where the server is asked; required for file "
        "and pvc.",
    )


class HttpSource(ApiModel):
    """Files on an HTTP(S) server.

    Either `url` is a manifest ({"files": [{"path", "size", "sha256"}, ...]}) and the files lie beside
    it, or `files` lists them and `url` is the folder that they lie in.
    """

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.files) || size(self.files) == 0 || self.url.endsWith('/')",
                "url must end in / when files are listed: it is the folder that holds them",
            ),
            cel(
                "!has(self.files) || size(self.files) == 0 || !has(self.sha256)",
                "sha256 is the hash of a manifest; leave it out when files are listed, each has its own",
            ),
            cel(
                "!has(self.secretRef) || !has(self.basicAuthRef)",
                "set secretRef (a bearer token) or basicAuthRef (user and password), not both",
            ),
        )
    )

    url: Url = Field(description="URL of the manifest, or of the folder when `files` is given.")
    sha256: Sha256 | None = Field(
        default=None,
        description="SHA-256 of the manifest. Without it the manifest found first is pinned in status.",
    )
    files: list[SourceFile] = Field(
        default_factory=list, max_length=100, description="The files, when there is no manifest.",
        json_schema_extra=keyed("path"),
    )  # fmt: skip
    secret_ref: SecretKeyRef | None = Field(default=None, description="Bearer token for the server.")
    basic_auth_ref: SecretRef | None = Field(
        default=None,
        description="Secret of type kubernetes.io/basic-auth, with the keys username and password.",
    )


class HuggingFaceSource(ApiModel):
    """A repository on the Hugging Face Hub or a mirror of it."""

    repo: str = Field(
        pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", max_length=200, description="Repository, `owner/name`."
    )
    revision: str = Field(
        default="main",
        min_length=1,
        max_length=200,
        description="Branch, tag or commit; resolved once to a commit, recorded in status.",
    )
    files: list[str] = Field(
        default_factory=list,
        max_length=50,
        description="Glob patterns of the files to take; empty takes all.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    endpoint: Url | None = Field(default=None, description="Endpoint of a mirror; default is the public Hub.")
    secret_ref: SecretKeyRef | None = Field(default=None, description="Access token.")


class FileSource(ApiModel):
    """Files that were put on each node by hand, below a folder the operator's administrator allows."""

    path: str = Field(
        pattern=r"^/[^\s]*$",
        max_length=500,
        description="Absolute folder on the node that holds the files.",
        json_schema_extra=validations(NO_DOTS),
    )
    files: list[SourceFile] = Field(
        min_length=1,
        max_length=100,
        description="The files with size and hash; the operator cannot read the node's disk to find out.",
        json_schema_extra=keyed("path")
        | validations(
            cel(
                "self.all(f, has(f.size))",
                "every file needs its size; the operator cannot read the node's disk to find out",
            )
        ),
    )


class OciSource(ApiModel):
    """An image or artifact in an OCI registry, resolved once to a digest.

    Layers with a title are files (ORAS, ModelPack); layers that are tar archives (images) are read
    through once by the operator to learn the hash of each file in them.
    """

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.delivery) || self.delivery != 'ImageVolume' || !has(self.files) || "
                "size(self.files) == 0",
                "delivery ImageVolume mounts the whole folder: leave files out and use path, or use delivery "
                "Pull",
            )
        )
    )

    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN, max_length=500)] = Field(
        description="Registry, repository and tag or digest, for example "
        "registry.example.com/models/chat:1.2 or registry.example.com/models/chat@sha256:...",
        json_schema_extra=validations(
            cel(
                "self.split('/')[0].contains('.') || self.split('/')[0].contains(':') || "
                "self.startsWith('localhost/')",
                "the image must begin with its registry, for example docker.io/library/model:1.0",
            )
        ),
    )
    platform: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$")] | None = (
        Field(default=None, max_length=64, description="Which manifest of an index to take: os/architecture.")
    )
    path: str | None = Field(
        default=None,
        pattern=FILE_PATH_PATTERN,
        max_length=200,
        description="Folder inside the image that is the model's directory; unset means its root.",
    )
    files: list[str] = Field(
        default_factory=list,
        max_length=50,
        description="Glob patterns of the files to take, relative to path; empty takes all. Not with "
        "delivery ImageVolume, which mounts all of them.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    pull_secret_ref: SecretRef | None = Field(
        default=None, description="Secret of type kubernetes.io/dockerconfigjson."
    )
    plain_http: bool = Field(
        default=False,
        description="Whether the registry speaks HTTP without TLS; credentials are readable then.",
    )
    delivery: Literal["Pull", "ImageVolume"] = Field(
        default="Pull",
        description="Pull copies the files into the node's model store. ImageVolume lets the kubelet pull "
        "the image and mounts it as the model's directory (Kubernetes 1.35 or later); the store's limits, "
        "bandwidth limits and peers do not apply then.",
    )


class S3Source(ApiModel):
    """Objects in an S3-compatible store.

    `manifest` names an object with {"files": [{"path", "size", "sha256"}, ...]} that the files lie
    beside; or `files` lists them; or everything below `prefix` is taken, each object by the SHA-256
    checksum that the store keeps.
    """

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.manifest) || !has(self.files) || size(self.files) == 0",
                "set manifest or files, not both",
            ),
            cel(
                "!has(self.sha256) || has(self.manifest)",
                "sha256 is the hash of the manifest; set manifest, too",
            ),
            cel(
                "has(self.manifest) || (has(self.files) && size(self.files) > 0) || "
                "(has(self.prefix) && size(self.prefix) > 0)",
                "set manifest, files or prefix: a whole bucket is not taken",
            ),
        )
    )

    endpoint: Url | None = Field(
        default=None, description="Endpoint of the store; unset means AWS in this region."
    )
    region: str = Field(
        default="us-east-1", pattern=r"^[a-z0-9-]+$", max_length=63, description="Region that is signed for."
    )
    bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$",
        min_length=3,
        max_length=63,
        description="Name of the bucket.",
    )
    prefix: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9_+@=. -]+/)*$",
        max_length=500,
        description="Folder in the bucket, with a slash at its end; empty means the bucket's root.",
        json_schema_extra=validations(NO_DOTS),
    )
    manifest: str | None = Field(
        default=None,
        pattern=FILE_PATH_PATTERN,
        max_length=200,
        description="Key of a manifest, relative to prefix; the files lie beside it.",
    )
    sha256: Sha256 | None = Field(
        default=None,
        description="SHA-256 of the manifest. Without it the manifest found first is pinned in status.",
    )
    files: list[SourceFile] = Field(
        default_factory=list,
        max_length=100,
        description="The files below prefix, when there is no manifest.",
        json_schema_extra=keyed("path"),
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with the keys accessKeyId, secretAccessKey and perhaps sessionToken; unset means "
        "anonymous.",
    )


class PvcSource(ApiModel):
    """Files on a PersistentVolumeClaim that every matching node can mount read-only."""

    claim_name: SecretName = Field(
        description="Name of the claim, in the SLMDeployment's namespace; its access mode is ReadOnlyMany or "
        "ReadWriteMany unless there is one node only."
    )
    path: str | None = Field(
        default=None,
        pattern=FILE_PATH_PATTERN,
        max_length=500,
        description="Folder on the volume that holds the files; unset means its root.",
    )
    files: list[SourceFile] = Field(
        min_length=1,
        max_length=100,
        description="The files with size and hash; the operator does not mount the volume to find out.",
        json_schema_extra=keyed("path")
        | validations(
            cel(
                "self.all(f, has(f.size))",
                "every file needs its size; the operator does not mount the volume to find out",
            )
        ),
    )


class Source(ApiModel):
    """Where a variant's files come from; exactly one kind."""

    model_config = ConfigDict(json_schema_extra=validations(exactly_one_of(*SOURCE_KINDS)))

    http: HttpSource | None = Field(default=None, description="Files on an HTTP(S) server.")
    hf: HuggingFaceSource | None = Field(default=None, description="A Hugging Face repository.")
    oci: OciSource | None = Field(default=None, description="An image or artifact in an OCI registry.")
    s3: S3Source | None = Field(default=None, description="Objects in an S3-compatible store.")
    pvc: PvcSource | None = Field(default=None, description="Files on a PersistentVolumeClaim.")
    file: FileSource | None = Field(default=None, description="Files already on the node.")
