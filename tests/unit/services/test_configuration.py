import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from dicom_node.domain.routing import parse_rules
from dicom_node.errors import ConfigurationError
from dicom_node.services.configuration import (
    EXAMPLE_RULES,
    configuration_text,
    write_configuration,
)
from dicom_node.settings import CONFIG_VARIABLE, QuietPeriod, Settings, load


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "")  # `load` sets it; this puts it back
    monkeypatch.delenv(CONFIG_VARIABLE)
    monkeypatch.chdir(tmp_path)


def test_the_written_file_loads_and_equals_the_defaults() -> None:
    defaults = load()
    write_configuration(Path("dicom-node.toml"))
    loaded = load(Path("dicom-node.toml"))
    assert len(loaded.node_salt) == 32
    assert loaded.model_dump(exclude={"node_salt"}) == defaults.model_dump(exclude={"node_salt"})


def test_every_setting_stands_in_the_file_with_its_description() -> None:
    text = configuration_text("salt")
    written = tomllib.loads(text)
    prose = " ".join(text.replace("# ", "").split())
    for name, field in Settings.model_fields.items():
        assert name in written
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            continue
        assert set(section.model_fields) == set(written[name])
        for key, about in section.model_fields.items():
            if key != "quiet":
                assert " ".join(str(about.description).split()) in prose, key
    for key, about in QuietPeriod.model_fields.items():
        assert f"{key}: {about.description}" in prose


def test_only_the_owner_reads_the_file_and_each_has_its_own_salt() -> None:
    write_configuration(Path("a/dicom-node.toml"))
    write_configuration(Path("b/dicom-node.toml"))
    assert Path("a/dicom-node.toml").stat().st_mode & 0o777 == 0o600
    a, b = (tomllib.loads(Path(f"{x}/dicom-node.toml").read_text())["node_salt"] for x in "ab")
    assert a != b


def test_a_file_that_is_there_is_replaced_only_by_force_and_keeps_its_salt() -> None:
    path = Path("dicom-node.toml")
    write_configuration(path)
    salt = tomllib.loads(path.read_text())["node_salt"]
    path.write_text(path.read_text().replace("port = 11112", "port = 104"))
    with pytest.raises(ConfigurationError, match="--force"):
        write_configuration(path)
    assert "port = 104" in path.read_text()

    told = write_configuration(path, force=True)

    written = tomllib.loads(path.read_text())
    assert told["kept_salt"] and written["node_salt"] == salt
    assert written["listener"]["port"] == 11112
    assert path.stat().st_mode & 0o777 == 0o600


def test_rules_that_are_there_are_never_replaced() -> None:
    Path("routes.toml").write_text("# ours\n")
    assert write_configuration(Path("dicom-node.toml"))["kept_rules"]
    assert Path("routes.toml").read_text() == "# ours\n"


def test_the_example_rules_are_rules_and_so_is_what_they_show_as_comments() -> None:
    (rule,) = parse_rules(tomllib.loads(EXAMPLE_RULES))
    assert rule.models == ("cxr-lungs",)
    shown = "[[rule]]" + EXAMPLE_RULES.split("# [[rule]]")[1].replace("\n# ", "\n")
    (second,) = parse_rules(tomllib.loads(shown))
    assert second.expect_instances == 1
