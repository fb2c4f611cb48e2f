"""Methods from elsewhere: a file, an installed package, and those that are broken."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import bench, process

from bench import registry
from bench.config import parse_variant, whole_path
from bench.sources import source_digest

PACKAGE = Path(__file__).parent / "plugin_package"
METHOD = PACKAGE / "unlearnbench_reword" / "method.py"
FEW = ("run", "--preset", "smoke", "--batch-size", "4", "--dtype", "float32", "--out", "run")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is really installed into."""
    folder = tmp_path_factory.mktemp("plugin")
    for module in ("pip", "setuptools"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not here")
    shutil.copytree(PACKAGE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--target", "site", "--no-deps", "--no-build-isolation", "--no-index", "./source"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return folder / "site"


def plugin(folder: Path, entries: str, package: str = "bad-plugin", **modules: str) -> None:
    """What pip leaves of a package with these entry points, `module = source` each."""
    about = folder / f"{package.replace('-', '_')}-0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(f"[bench.methods]\n{entries}\n")
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)


def words(text: str) -> str:
    return " ".join(text.split())


def test_an_installed_package_is_a_method_like_any_other(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{installed}:{Path(registry.__file__).parents[1]}")
    listed = process("list", "methods", cwd=tmp_path)
    assert "Reword: the prompt says the anchor where it said the concept." in words(listed.stdout), listed.stderr
    monkeypatch.syspath_prepend(installed)
    found = bench(*FEW, "--methods", "reword,reword:instead=house", "--tuning", "untuned", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "records").glob("*.json")]
    assert {record["label"] for record in records} == {"none", "reword", "reword:instead=house"}
    assert "reword" in (tmp_path / "run" / "leaderboard.md").read_text()
    assert "Rewording prompts" in (tmp_path / "run" / "citations.bib").read_text()
    assert "What takes the concept's place" in words(bench("show", "reword", cwd=tmp_path).stdout)


def test_a_file_is_a_method(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD.read_text())
    own = "mine.py:Reword"
    found = bench(*FEW, "--methods", f"{own},{own}:instead=house", "--set", "Reword.instead=tree", "--workers", "2", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "run" / "records").glob("*.json")}
    assert {record["label"] for record in records.values()} == {"none", "Reword:instead=house", "Reword:instead=tree"}
    assert {record["method"] for record in records.values()} == {"none", "Reword"}
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["methods"] == [f"{tmp_path}/{own}", f"{tmp_path}/{own}:instead=house"]
    assert len(kept["sources"]["Reword"]["source"]) == 64
    # Elsewhere it is the same method; with other code too, but that is told.
    (tmp_path / "mine.py").unlink()
    (tmp_path / "other.py").write_text(METHOD.read_text().replace("text.replace(old, new)", "text.replace(new, old)"))
    again = bench(*FEW, "--methods", "other.py:Reword:instead=house", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "are there already" in again.stderr
    assert "The code of Reword has changed" in words(again.stderr)
    (note,) = [line for line in (tmp_path / "run" / "leaderboard.md").read_text().splitlines() if "its code has changed" in line]
    assert note.endswith("Reword:instead=house: its code has changed since its pictures were sampled, its version (1) has not.")
    assert not (tmp_path / "__pycache__").exists()


def test_the_source_of_a_file_is_its_content_and_not_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "mine.py", tmp_path / "a" / "mine.py"):
        path.write_text(METHOD.read_text())
    first, second = (source_digest(registry.address(f"{tmp_path}/{place}mine.py:Reword")) for place in ("", "a/"))
    assert first == second
    (tmp_path / "mine.py").write_text(METHOD.read_text().replace("text.replace(old, new)", "text.replace(new, old)"))
    assert source_digest(registry.address(f"{tmp_path}/mine.py:Reword")) != first


def test_other_commands_take_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD.read_text())
    own = "mine.py:Reword"
    assert "What takes the concept's place" in words(bench("show", own, cwd=tmp_path).stdout)
    assert "Reword" in bench("plan", "--preset", "smoke", "--methods", own, cwd=tmp_path).stdout
    tuned = bench("tune", own, "--concepts", "fish", "--settings", "2", "--pictures", "8", "--steps", "4", cwd=tmp_path)
    assert "2 settings" in tuned.stderr
    assert "run --methods mine.py:Reword --tuned Reword=tuned/Reword.toml" in words(tuned.stderr)
    given = ("--methods", own, "--concepts", "fish", "--preset", "smoke")
    rows = [words(bench("plan", *given, *more, cwd=tmp_path).stdout) for more in ((), ("--tuned", "Reword=tuned/Reword.toml"))]
    assert ["Reword (untuned)" in text for text in rows] == [False, True], "a class of this name in any file is not what was tuned"
    (tmp_path / "tuned" / "Reword.toml").write_text("[budget]")
    for entry, message in (
        ("Reword", "is not of the form METHOD=FILE"), ("Rewrod=tuned/Reword.toml", 'did you mean "Reword"'),
        ("Reword=gone.toml", "there is no such file"), ("Reword=tuned/Reword.toml", "is damaged"),
    ):  # fmt: skip
        wrong = bench("plan", *given, "--tuned", entry, cwd=tmp_path)
        assert (wrong.returncode, message in words(wrong.stderr)) == (2, True), wrong.stderr


def test_variants_of_files() -> None:
    assert parse_variant("dir/my.py:Mine") == ("dir/my.py:Mine", {})
    assert parse_variant("/a b/my.py:Mine:x=1:path=a.py") == ("/a b/my.py:Mine", {"x": "1", "path": "a.py"})
    assert parse_variant("saeuron:sae=x.py") == ("saeuron", {"sae": "x.py"})
    assert whole_path("uce:a=./b") == "uce:a=./b"
    assert whole_path("my.py:Mine:a=./b") == f"{Path.cwd()}/my.py:Mine:a=./b"


SOURCE = "from bench.api import UnlearningMethod\nclass Mine(UnlearningMethod):\n    pass\n"
READY = """from bench.api import Card, UnlearningMethod
class Mine(UnlearningMethod):
    card = Card(title="Mine", paper="", bibtex="", supports=("style",))
    def fit(self, context, concepts): ...
"""


@pytest.mark.parametrize(
    ("method", "source", "message"),
    [
        ("my.py:Mein", SOURCE, 'Unknown class of {place}/my.py "Mein": did you mean "Mine"?'),
        ("my.py", SOURCE, "my.py names no class: write my.py:MyMethod."),
        ("nowhere.py:Mine", SOURCE, "cannot be loaded: there is no file {place}/nowhere.py."),
        ("my.py:Mine", "def (", "cannot be loaded, SyntaxError: invalid syntax"),
        ("my.py:Mine", SOURCE + "1 / 0\n", "cannot be loaded, ZeroDivisionError: division by zero (my.py, line 4): mend it."),
        ("my.py:Mine", SOURCE + "raise SystemExit(3)\n", "cannot be loaded, SystemExit: 3 (my.py, line 4): mend it."),
        ("my.py:Mine", READY + "    def __init__(self, config): 1 / 0\n", 'The method "Mine" cannot be made, ZeroDivisionError'),
        ("my.py:Mine", "class Mine:\n    pass\n", "which is no subclass of UnlearningMethod: name its class."),
        ("my.py:uce", SOURCE.replace("Mine", "uce"), 'there is a method "uce" already, rename the class.'),
        ("my.py:Mine", SOURCE, 'The method "{place}/my.py:Mine" has no fit and no card: define what is missing'),
        ("my.py:Mine,other/my.py:Mine", SOURCE, "two methods that tables would call Mine"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(method: str, source: str, message: str, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "other"):
        place.mkdir(exist_ok=True)
        (place / "my.py").write_text(source)
    found = bench("plan", "--preset", "smoke", "--methods", method, cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert message.format(place=tmp_path) in words(found.stderr)
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("insted=x", 'Unknown parameter of {place}/my.py:Reword "insted": did you mean "instead"?'),
        ("instead", "is not of the form method:param=value"),
        ("strength=much", '{place}/my.py:Reword.strength = "much": input should be a valid number'),
    ],
)
def test_a_wrong_parameter_is_one_sentence(parameter: str, message: str, tmp_path: Path) -> None:
    more = '    strength: float = Field(1.0, description="None.")\n\n\nclass Reword('
    (tmp_path / "my.py").write_text(METHOD.read_text().replace("\n\nclass Reword(", more))
    found = bench("plan", "--preset", "smoke", "--methods", f"my.py:Reword:{parameter}", cwd=tmp_path)
    assert found.returncode == 2
    assert message.format(place=tmp_path) in words(found.stderr)


def test_a_fit_without_an_erasure_and_one_that_exits_are_told(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(READY)
    (tmp_path / "other.py").write_text(READY.replace("Mine", "Other").replace("...", "raise SystemExit(0)"))
    found = bench(*FEW, "--steps", "1", "--methods", "my.py:Mine,other.py:Other", "--concepts", "neon", cwd=tmp_path)
    assert found.returncode == 1
    assert "Mine: 1 of 1 style targets are missing (fit() returns NoneType: return an Erasure" in words(found.stdout)
    assert "Other: 1 of 1 style targets are missing (broke 3 times (SystemExit: 0))" in words(found.stdout)
    assert "No method has an outcome: the footnotes say why." in words(found.stderr)


def test_a_kind_that_a_method_cannot_take_is_a_hole_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(METHOD.read_text().replace('supports=("style", "object")', 'supports=("object",)'))
    found = bench(*FEW, "--steps", "1", "--methods", "my.py:Reword", "--concepts", "neon,fish", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "does not support concepts of kind style" in words(found.stdout)
    missing = json.loads((tmp_path / "run" / "records" / "Reword.json").read_text())["missing"]
    assert missing == {"style:neon": "does not support concepts of kind style"}


def test_a_broken_plugin_is_named_and_the_rest_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"lost": "nowhere_at_all", "crooked": "crooked_plugin", "raises": "raising_plugin", "classless": "empty_plugin"}
    entries = "\n".join(f"{name} = {module}:Method" for name, module in addresses.items())
    raising = '"""Raises."""\nraise RuntimeError("no GPU")\nclass Method: pass'
    plugin(tmp_path / "site", entries, crooked_plugin="def (", raising_plugin=raising, empty_plugin="from pathlib import Path")
    monkeypatch.syspath_prepend(tmp_path / "site")
    listed = bench("list", "methods", cwd=tmp_path)
    assert listed.returncode == 0
    assert "uce" in listed.stdout
    told = words(listed.stderr)
    lost = 'The method "lost" (nowhere_at_all:Method of the package bad-plugin) cannot be loaded, ModuleNotFoundError'
    assert lost in told
    assert 'The method "crooked" (crooked_plugin:Method of the package bad-plugin) cannot be loaded, SyntaxError' in told
    assert "cannot be loaded, AttributeError: the module empty_plugin has no Method: mend or uninstall it." in told
    planned = bench("plan", "--preset", "smoke", "--methods", "uce", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    asked = bench("plan", "--preset", "smoke", "--methods", "uce,raises", cwd=tmp_path)
    assert asked.returncode == 2
    assert "cannot be loaded, RuntimeError: no GPU (raising_plugin.py, line 2): mend or uninstall it." in words(asked.stderr)


def test_a_name_that_is_taken_is_told_and_the_rest_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path / "site", "uce = first:Method\nmine = first:Method\na,b = first:Method", "first")
    plugin(tmp_path / "site", "mine = second:Method", "second")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert registry.methods()["uce"] == "methods.uce"
    assert "mine" not in registry.methods()
    planned = bench("plan", "--preset", "smoke", "--methods", "uce", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    told = words(planned.stderr)
    assert '"uce" is methods.uce and first:Method of the package first; the first is used: rename or uninstall the other.' in told
    assert "second:Method of the package second; none is used: uninstall one of them." in told
    assert 'The name "a,b" of the method first:Method of the package first has more than letters' in told
    assert "none is used" in words(bench("list", "methods", cwd=tmp_path).stderr)
    asked = bench("plan", "--preset", "smoke", "--methods", "mine", cwd=tmp_path)
    assert asked.returncode == 2
    assert "none is used" in words(asked.stderr)
