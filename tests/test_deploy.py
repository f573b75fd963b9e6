"""The files under deploy/, by their linters and by the programs that read them. None of them was run on a cluster."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parent.parent / "deploy"
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def tool(name):
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def served():
    config = yaml.safe_load(documents("rayservice.yaml")[1]["spec"]["serveConfigV2"])
    return {"serve-config.yaml": documents("serve-config.yaml")[0], "rayservice.yaml": config}


@pytest.mark.parametrize("name", ["serve-config.yaml", "rayservice.yaml"])
def test_ray_serve_takes_the_applications(name, tmp_path):
    schema = pytest.importorskip("ray.serve.schema")
    pytest.importorskip("mmh3")
    from homerlm.server.replicas import application

    key = tmp_path / "keys.txt"
    key.write_text("secret")
    read = schema.ServeDeploySchema.model_validate(served()[name])
    one = read.applications[0]
    assert one.import_path == f"{application.__name__}:{application.build.__name__}"
    assert application.build.__annotations__["args"] is application.Arguments
    given = application.Arguments.model_validate(one.args)
    assert given.settings["store_on_network"]
    given.settings["key_file"] = str(key)
    assert application.build(given).__class__.__name__ == "Application"
    with pytest.raises(ValueError, match="wrong"):
        application.Arguments.model_validate(one.args | {"wrong": 1})


def test_kubernetes_takes_the_pods_and_the_claim():
    validate = pytest.importorskip("kubernetes_validate").validate
    claim, service = documents("rayservice.yaml")
    validate(claim, "1.35", strict=True)
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        validate(POD | group["template"], "1.35", strict=True)
        names = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        for container in group["template"]["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == names


def test_ray_takes_the_cluster():
    ray = pytest.importorskip("ray")
    from jsonschema import validate

    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    validate(documents("ray-cluster.yaml")[0], json.loads(schema.read_text()))


def test_the_versions_are_one():
    pytest.importorskip("ray")
    import ray

    assert documents("rayservice.yaml")[1]["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def test_the_yaml_is_clean():
    command = [tool("yamllint"), "-s", "-c", DEPLOY / ".yamllint.yaml", DEPLOY]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_is_clean():
    done = subprocess.run([tool("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
