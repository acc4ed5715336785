"""What jobs unpickle lies in folders that others cannot write, whatever the umask; who may read them the umask says."""

import os

import pytest

from bench.launch.tasks import fresh_folder, own_folder


@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o755), (0o002, 0o755), (0o022, 0o755), (0o027, 0o750), (0o077, 0o700)])
def test_others_can_read_as_the_umask_says_and_never_write(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = fresh_folder(tmp_path / "results")
        slot = own_folder(folder / "costs" / "slot-0")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == mode and slot.stat().st_mode & 0o777 == mode
    assert folder.parent == tmp_path / "results" / "jobs"  # who could write there could put another folder in its place
    assert {place.stat().st_mode & 0o777 for place in (folder.parent, folder.parent.parent)} == {mode}
    assert fresh_folder(tmp_path / "results") != folder
