"""The defaults of the contract and the tools that methods share, worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from glimpseg.data import loader
from glimpseg.data.cache import in_memory
from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import Prepared
from glimpseg.errors import ModelError, UsageError
from glimpseg.method import Learner, Progress, Segmenter, blanked, draw_subsets, frozen, names_by_role, subsets_within
from glimpseg.modality import ALL, SUBSETS, Modality, from_flags, to_flags
from glimpseg.nets.authors import authors_name, take_weights
from glimpseg.region import Label, Region
from glimpseg.runtime import precision
from glimpseg.volume import Grid

TUMOUR = (Label.NCR, Label.ED, Label.ET)


class Plain(Segmenter):
    """Gives the background everything."""

    def losses(self, batch, progress):
        return {}

    def forward(self, image, available):
        found = torch.zeros(len(image), 1 + len(self.labels), *image.shape[2:])
        found[:, 0] = 1
        return found


# Progress


@pytest.mark.parametrize(("step", "steps", "fraction"), [(0, 4, 0), (1, 4, 0.25), (4, 4, 1), (1, 1, 1), (0, 0, 0)])
def test_progress_runs_from_0_to_1(step, steps, fraction):
    assert Progress(step, steps).fraction == fraction


# Defaults of a learner


def test_parameters_that_are_trained_form_one_group():
    learner = Plain(TUMOUR)
    learner.trained, learner.still = nn.Linear(2, 1), nn.Linear(2, 1)
    learner.still.requires_grad_(False)
    (group,) = learner.parameter_groups()
    assert [id(p) for p in group["params"]] == [id(p) for p in learner.trained.parameters()]


def test_a_view_and_a_batch_are_the_loaders():
    image, grid = np.random.default_rng(0).normal(size=(4, 5, 5, 5)).astype(np.float32), Grid((5, 5, 5), np.eye(4))
    case = in_memory(Prepared("S", image, np.ones(image.shape, bool), ALL, np.ones((5, 5, 5), np.uint8), grid, grid))
    sampling, learner = Sampling(patch=(3, 3, 3)), Plain(TUMOUR)
    own, loaders = (view(case, sampling, np.random.default_rng(1)) for view in (learner.view, loader.random_crop))
    assert np.array_equal(own.image, loaders.image)
    assert own.image.shape == (4, 3, 3, 3)
    batch, (transform,) = learner.collate([own])
    assert np.array_equal(batch.image[0], own.image)
    assert transform is own.transform


class Wide(Plain):
    """Takes crops of multiples of 8."""

    @property
    def stride(self):
        return 8


def test_the_smallest_crop_is_one_stride():
    assert (Plain(TUMOUR).stride, Plain(TUMOUR).smallest) == (1, 1)
    assert Wide(TUMOUR).smallest == 8


def test_a_learner_asks_for_nothing_unless_it_says_so():
    learner = Plain(TUMOUR)
    assert (learner.needs_prior, learner.fixed_windows, learner.whole_up_to, learner.shares) == (False, False, 1, False)
    assert (learner.networks, learner.stages, learner.training_only, learner.choices) == ((), (), (), ())
    assert Learner.dataset_note({Modality.T1: 3}) is None


def test_a_segmenter_without_parts_cannot_be_pretrained():
    with pytest.raises(UsageError, match="Plain cannot be pretrained: it names no parts"):
        Plain(TUMOUR).pyramid(torch.zeros(1, 4, 2, 2, 2), torch.ones(1, 4, dtype=torch.bool))


class Sharing(Plain):
    """Computes something once for all subsets."""

    def encode(self, image, available):
        return image * 2


def test_subsets_share_work_only_where_encode_does_any():
    assert Sharing(TUMOUR).shares
    image, available = torch.ones(1, 4, 1, 1, 1), torch.ones(1, 4, dtype=torch.bool)
    assert Plain(TUMOUR).encode(image, available) is image
    learner = Plain(TUMOUR)
    learner.forward = lambda image, available: image * available[:, :, None, None, None]
    assert learner.fuse(image + 1, available & to_flags(Modality.T2)).flatten().tolist() == [0, 0, 2, 0]


# Labels and regions


@pytest.mark.parametrize(
    ("labels", "regions"),
    [
        (TUMOUR, (Region.WT, Region.TC, Region.ET)),
        ((*TUMOUR, Label.RC), (Region.WT, Region.TC, Region.ET, Region.RC)),
        ((Label.ET, Label.NCR), (Region.TC, Region.ET)),
        ((Label.ED, Label.RC), (Region.RC,)),
    ],
)
def test_a_region_needs_all_its_labels(labels, regions):
    assert Plain(labels).regions == regions


def test_a_voxel_gets_the_most_probable_of_background_and_labels():
    # Channels: background, RC, ED.
    voxels = [(0.5, 0.3, 0.2), (0.3, 0.5, 0.2), (0.3, 0.2, 0.5)]
    found = Plain((Label.RC, Label.ED)).decode(torch.tensor(voxels).T[None, :, None, None])
    assert found.flatten().tolist() == [0, Label.RC, Label.ED]


def test_a_regions_probability_is_the_sum_over_its_labels():
    # Channels: background, ET, ED, NCR, RC.
    channels = torch.tensor([0.05, 0.1, 0.2, 0.25, 0.4])[None, :, None, None, None]
    found = Plain((Label.ET, Label.ED, Label.NCR, Label.RC)).region_probabilities(channels)
    assert {region.name: round(p.item(), 6) for region, p in found.items()} == {
        "WT": 0.55, "TC": 0.35, "ET": 0.1, "RC": 0.4,
    }  # fmt: skip


# Parts that training alone needs


class WithTeacher(Plain):
    """Has a teacher, and a layer whose name begins alike."""

    def __init__(self):
        super().__init__(TUMOUR)
        self.teacher, self.teacher_free = nn.Linear(2, 1), nn.Linear(2, 1)

    @property
    def training_only(self):
        return ("teacher",)


def test_a_model_holds_what_segmenting_needs():
    assert set(WithTeacher().kept) == {"teacher_free.weight", "teacher_free.bias"}
    assert set(Plain(TUMOUR).kept) == set()


def test_what_training_alone_needs_can_be_dropped():
    learner = WithTeacher()
    learner.drop_training_parts()
    assert set(learner.state_dict()) == {"teacher_free.weight", "teacher_free.bias"}


# Subsets


def test_subsets_within_a_study_are_those_of_its_modalities():
    available = torch.stack([to_flags(Modality.T1C), to_flags(Modality.T1 | Modality.FLAIR)])
    rows, possible = subsets_within(available)
    assert [from_flags(row) for row in rows] == list(SUBSETS)
    assert [[SUBSETS[n].key for n in row.nonzero()[:, 0].tolist()] for row in possible] == [
        ["t1c"],
        ["t1", "flair", "t1+flair"],
    ]


def test_each_sample_draws_its_own_subset_all_equally_often():
    torch.manual_seed(0)
    drawn = draw_subsets(to_flags(Modality.T1 | Modality.FLAIR).expand(3000, -1))
    subsets, counts = drawn.unique(dim=0, return_counts=True)
    assert {from_flags(row).key for row in subsets} == {"t1", "flair", "t1+flair"}
    # Expected 1000 each, standard deviation 26.
    assert ((counts - 1000).abs() < 130).all()


def test_a_study_of_one_sequence_always_shows_it():
    available = to_flags(Modality.T2).expand(20, -1)
    assert torch.equal(draw_subsets(available), available)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_absent_channels_become_zero_in_the_images_own_type(dtype):
    image = torch.tensor([[1, torch.nan, 3, torch.inf], [5, 6, 7, 8]], dtype=dtype)[:, :, None, None, None]
    available = torch.tensor([[True, False, True, False], [False, True, True, True]])
    found = blanked(image, available)
    assert found.flatten(1).tolist() == [[1, 0, 3, 0], [0, 6, 7, 8]]
    assert found.dtype == dtype


# Frozen modules


def test_a_frozen_module_computes_the_same_with_its_statistics():
    norm = nn.BatchNorm1d(1).eval()
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0 - norm.eps)
    # (8 - 2) / 2.
    assert frozen(norm)(torch.tensor([[8.0]])).item() == pytest.approx(3)


def test_the_gradient_through_a_frozen_module_is_its_slope():
    judge, feature = nn.Linear(1, 1), torch.tensor([[3.0]], requires_grad=True)
    judge.weight.data.fill_(5.0)
    frozen(judge)(feature).sum().backward()
    assert feature.grad.tolist() == [[5]]
    assert judge.bias.grad is None
    assert judge.weight.requires_grad


# Weights by role and by the authors' names


class TwoEncoders(Plain):
    """A copy of one encoder for each of two sequences."""

    pretrainable = {"encoder": r"encoders\.(?:t1|t2)\.(.+)", "decoder": r"up\.(.+)"}  # noqa: RUF012

    def __init__(self):
        super().__init__(TUMOUR)
        self.encoders = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in ("t1", "t2")})
        self.up, self.heads = nn.Linear(1, 1), nn.Linear(1, 1)


def test_copies_share_a_role_and_what_has_none_is_left_out():
    assert names_by_role(TwoEncoders()) == {
        "encoder.weight": ["encoders.t1.weight", "encoders.t2.weight"],
        "decoder.weight": ["up.weight"],
        "decoder.bias": ["up.bias"],
    }


NAMES = [
    (r"encoders\.(?P<m>\w+)\.level(?P<l>\d)\.conv(?P<r>\d)", "{m}_encoder.e{l}_c{r}"),
    (r"norm", "bn"),
    (r"head", "out.head"),
]


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        # Levels count from 1 with the authors; convolutions of a residual begin at 2, after the entry.
        ("encoders.t1c.level0.conv0.weight", "t1ce_encoder.e1_c2.weight"),
        ("encoders.flair.level2.conv1.bias", "flair_encoder.e3_c3.bias"),
        ("norm.weight", "bn.weight"),
        ("norm", "bn"),
    ],
)
def test_a_tensor_has_a_name_of_the_authors(own, theirs):
    assert authors_name(own, NAMES) == theirs


@pytest.mark.parametrize("own", ["normal.weight", "other.weight"])
def test_a_name_is_matched_as_a_whole_word(own):
    with pytest.raises(AssertionError, match=f"no authors' name for {own}"):
        authors_name(own, NAMES)


class Authored(nn.Module):
    """A head and a norm."""

    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Conv3d(2, 1, 1, bias=False), nn.BatchNorm3d(1)


def given(**changes):
    weights = {
        "out.head.weight": torch.tensor([[3.0, 4.0]]), "bn.weight": torch.tensor([5.0]), "bn.bias": torch.tensor([6.0]),
        "bn.running_mean": torch.tensor([7.0]), "bn.running_var": torch.tensor([8.0]),
        "bn.num_batches_tracked": torch.tensor(9),
    }  # fmt: skip
    return {name: value for name, value in {**weights, **changes}.items() if value is not None}


def taken(weights, **options):
    module = Authored()
    take_weights(module, weights, NAMES, **options)
    return {name: value.flatten().tolist() for name, value in module.state_dict().items()}


TAKEN = {
    "head.weight": [3, 4], "norm.weight": [5], "norm.bias": [6], "norm.running_mean": [7], "norm.running_var": [8],
    "norm.num_batches_tracked": [9],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
def test_authors_weights_get_to_their_places_in_our_shapes(prefix):
    assert taken({prefix + name: value for name, value in given().items()}) == TAKEN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_every_floating_type_are_taken_in_our_own(dtype):
    module = Authored()
    take_weights(module, {name: value.to(dtype) for name, value in given().items()}, NAMES)
    assert module.head.weight.flatten().tolist() == [3, 4]
    assert {name: value.dtype for name, value in module.state_dict().items()} == {
        name: torch.int64 if name.endswith("tracked") else torch.float32 for name in TAKEN
    }


def test_keys_that_nothing_needs_may_be_there():
    assert taken(given(**{"prior.weight": torch.ones(1)}), unused=r"prior\.") == TAKEN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bn.bias": None, "bn.weight": None},
            r"not the weights of the authors' Authored: 2 tensors are missing \(such as bn\.bias\), 0 are unknown\.",
        ),
        (
            {"prior.b": torch.ones(1), "prior.a": torch.ones(1)},
            r"0 tensors are missing, 2 are unknown \(such as prior.a\)",
        ),
        ({"bn.bias": torch.ones(2)}, r"bn.bias should be \(1,\), not \(2,\). Was this Authored trained with other"),
        ({"out.head.weight": torch.ones(2, 2)}, r"out.head.weight should be \(1, 2, 1, 1, 1\), not \(2, 2\)"),
        ({"bn.bias": torch.tensor([1])}, "bn.bias should hold floating-point numbers, not torch.int64"),
        ({"bn.num_batches_tracked": torch.tensor(1, dtype=torch.int32)}, "should hold floating-point .* torch.int32"),
        ({"bn.bias": torch.tensor([torch.nan])}, "bn.bias holds values that are not finite"),
        (
            {"module.bn.bias": torch.ones(1)},
            "^The weights hold some tensors twice, with and without 'module.' before their names.$",
        ),
    ],
    ids=["missing", "unknown", "numbers", "shape", "whole", "narrow", "nan", "twice"],
)
def test_weights_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        taken(given(**changes))


def test_two_axes_exchanged_are_not_taken_for_the_same_shape():
    module = nn.ModuleDict({"head": nn.Linear(3, 2, bias=False)})
    with pytest.raises(ModelError, match=r"should be \(2, 3\), not \(3, 2\)"):
        take_weights(module, {"out.head.weight": torch.ones(3, 2)}, NAMES)


# The type of computation


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_takes_bf16_where_the_processor_has_it(monkeypatch, device, native, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native if device == "cpu" else not native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: native if device == "cuda" else not native)
    assert precision.resolve_precision("auto", torch.device(device)) == expected


def test_on_a_device_of_another_kind_auto_takes_fp32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision.resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_precision_that_is_named_is_taken_everywhere(monkeypatch, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: wanted == "fp32")
    assert precision.resolve_precision(wanted, torch.device("cpu")) == wanted
