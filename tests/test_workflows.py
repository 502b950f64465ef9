"What the continuous checks call is there: workflows, Dockerfile, dev container, pre-commit and the list of benchmarks."
import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KNOWN = ("actions/checkout", "actions/setup-python", "actions/upload-artifact")


class Unique(yaml.SafeLoader):
    "A loader that refuses a key that stands twice; GitHub does."

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice: {keys}"
        return super().construct_mapping(node, deep)


def check_command(line: str) -> None:
    "A shell line of a workflow names a file, a target of make or a module that is there."
    words = re.sub(r"^(\w+=\S+ )*", "", line.strip()).split()
    if words[0] == "make":
        assert words[1] in TARGETS, f"{line}: the Makefile has no {words[1]}"
    elif "/" in words[0]:
        assert os.access(ROOT / words[0], os.X_OK), f"{line}: {words[0]} cannot be run"
    else:
        assert words[:4] == ["python", "-m", "pip", "install"] and "==" in words[4], f"{line}: what is it?"


def check_expressions(text: str, matrix: dict) -> None:
    "`${{ matrix.x }}` names an x that every row of the matrix has; of GitHub's own only what is known here."
    for found in re.findall(r"\$\{\{\s*([\w.]+)\s*\}\}", text):
        context, _, name = found.partition(".")
        assert context in ("matrix", "github"), found
        rows = matrix.get("include", [])
        assert context == "github" and name == "ref" or rows and all(name in row for row in rows), found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_parses_and_its_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    flow = yaml.load(text, Unique)
    assert set(flow) <= {"name", True, "permissions", "concurrency", "jobs"} and flow["jobs"] # `on` is YAML's true
    assert set(flow[True]) <= {"push", "pull_request"} and flow["permissions"] == {"contents": "read"}
    for job in flow["jobs"].values():
        assert job["runs-on"].startswith("ubuntu-") and 0 < job["timeout-minutes"] <= 60
        matrix = job.get("strategy", {}).get("matrix", {})
        check_expressions(json.dumps(job), matrix)
        for row in matrix.get("include", []):
            assert Path(row["constraints"]).is_absolute() or (ROOT / row["constraints"]).is_file()
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            if "uses" in step:
                action, _, version = step["uses"].partition("@")
                assert action in KNOWN and re.fullmatch(r"v\d+|[0-9a-f]{40}", version), step
            for line in step.get("run", "").splitlines():
                check_command(line)


def test_a_workflow_with_a_fault_is_found():
    for line in ("make tset", "./.ci/rnu", "pip install uv", "python -m pip install uv"):
        with pytest.raises(AssertionError):
            check_command(line)
    with pytest.raises(AssertionError):
        check_expressions("${{ matrix.pyhton }}", {"include": [{"python": "3.11"}]})
    with pytest.raises(AssertionError, match="twice"):
        yaml.load("a: 1\na: 2", Unique)


def docker_lines(text: str) -> list[list[str]]:
    "Instructions of a Dockerfile as words; continued lines are joined and comments left out."
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M)).splitlines()
    return [line.split() for line in lines if line.strip()]


def test_the_dockerfile_copies_what_is_there_and_installs_known_extras():
    lines = docker_lines((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {line[0] for line in lines} <= known and [line[0] for line in lines[:2]] == ["ARG", "FROM"]
    stages: set[str] = set()
    for word, *rest in lines:
        if word == "FROM":
            assert rest[0] in stages or ":" in rest[0] and not rest[0].endswith(":latest"), "a base has its version"
            stages.add(rest[2])
        elif word == "COPY":
            assert all((ROOT / source).exists() for source in rest[:-1]), rest
        elif word in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(" ".join(rest)), list), "the form that gets signals"
        elif word == "RUN":
            text = " ".join(rest)
            extras = set(re.findall(r"--extra (\w+)", text))
            extras |= {e for group in re.findall(r"\.\[([\w,]+)\]", text) for e in group.split(",")}
            assert extras <= set(PROJECT["optional-dependencies"]), extras
            assert "apt-get install" not in text or "apt-get update" in text and "rm -rf /var/lib/apt/lists" in text
    ends = [line for line in lines if line[0] in ("USER", "ENTRYPOINT")]
    assert [line[0] for line in ends[-2:]] == ["USER", "ENTRYPOINT"] and ends[-2][1] != "0", "not as root"


def test_the_image_holds_no_less_than_the_wheel():
    "Every folder that the package is made of is copied, and .dockerignore lets in what is copied."
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    copied = [source for line in docker_lines((ROOT / "Dockerfile").read_text(encoding="utf-8")) if line[0] == "COPY"
              for source in line[1:-1]]
    folders = {package.replace("cotmi.notebooks", "nbs").replace(".", "/") for package in tool["packages"]} - {"nbs"}
    assert all(any(folder == c or folder.startswith(f"{c}/") for c in copied) for folder in folders)
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    assert all(any(c.rstrip("/") == way or c.startswith(f"{way}/") for way in let_in) for c in copied)


def test_the_dev_container_builds_a_target_of_the_dockerfile():
    made = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))["build"]
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert (ROOT / ".devcontainer" / made["dockerfile"]).samefile(ROOT / "Dockerfile")
    assert f" AS {made['target']}\n" in text and all(f"ARG {name}" in text for name in made["args"])


def test_pre_commit_calls_programs_of_the_environment():
    hooks = yaml.load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"), Unique)["repos"][0]["hooks"]
    named = {re.split(r"[\[>=]", dependency)[0] for dependency in PROJECT["optional-dependencies"]["dev"]}
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert os.access(ROOT / program, os.X_OK) if program.startswith(".ci") else \
            program.startswith(".venv/bin/") and program.split("/")[-1].split("-")[0] in named, hook


def test_every_benchmark_is_in_the_list():
    listed = set(re.findall(r"python -m benchmarks\.(\w+)", (ROOT / "benchmarks" / "README.md").read_text("utf-8")))
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py")
               if "__main__" in p.read_text("utf-8") and "python -m benchmarks" in p.read_text("utf-8")}
    assert listed == scripts
