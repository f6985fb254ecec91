"""What a stranger installs: container files, the citation, the documentation's examples."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mwsis.core.errors import ConfigError
from tests.check_installed import guide_script

PROJECT = Path(__file__).resolve().parents[1]
INSTRUCTIONS = {"FROM", "RUN", "USER", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}


def instructions(path):
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_container_files_follow_the_rules(name):
    lines = instructions(PROJECT / "docker" / f"{name}.Dockerfile")
    assert {instruction for instruction, _ in lines} <= INSTRUCTIONS
    given = dict(lines)
    assert re.fullmatch(r"[\w./]+:[\w.-]*\d[\w.-]*", given["FROM"]), "the base image has a version"
    assert given["USER"] == "mwsis", "commands do not run as root"
    for instruction, rest in lines:
        if instruction == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert rest.endswith("rm -rf /var/lib/apt/lists/*")
        if instruction in ("ENTRYPOINT", "CMD"):
            assert isinstance(yaml.safe_load(rest), list), "the form that passes signals on to the command"
    assert (PROJECT / yaml.safe_load(given["CMD"])[0]).is_file()


def test_the_citation_has_what_its_format_asks_for():
    cited = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(cited)
    project = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{cited["version"]}"' in project
    assert f'license = "{cited["license"]}"' in project
    assert f"## {cited['version']}" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_guide_s_term_is_a_term():
    from tests.camera.test_terms import context

    page = (PROJECT / "docs" / "guides" / "new_method.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    term = names["SmallMasks"]()
    logits = torch.zeros(3, 16, 24, requires_grad=True)
    loss = term(context(logits, [0, 1, 2]))
    loss.backward()
    assert loss.item() == 0.5
    assert bool((logits.grad > 0).all())
    assert term(context(torch.zeros(0, 16, 24), [])).item() == 0
    assert term.needs <= {"images"}


def test_the_guide_s_arrays_get_labels():
    names: dict = {}
    exec(guide_script(PROJECT), names)
    labels = names["labels"].semantic_labels
    assert len(labels) == 4000
    assert 0 < int((labels == 0).sum()) < len(labels)


def test_waymo_s_messages_missing_are_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "waymo_open_dataset", None)
    monkeypatch.delitem(sys.modules, "mwsis.data.waymo.messages", raising=False)
    with pytest.raises(ConfigError, match="pip install --no-deps waymo-open-dataset"):
        importlib.import_module("mwsis.data.waymo.messages")
