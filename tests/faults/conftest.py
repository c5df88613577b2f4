"""What a test of a real fault needs from the machine."""

import subprocess

import pytest


@pytest.fixture(scope="session")
def mounts() -> None:
    """Skip where no user may mount a file system in a namespace of its own, as in some containers.

    Not inside the test, whose nurseries would lose the reason.
    """
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare(1) and mount(8)")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no mounts in namespaces here: {error.stderr}")
