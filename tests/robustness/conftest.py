"""What the robustness tests share: the processes that run the commands, and what those commands are given."""

import pytest
from robustness.harness import Harness
from robustness.kit import TrainedKit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("robustness")
    harness = Harness(root)
    harness.kit = TrainedKit(root, harness)
    harness.shared = [harness.kit.root]
    yield harness
    harness.stop()
