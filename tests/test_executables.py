"""The compilation cache: a damaged entry is said once, removed, and written again."""

import pytest

from proxies_lib import paths
from proxies_lib.config import replace
from proxies_lib.runs import executables, provenance, sweep, tables


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def entries(tmp_path, said):
    return executables.Entries(str(tmp_path / "cache"), said.append)


def test_an_entry_is_read_back_and_a_missing_one_is_none(entries, said):
    entries.put("a", b"program")
    assert entries.get("a") == b"program" and entries.get("b") is None and not said
    assert [path.name for path in entries._path.iterdir()] == ["a.xla"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 39, b"short"])
def test_a_damaged_entry_is_said_and_removed(entries, said, damage):
    entries.put("a", b"program")
    entries.file("a").write_bytes(damage)
    assert entries.get("a") is None and entries.get("a") is None
    assert said == ["compilation cache: a.xla is damaged; it is removed and compiled again"]
    entries.put("a", b"program")
    assert entries.get("a") == b"program"


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path, entries, said):
    (tmp_path / "cache").write_text("a file")
    entries.put("a", b"program")
    entries.put("b", b"program")
    assert said == [f"compilation cache: cannot write to {tmp_path / 'cache'} (File exists)"]
    assert entries.get("a") is None


def test_a_sweep_over_a_damaged_cache_says_so_once_and_repairs_it(
    tmp_path, smoke, capfd, monkeypatch
):
    """Each entry is flipped in its middle: the executable of the training step among them."""
    monkeypatch.setenv("PROXIES_CACHE", str(tmp_path / "cache"))

    def loss(folder) -> float:
        run = replace(smoke, steps=20)
        plan = sweep.plan([run], folder)
        sweep.run(plan, workers=1, engine="processes", quiet=True)
        return tables.table(list(sweep.plan([run], folder).found), folder)[0]["final_loss"].item()

    before = loss(tmp_path / "cold")
    assert "damaged" not in capfd.readouterr().err
    cached = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.xla")}
    for path, content in cached.items():
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert loss(tmp_path / "damaged") == before
    said = [line for line in capfd.readouterr().err.splitlines() if "is damaged" in line]
    assert len(said) == len(set(said)) == len(cached) > 0
    for path in cached:
        assert executables.Entries(path.parent, pytest.fail).get(path.stem)


def test_the_cache_lies_in_the_projects_own_folder(tmp_path, monkeypatch):
    import jax

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("PROXIES_CACHE", str(tmp_path))
    executables.use_cache()
    assert jax.config.jax_compilation_cache_dir.startswith(str(paths.folder("cache")))
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("about", "device"),
    [
        (
            "processor : 0\ncpu family : 26\nmodel\t: 2\nmodel name\t: AMD EPYC\nstepping : 1\n",
            "AMD EPYC (family 26, model 2)",
        ),
        ("processor : 0\nCPU part : 0xd0c\nmodel name : Neoverse-N1\n", "Neoverse-N1"),
    ],
)
def test_a_device_is_a_processor_and_not_only_its_brand(about, device, tmp_path, monkeypatch):
    """Two processors called "AMD EPYC" gave other bits and a third of the speed."""
    (tmp_path / "cpuinfo").write_text(about)
    monkeypatch.setattr(executables, "CPUINFO", tmp_path / "cpuinfo")
    provenance.provenance.cache_clear()
    try:
        assert provenance.provenance()["device"] == device
    finally:
        provenance.provenance.cache_clear()
