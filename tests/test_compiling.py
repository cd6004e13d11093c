"""Compiled networks compute the same, and where compiling fails training goes on without."""

import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from conftest import NETWORKS, small_recipe
from glimpseg import methods
from glimpseg.model.checkpoint import checkpoints
from glimpseg.model.folder import WEIGHTS
from glimpseg.training import compiling
from glimpseg.training.loop import train
from glimpseg.training.options import TrainOptions

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.fixture(autouse=True)
def _nothing_compiled_stays():
    yield
    torch._dynamo.reset()


def trained(run, archive, **changes):
    train(small_recipe(optim__steps=3, **changes), run, TrainOptions(data=archive, device=CPU))
    return load_file(run / "model" / WEIGHTS)


@pytest.fixture(scope="module")
def eager(archive, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("eager") / "run", archive)


def compiles(monkeypatch):
    """Counts what reaches the compiler; nothing is compiled to machine code."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    return seen


def test_compiled_and_not_are_the_same_training_under_the_same_names(archive, eager, tmp_path, monkeypatch):
    graphs = compiles(monkeypatch)
    compiled = trained(tmp_path / "run", archive, optim__compile=True)
    assert len(graphs) == 1  # the network in one piece: nothing in it breaks the graph
    assert compiled.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value)


def test_a_compiled_run_resumes_to_the_same_weights(archive, tmp_path, monkeypatch):
    compiles(monkeypatch)
    whole = trained(tmp_path / "run", archive, optim__compile=True, optim__save_every=1)
    shutil.rmtree(checkpoints(tmp_path / "run")[0])
    shutil.rmtree(tmp_path / "run" / "model")
    recipe = small_recipe(optim__steps=3, optim__compile=True, optim__save_every=1)
    train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU, resume=True))
    again = load_file(tmp_path / "run" / "model" / WEIGHTS)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_where_compiling_fails_the_log_says_so_and_training_is_as_without(
    archive, eager, tmp_path, monkeypatch, caplog
):
    def absent(graph, inputs):
        raise RuntimeError("no C++ compiler was found\nlong trace")

    monkeypatch.setattr(compiling, "BACKEND", absent)
    found = trained(tmp_path / "run", archive, optim__compile=True)
    (told,) = [record.getMessage() for record in caplog.records if record.name == "glimpseg.training.compiling"]
    assert "could not be compiled (RuntimeError: no C++ compiler was found)" in told
    assert all(torch.equal(value, found[name]) for name, value in eager.items())


def test_a_failing_backward_pass_leaves_no_trace_either(archive, eager, tmp_path, monkeypatch, caplog):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            raise RuntimeError("the backward kernel cannot be made")

    def backend(graph, inputs):
        return lambda *given: [Broken.apply(value) for value in graph.forward(*given)]

    monkeypatch.setattr(compiling, "BACKEND", backend)
    found = trained(tmp_path / "run", archive, optim__compile=True)
    assert "the backward kernel cannot be made" in caplog.text
    assert all(torch.equal(value, found[name]) for name, value in eager.items())


def test_on_a_processor_bf16_is_not_compiled(monkeypatch, caplog):
    """The compiler would not keep coarse convolutions in fp32."""
    graphs = compiles(monkeypatch)
    assert not compiling.compile_networks(methods.build(small_recipe()), lambda _: None, CPU, "bf16")
    assert not graphs
    assert "fp32 alone" in caplog.text


@pytest.mark.parametrize(
    ("setting", "device", "platform", "triton", "wanted"),
    [
        ("auto", CUDA, "linux", True, True),
        ("auto", CUDA, "linux", False, False),
        ("auto", CUDA, "win32", True, False),
        ("auto", CPU, "linux", True, False),
        ("auto", torch.device("mps"), "darwin", True, False),
        (True, CPU, "linux", False, True),
        (False, CUDA, "linux", True, False),
    ],
)
def test_auto_compiles_for_cuda_under_linux_where_triton_is(monkeypatch, setting, device, platform, triton, wanted):
    monkeypatch.setattr(compiling, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr("sys.platform", platform)
    assert compiling.should_compile(setting, device) == wanted


COMPARED = """
import sys, torch
from glimpseg import methods
from glimpseg.method import Progress
from glimpseg.nets.recompute import recompute
from glimpseg.data.crops import Batch
from glimpseg.training import compiling

torch.set_num_threads(1)
compiling.BACKEND, again, apart = sys.argv[2], sys.argv[3] == "again", float(sys.argv[4])
batch = Batch(
    study=["a", "b"], image=torch.randn(2, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0)),
    available=torch.ones(2, 4, dtype=torch.bool),
    target=torch.arange(2 * 16**3).view(2, 16, 16, 16) * 7 // 1000 % 4,
)

def gradients(learner):
    torch.manual_seed(2)
    sum(learner.losses(batch, Progress(1, 2)).values()).backward()
    return [p.grad for p in learner.parameters() if p.grad is not None]

for method, changes in eval(sys.argv[1]).items():
    recipe = methods.find_recipe(f"{method}/phantom", changes)
    torch.manual_seed(0)
    eager = methods.build(recipe)
    torch.manual_seed(0)
    compiled = methods.build(recipe)
    if again:
        recompute(compiled.stages)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert compiled.networks, method
    assert compiling.compile_networks(compiled, gradients, torch.device("cpu"), "fp32"), method
    assert not torch._dynamo.utils.counters["graph_break"], (method, torch._dynamo.utils.counters["graph_break"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"], method
    for one, other in zip(gradients(eager), gradients(compiled), strict=True):
        assert float((one - other).norm()) <= apart * float(one.norm()), method
    assert list(eager.state_dict()) == list(compiled.state_dict()), method
"""


def compared(names, backend, again="once", apart=1e-6):
    """In a process of its own: the compiler cannot see through the tests' checks of shapes."""
    changes = {
        method: {f"config.{field}": value for field, value in NETWORKS[method].items()}
        | {"data.sampling.patch": [16, 16, 16]}
        for method in names
    }
    words = [sys.executable, "-c", textwrap.dedent(COMPARED), repr(changes), backend, again, str(apart)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_every_methods_network_is_compiled_without_a_break():
    compared(NETWORKS, "eager")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_machine_code_of_a_network_that_recomputes_gives_the_same_gradients():
    compared(["unet"], "inductor", "again", apart=1e-4)
