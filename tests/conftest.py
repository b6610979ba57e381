from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell's background starts us, and we would start others
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--data-dir", type=Path, default=None, help="folder of the real data sets")


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory):
    """Where all processes that tests start keep temporary files, such as torch's launcher its logs: gone afterwards."""
    tmp_path_factory.getbasetemp()  # pytest's own, which stay for a look at what failed
    with (
        tempfile.TemporaryDirectory(prefix="ugr-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("TMPDIR", "TEMP", "TMP"):
            patch.setenv(name, folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def data_dir(request):
    """Folder of the real data sets; a test that asks for it is marked `data`."""
    folder = request.config.getoption("--data-dir")
    if folder is None:
        pytest.skip("needs the real data sets: give their folder with --data-dir")
    if not folder.is_dir():
        pytest.fail(f"--data-dir {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The results of prepare, sids, sft, rl and eval on a tiny catalogue; do not write into them."""
    for package in ("torch", "pyarrow", "faiss"):
        pytest.importorskip(package)
    import pipeline

    return pipeline.run(tmp_path_factory.mktemp("pipeline"))
