"""The cores of the processor that a model may use."""

from pathlib import Path

import psutil
import pytest

from granite_demo.loading.device import cores


@pytest.mark.parametrize(
    ("allowed", "physical", "quota", "expected"),
    [(3, 2, "", 2), (3, None, "", 3), (4, 4, "200000 100000", 2), (4, 4, "max 100000", 4), (4, 4, "50000 100000", 1)],
)
def test_a_model_gets_the_cores_that_the_process_may_use(
    allowed: int, physical: int | None, quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8 if logical else physical)
    (tmp_path / "cpu.max").write_text(quota, encoding="ascii")
    assert cores(tmp_path) == expected
