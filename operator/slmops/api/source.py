# SPDX-License-Identifier: Apache-2.0
"""`spec.variants[].source`: where the files of a model come from."""

from typing import Annotated, Final

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import ApiModel, SecretName, Sha256, cel, exactly_one_of, keyed, validations

FILE_PATH_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*$"
"""What `slmwire.manifest` takes as a path: the file is made on the node by this name."""
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+[^\s#@]*$", max_length=1024)]


NO_DOTS: Final = cel(
    "!self.split('/').exists(part, part == '.' || part == '..')", "the path must not contain . or .. segments"
)


class SecretKeyRef(ApiModel):
    """A key of a Secret in the SLMDeployment's namespace."""

    name: SecretName = Field(description="Name of the Secret.")
    key: str = Field(default="token", min_length=1, max_length=253, description="Key that holds the token.")


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
        description="Size in bytes. Optional for http, where the server is asked; required for file.",
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


class Source(ApiModel):
    """Where a variant's files come from; exactly one kind."""

    model_config = ConfigDict(json_schema_extra=validations(exactly_one_of("http", "hf", "file")))

    http: HttpSource | None = Field(default=None, description="Files on an HTTP(S) server.")
    hf: HuggingFaceSource | None = Field(default=None, description="A Hugging Face repository.")
    file: FileSource | None = Field(default=None, description="Files already on the node.")
