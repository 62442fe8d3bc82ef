# SPDX-License-Identifier: Apache-2.0
"""Keys and certificate from the pod's template to the running server, and rotated as a kubelet does it."""

import shutil
import socket
import ssl
from pathlib import Path

import httpx

from e2e.rig.pki import Authority, KeyPair
from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.planning.build import build_templates
from slmops.planning.names import Names
from slmwire import paths
from tests.unit.planning.fleet_spec import spec_body
from tests.unit.slmserve.process import ServerProcess


class SecretVolume:
    """A Secret as a kubelet writes it: the files are links into a folder that is swapped as a whole."""

    def __init__(self, folder: Path, mode: int) -> None:
        self._folder, self._mode, self._number = folder, mode, 0
        folder.mkdir()

    def write(self, **files: bytes) -> None:
        """The Secret's new content, by name with `_` for the dot."""
        self._number += 1
        fresh = self._folder / f"..{self._number}"
        fresh.mkdir()
        for name, content in files.items():
            path = fresh / name.replace("_", ".")
            path.write_bytes(content)
            path.chmod(self._mode)
        data, swapped = self._folder / "..data", self._folder / "..data_tmp"
        old = data.resolve() if data.exists() else None
        swapped.symlink_to(fresh.name)
        swapped.rename(data)
        for name in files:
            link = self._folder / name.replace("_", ".")
            if not link.is_symlink():
                link.symlink_to(f"..data/{link.name}")
        if old is not None:
            shutil.rmtree(old)


def _environment(directory: Path) -> tuple[dict[str, str], dict[str, int]]:
    """What the operator tells the server, with its mounts below `directory`, and the files' modes."""
    service = {
        "auth": {"apiKeysSecretRef": {"name": "orders-keys"}},
        "tls": {"secretRef": {"name": "orders-tls"}},
    }
    template, _ = build_templates(
        Names("shop", "orders"),
        SLMDeploymentSpec.model_validate(spec_body() | {"service": service}),
        config=OperatorConfig(runtime_image="runtime:1"),
        revision="0123456789",
        digests={"int4": "sha256:" + "0" * 64},
        references={"int4": ""},
    )["int4"]
    (server,) = template["spec"]["containers"]
    told = {
        entry["name"]: str(directory / Path(entry["value"]).relative_to("/etc"))
        for entry in server["env"]
        if str(entry.get("value", "")).startswith(("/etc/slmops-keys", "/etc/slmops-tls"))
    }
    volumes = {v["name"]: v["secret"]["defaultMode"] for v in template["spec"]["volumes"] if "secret" in v}
    return told, volumes


def _certificate_of(server: ServerProcess) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""


def _write(volume: SecretVolume, pair: KeyPair) -> None:
    volume.write(tls_crt=pair.certificate.read_bytes(), tls_key=pair.key.read_bytes())


def test_what_the_operator_mounts_is_served_and_rotated_without_a_restart(
    orders_dir: Path, tmp_path: Path
) -> None:
    told, modes = _environment(tmp_path)
    assert len(told) == 3
    authority = Authority(tmp_path / "pki")
    authority.create()
    first, second = (authority.issue(name, common_name=name) for name in ("first", "second"))
    keys = SecretVolume(tmp_path / Path(paths.API_KEYS_DIR).name, modes["api-keys"])
    pairs = SecretVolume(tmp_path / Path(paths.TLS_DIR).name, modes["tls"])
    keys.write(keys=b"alpha\nbeta\n")
    _write(pairs, first)
    with ServerProcess(orders_dir, tmp_path, "--evaluate", "false", environ=told) as server:
        server.scheme = "https"
        server.wait_ready()

        def status(key: str) -> int:
            url = f"{server.url}/v1/models"
            return httpx.get(url, headers={"api-key": key}, verify=False).status_code  # noqa: S501

        assert [status(key) for key in ("alpha", "beta", "gamma", "")] == [200, 200, 401, 401]
        keys.write(keys=b"beta\ngamma\n")
        assert [status(key) for key in ("alpha", "beta", "gamma", "")] == [401, 200, 200, 401]
        before = _certificate_of(server)
        _write(pairs, second)
        server.wait_until(lambda: _certificate_of(server) != before)
        assert status("gamma") == 200 and server.process.poll() is None
