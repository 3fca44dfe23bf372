"""The manifests are what their readers accept, and run what this repository has."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
KUBERAY = sorted((INFRA / "kuberay").glob("*.yaml"))
LAUNCHER = sorted((INFRA / "launcher").glob("*.yaml"))


def _names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def _yaml(path: Path) -> Any:
    # By libyaml where it is there: in Python the operator's definitions take five seconds.
    return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _strict(schema: Any) -> Any:
    """A schema of Kubernetes as plain JSON schema, in which an unknown key is an error, as on a typo."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
    if made.pop("nullable", False) and "type" in made:
        made["type"] = [made["type"], "null"]
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = made.pop("x-kubernetes-preserve-unknown-fields", False)
    return made


def _errors(manifest: Mapping[str, Any]) -> list[str]:
    """What the operator's definitions say against a manifest."""
    path = SCHEMAS / f"ray.io_{manifest['kind'].lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"no KubeRay definitions at {SCHEMAS}")
    group, _, served = manifest["apiVersion"].partition("/")
    definition = _yaml(path)["spec"]
    assert group == definition["group"]
    (schema,) = (part["schema"] for part in definition["versions"] if part["name"] == served)
    strict = _strict(schema["openAPIV3Schema"]["properties"]["spec"])
    return [f"{error.json_path}: {error.message}" for error in Draft7Validator(strict).iter_errors(manifest["spec"])]


def _cluster(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def _groups(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    cluster = _cluster(manifest)
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


@pytest.mark.parametrize("path", KUBERAY, ids=_names(KUBERAY))
def test_a_kuberay_manifest_follows_the_operators_definitions(path: Path) -> None:
    assert _errors(_yaml(path)) == []


def test_a_typo_in_a_kuberay_manifest_would_be_noticed() -> None:
    manifest = _yaml(INFRA / "kuberay" / "raycluster.yaml")
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"

    assert "imagePullPolice" in " ".join(_errors(manifest))


@pytest.mark.parametrize("path", KUBERAY, ids=_names(KUBERAY))
def test_a_kuberay_manifest_keeps_the_rules_that_no_schema_states(path: Path) -> None:
    manifest = _yaml(path)
    spec, cluster = manifest["spec"], _cluster(manifest)

    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", manifest["metadata"]["name"])
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == version("ray")
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all(group["template"]["spec"]["restartPolicy"] == "Never" for group in _groups(manifest))
    assert all({"minReplicas", "maxReplicas"} <= set(group) for group in cluster["workerGroupSpecs"])
    assert not ("deletionStrategy" in spec and spec.get("shutdownAfterJobFinishes"))
    assert spec.get("shutdownAfterJobFinishes") or "ttlSecondsAfterFinished" not in spec


@pytest.mark.parametrize("path", LAUNCHER, ids=_names(LAUNCHER))
def test_a_launcher_file_is_accepted_by_ray(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = _yaml(path)
    prepared = prepare_config(json.loads(json.dumps(config)))

    validate_config(prepared)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    (mounted,) = (target for target, source in config["file_mounts"].items() if source == "~/.ray/auth_token")
    assert f"--env RAY_AUTH_TOKEN_PATH={mounted}" in config["docker"]["run_options"]


def test_the_slurm_script_runs_the_job_on_the_first_node(tmp_path: Path) -> None:
    _command(tmp_path / "bin" / "scontrol", "printf 'node1\\nnode2\\n'")
    _command(tmp_path / "bin" / "srun", 'printf \'%s\\n\' "$RAY_AUTH_MODE" "$@"')
    _command(tmp_path / ".venv" / "bin" / "ray", "echo a-token")
    given = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "16",
    }
    script = ["bash", str(INFRA / "slurm" / "fit.sbatch")]

    ran = subprocess.run(
        [*script, "a config.yaml", "s3://b/x", "--workers", "4"],
        cwd=tmp_path,
        env=given,
        capture_output=True,
        text=True,
        check=True,
    )
    unasked = subprocess.run(script, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)

    ray = [".venv/bin/ray", "symmetric-run", "--address", "node1:21234", "--min-nodes", "2", "--num-cpus", "16", "--"]
    job = [".venv/bin/python", "jobs/fit.py", "a config.yaml", "--store", "s3://b/x", "--workers", "4"]
    assert ran.stdout.splitlines() == ["token", *ray, *job]
    assert unasked.returncode != 0
    assert "usage" in unasked.stderr


def test_what_manifests_and_scripts_run_is_in_the_repository() -> None:
    files = [path for path in INFRA.rglob("*") if path.is_file()]
    named = {
        (path.name, word)
        for path in files
        for word in re.findall(r"(?<![\w./-])(?:jobs|configs|infra)/[\w./-]*\w", path.read_text())
    }

    assert ("rayjob.yaml", "jobs/fit.py") in named
    assert [name for name in sorted(named) if not (ROOT / name[1]).exists()] == []


def test_the_image_takes_in_everything_that_it_copies() -> None:
    docker = INFRA / "docker"
    lines = [line.split()[1:] for line in (docker / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    copied = {source for words in lines for source in words[:-1]}
    admitted = {
        line.removeprefix("!")
        for line in (docker / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    assert copied == admitted
    assert all((ROOT / name).exists() for name in copied)


def _command(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
