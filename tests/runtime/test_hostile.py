"""The corpus of hostile bundles: each is refused, soon, in little memory, and without a look at anything else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edgevae import MANIFEST_FILE, check_graph
from tests.conftest import REPOSITORY
from tests.runtime.hostile import CORPUS
from tests.runtime.hostile.case import OUTSIDE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by what Linux has under /proc")

LIMIT_SECONDS, LIMIT_BYTES = 2, 200_000_000
Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def corpus(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all cases, and a good bundle beside them that they must not reach."""
    folder = tmp_path_factory.mktemp("corpus")
    good = folder / OUTSIDE
    good.mkdir()
    for file in (*bundle.glob("*.onnx"), bundle / "reference.npz"):
        shutil.copy(file, good)
    manifest = json.loads((bundle / MANIFEST_FILE).read_bytes())
    (good / MANIFEST_FILE).write_text(json.dumps({**manifest, "torch_files": {}}, indent=2))
    for case in CORPUS:
        case.build(good, folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(corpus: Path) -> Outcomes:
    """What came of each case, by its name."""
    command = [sys.executable, str(REPOSITORY / "tests" / "runtime" / "hostile" / "attack.py"), OUTSIDE, str(corpus)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=corpus, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"the process died: {done.stderr[-2000:]}\nafter {done.stdout[-500:]}"
    assert done.stderr == ""
    return {outcome["name"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}


def test_the_hostile_corpus_is_complete(outcomes: Outcomes, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(outcomes) == sorted(case.name for case in CORPUS)
    refused = [outcome for outcome in outcomes.values() if outcome["ours"]]
    seconds, most_bytes = (max(outcome[key] for outcome in outcomes.values()) for key in ("seconds", "bytes"))
    with capsys.disabled():
        print(  # noqa: T201 - the figures that are claimed
            f"\n{len(outcomes)} hostile bundles, {len(refused)} refused, each within {seconds:.2f} s of processor "
            f"time and {most_bytes / 1e6:.0f} MB"
        )
    assert len(refused) == len(outcomes) >= 200


def test_each_hostile_bundle_is_refused_for_the_right_reason(outcomes: Outcomes) -> None:
    wrong = [
        f"{case.name}: {outcome['error']}: {outcome['message'][:300]}"
        for case in CORPUS
        if not (outcome := outcomes[case.name])["ours"] or not re.search(case.says, outcome["message"])
    ]
    assert not wrong, "\n".join(wrong)


def test_each_hostile_bundle_is_refused_quickly_and_in_little_memory(outcomes: Outcomes) -> None:
    slow = {name: outcome["seconds"] for name, outcome in outcomes.items() if outcome["seconds"] > LIMIT_SECONDS}
    large = {name: outcome["bytes"] for name, outcome in outcomes.items() if outcome["bytes"] > LIMIT_BYTES}
    assert (slow, large) == ({}, {})


def test_no_hostile_bundle_reads_outside_its_folder_or_starts_a_process(outcomes: Outcomes) -> None:
    assert {name: outcome["seen"] for name, outcome in outcomes.items() if outcome["seen"]} == {}


def test_no_message_contains_terminal_control_sequences(outcomes: Outcomes) -> None:
    assert [name for name, outcome in outcomes.items() if not outcome["message"].replace("\n", "").isprintable()] == []


def test_checking_a_graph_takes_one_session_and_two_more_if_sizes_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    new_session = onnxruntime.InferenceSession

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(new_session(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    folder, counts = REPOSITORY / "models" / "mnist-mlp", {}
    for name in ("encoder", "decoder", "reconstruct", "observation", "elbo"):
        made.clear()
        check_graph((folder / f"{name}.onnx").read_bytes(), name)
        counts[name] = len(made)
    assert counts == {"encoder": 1, "decoder": 1, "reconstruct": 1, "observation": 1, "elbo": 3}
