"""Self-test: a machine that computes convolutions wrongly is detected, and known bad versions are named."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from conftest import small_recipe
from glimpseg.cli import main
from glimpseg.cli.app import app
from glimpseg.cli.entry import EXIT_CODES
from glimpseg.errors import TrainingError, UsageError
from glimpseg.runtime import precision, selftest
from glimpseg.training.loop import fit
from glimpseg.training.options import TrainOptions

CPU = torch.device("cpu")
HONEST = torch.conv3d


def spoiled(image, weight, *rest):
    """One voxel in a thousand 2 % too high in single precision and half; fp64 stays right."""
    result = HONEST(image, weight, *rest)
    return result if image.dtype == torch.float64 else result * (1 + 0.02 * (result > 3 * result.std()))


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, result):
        return result.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * 1.02


@pytest.mark.parametrize("name", selftest.available_precisions(CPU))
def test_this_processor_passes_with_room_to_spare(name):
    found = selftest.check_convolutions(CPU, name)
    assert found.passed
    assert 0 < found.error < found.bound / 3


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    selftest.check_convolutions(CPU, "fp32")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_kernel_that_is_wrong_in_few_voxels_is_found_and_named(monkeypatch):
    monkeypatch.setattr(torch, "conv3d", spoiled)
    found = selftest.check_convolutions(CPU, "fp32")
    assert not found.passed
    assert found.where.startswith("the result")
    assert "cpu in fp32" in selftest.failure_message([found])


def test_a_wrong_gradient_alone_is_found(monkeypatch):
    monkeypatch.setattr(
        torch, "conv3d", lambda image, *rest: WrongBackward.apply(HONEST(image, *rest))
        if image.dtype == torch.float32 else HONEST(image, *rest),
    )  # fmt: skip
    found = selftest.check_convolutions(CPU, "fp32")
    assert not found.passed
    assert "gradient" in found.where


def test_what_is_not_a_number_does_not_pass(monkeypatch):
    monkeypatch.setattr(
        torch, "conv3d", lambda image, *rest: HONEST(image, *rest) * (1 if image.dtype == torch.float64 else math.nan)
    )
    found = selftest.check_convolutions(CPU, "fp32")
    assert found.error == math.inf
    assert found.record()["error"] is None


def test_a_kernel_that_fails_does_not_pass_and_its_words_are_kept(monkeypatch):
    def absent(image, *rest):
        if image.dtype == torch.float64:
            return HONEST(image, *rest)
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nmore")

    monkeypatch.setattr(torch, "conv3d", absent)
    found = selftest.check_convolutions(CPU, "fp32")
    assert not found.passed
    assert found.where.endswith("CUDNN_STATUS_NOT_SUPPORTED")


@pytest.mark.skipif("bf16" not in selftest.available_precisions(CPU), reason="no native bf16 here")
def test_the_fault_of_coarse_maps_would_be_found(monkeypatch):
    monkeypatch.setattr(precision, "FEW_PLANES", 0)  # as if glimpseg knew nothing of it
    found = selftest.check_convolutions(CPU, "bf16")
    if found.passed:
        pytest.skip("this torch computes coarse maps in bf16 rightly")
    assert "weights' gradient" in found.where


@pytest.mark.parametrize(
    ("version", "cudnn", "words"),
    [
        ("2.9.0+cu128", 91002, ["four times", "bf16 can be wrong", "TF32"]),
        ("2.9.0+cu128", 92100, ["four times"]),
        ("2.9.1+cu130", 91300, ["four times", "TF32"]),
        ("2.9.1+cu130", 92100, []),
        ("2.10.0+cu128", 90900, ["bf16 can be wrong"]),
        ("2.13.0+cu130", 91500, ["TF32"]),
        ("2.13.0+cu130", 91501, []),
        ("2.9.0+cpu", None, []),
    ],
)
def test_known_bad_versions_are_named(version, cudnn, words):
    found = selftest.known_faults(version, cudnn)
    assert len(found) == len(words)
    assert all(word in fault.fault for word, fault in zip(words, found, strict=True))
    assert all(fault.remedy and fault.source for fault in found)


def test_training_on_a_graphics_processor_that_is_wrong_is_refused(monkeypatch, tmp_path):
    asked = []

    def wrong(device, name):
        asked.append((str(device), name))
        return selftest.ConvolutionCheck(device="mps", precision=name, error=0.5, bound=1e-2, where="the result")

    monkeypatch.setattr(selftest, "check_convolutions", wrong)
    with pytest.raises(TrainingError, match="computed wrongly on mps"):
        fit(small_recipe(), lambda _: None, tmp_path / "run", TrainOptions(device=torch.device("mps")))
    assert asked == [("mps", "fp32")]
    assert not (tmp_path / "run").exists()


def test_on_a_cuda_device_fp32_is_tried_as_torch_computes_it_and_cautions_are_logged(monkeypatch, caplog):
    monkeypatch.setattr(selftest, "version_warnings", lambda: ["torch 2.9.0 is slow"])
    monkeypatch.setattr(
        selftest, "check_convolutions", lambda device, name: selftest.ConvolutionCheck(
            device="cuda", precision=name, error=2e-3, bound=selftest.BOUNDS[name], where="the result"
        ),
    )  # fmt: skip
    selftest.require_correct_convolutions(
        torch.device("cuda"), "fp32"
    )  # 2e-3 is right for TF32 and would not be for fp32
    assert "torch 2.9.0 is slow" in caplog.text


def test_training_on_the_processor_needs_no_test(monkeypatch):
    monkeypatch.setattr(selftest, "check_convolutions", None)
    selftest.require_correct_convolutions(CPU, "fp32")


def test_doctor_holds_the_results_and_what_is_installed():
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False).stdout)
    assert {"glimpseg", "model box", "python", "platform", "torch", "safetensors"} <= set(found)
    assert found["extras"]["dicom"]["pydicom"][0].isdigit()
    assert "all" not in found["extras"]
    assert {check["precision"] for check in found["conv3d"] if check["device"] == "cpu" and check["passed"]} >= {"fp32"}
    assert found["cautions"] == []


def test_doctor_ends_with_an_error_after_telling_all(monkeypatch, capsys):
    monkeypatch.setattr(torch, "conv3d", spoiled)
    monkeypatch.setattr("sys.argv", ["glimpseg", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == EXIT_CODES[TrainingError] != EXIT_CODES[UsageError]
    assert "WRONG: the result" in told.out
    assert "Install another version of torch" in told.err
