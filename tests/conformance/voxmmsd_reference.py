"""Reading of the Vox-MMSD authors' reference numbers, and comparison with ours.

The file holds what the released code drew and computed, family by family. Its draws come from two global generators,
numpy's and Python's, in an order that is followed here; what was drawn is then given to our functions.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from conformance.reference import pair
from glimpseg.data.preprocess import bytes_of
from glimpseg.losses import downsample_target, one_hot, soft_dice_loss
from glimpseg.method import Progress
from glimpseg.methods import voxmmsd, voxunet
from glimpseg.methods.voxmmsd import views
from glimpseg.methods.voxmmsd.config import OFFICIAL
from glimpseg.methods.voxmmsd.intensities import IntensityChange, apply_change
from glimpseg.methods.voxmmsd.objective import VoxMMSD, distillation_loss, restoration_loss
from glimpseg.model.folder import StoredModel
from glimpseg.model.transfer import transfer
from glimpseg.nets.authors import authors_name
from glimpseg.recipe import Init
from glimpseg.region import Label
from glimpseg.training.state import TrainingState
from glimpseg.volume import bounding_box

TOLERANCES = {"sched": 1e-12, "norm": 0.0, "mask": 0.0, "aug": 2e-6, "view": 2e-6, "prep": 0.0}
"""Largest difference of what numpy computes element by element: rounding of fp64 in schedules, of a chain of at most
six changes of fp32 in images (16 units in the last place of 1), none where whole numbers are counted or copied."""


LABELS = (Label.NCR, Label.ED, Label.ET)
STEPS = 60_000
SHAPE = (104, 120, 112)
"""Shape of the volume that views are cut from."""
CROP = (96, 96, 96)
MODALITIES = 4


class Draws(NamedTuple):
    """Python's and numpy's random generators."""

    numpy: np.random.RandomState
    python: random.Random

    @classmethod
    def of(cls, seed):
        """Seed both generators."""
        return cls(np.random.RandomState(seed), random.Random(seed))


def differences(stored):
    """Return the difference of every number that no network computes, by name; 0 or 1 for equal or not equal."""
    found = {}
    for family in (schedules, scaling, masks, changes, pairs, structure, carried, preparing):
        found |= family(stored)
    return found


def numbers(stored, dtype=torch.float32):
    """Return everything that torch computes, a `Pair` by name."""
    found = {}
    for family in (distilling, restoring, networks, steps, tuning):
        found |= family(stored, dtype)
    return found


def cut(stored):
    """Return a small part of the file: one step, one call, two pairs of views, maps at a stride."""
    left_out = ("dino/call1", "dino/call2", "step/batch1", "step/it1", "view/aug0_seed12", "view/aug1_seed11")
    small = {name: value for name, value in stored.items() if not name.startswith(left_out)}
    for name, value in small.items():
        step = 4 if name.startswith("aug/") and name != "aug/in" else 2 if name.startswith("view/aug") else 1
        if step > 1 and value.ndim == 4 and name.endswith(("_sub", *"345")):
            small[name] = value[:, ::step, ::step, ::step]
    for v in (0, 1):
        small[f"step/shown{v}"] = small.pop(f"step/batch0_image{v}")[..., ::16, ::16, ::16] != 0
        del small[f"step/batch0_label{v}"]
    return small


def unlike(one, other):
    """Return the largest difference; 1 for other shapes."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return 1.0
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()) if one.size else 0.0


def relative(one, other):
    """Return the largest difference in units of the largest number."""
    return unlike(one, other) / float(np.abs(np.asarray(other)).max())


def schedules(stored):
    """`sched/`: by step, and the temperature as the table holds it, without its block ahead."""
    places = stored["sched/iter"].tolist()
    optim = voxmmsd.RECIPES["official"].optim
    warm = replace(optim, warmup=2000)
    learner = small_learner(replace(OFFICIAL, ahead=0))
    progress = [Progress(step, STEPS) for step in places]
    return {
        "sched/lr_nowarmup": unlike([optim.rate(step) for step in places], stored["sched/lr_nowarmup"]),
        "sched/lr_warmup2000it": unlike([warm.rate(step) for step in places], stored["sched/lr_warmup2000it"]),
        "sched/wd": unlike([optim.decay(step) for step in places], stored["sched/wd"]),
        "sched/ema_m": unlike([learner.momentum(at) for at in progress], stored["sched/ema_m"]),
        "sched/teacher_temp": unlike([learner.temperature(at) for at in progress], stored["sched/teacher_temp"]),
    }


def scaling(stored):
    """`norm/`."""
    return {"norm/out": unlike(views.zero_to_one(stored["norm/in"]), stored["norm/out"])}


def masks(stored):
    """`mask/`: two seeds, from their uniform numbers."""
    found, edges = {}, views.blocks_to_voxels(np.arange(6)[None, :, None, None], CROP, OFFICIAL)[0, :, 0, 0]
    found["mask/block_edges"] = unlike(np.bincount(edges), stored["mask/block_edges_for_6_blocks_x16"])
    for seed in (0, 1):
        uniforms = drawn_blocks(Draws.of(seed))
        kept = uniforms <= 1 - OFFICIAL.hidden
        whole = views.blocks_to_voxels(kept, CROP, OFFICIAL)
        found[f"mask/seed{seed}_uniforms"] = unlike(uniforms, stored[f"mask/seed{seed}_uniforms"])
        found[f"mask/seed{seed}_keep_blocks"] = unlike(kept, stored[f"mask/seed{seed}_keep_blocks"])
        found[f"mask/seed{seed}_keep_full"] = unlike(np.packbits(whole), stored[f"mask/seed{seed}_keep_full_packed"])
        share = whole.mean((1, 2, 3)).astype(np.float32)
        found[f"mask/seed{seed}_kept_fraction"] = unlike(share, stored[f"mask/seed{seed}_kept_fraction_per_modality"])
    return found


def drawn_blocks(draws):
    """Return one uniform number for each block. The authors first ask Python's generator whether to mask at all."""
    draws.python.random()
    return draws.numpy.rand(MODALITIES, *views.blocks_along(CROP, OFFICIAL))


def drawn_change(draws, shape, transforms):
    """Return a view's intensity change, in the authors' order of draws."""
    m = shape[0]
    ones = {name: np.ones(m) for name in ("gain", "contrast", "exponent")}
    drawn = ones | {"noise": np.zeros(shape), "blur_voxels": np.zeros(m), "shift": np.zeros(m)}
    settings = OFFICIAL.intensities
    if "GaussianNoise" in transforms:
        for channel in range(m):
            draws.numpy.uniform()
            drawn["noise"][channel] = draws.numpy.normal(0, settings.noise_sd, shape[1:])
    if "GaussianBlur" in transforms and draws.numpy.uniform() >= 1 - settings.blur:
        draws.python.uniform(*settings.blur_voxels)
        for channel in range(m):
            if draws.numpy.uniform() <= 0.5:
                drawn["blur_voxels"][channel] = draws.python.uniform(*settings.blur_voxels)
    if "BrightnessMultiplicative" in transforms and draws.numpy.uniform() >= 1 - settings.gain:
        factor = draws.python.uniform(*settings.gains)
        for channel in range(m):
            if draws.numpy.uniform() <= 0.5:
                drawn["gain"][channel] = factor
    if "BrightnessAdditive" in transforms and draws.numpy.uniform() >= 1 - settings.shift:
        draws.python.uniform(0, settings.largest_shift)
        for channel in range(m):
            if draws.numpy.uniform() <= settings.shifted_share:
                drawn["shift"][channel] = draws.python.uniform(0, settings.largest_shift)
    if "Contrast" in transforms and draws.numpy.uniform() >= 1 - settings.contrast:
        for channel in range(m):
            draws.numpy.uniform()
            ends = (settings.contrasts[0], 1) if draws.numpy.random() < 0.5 else (1, settings.contrasts[1])
            drawn["contrast"][channel] = draws.numpy.uniform(*ends)
    if "GammaCorrection" in transforms:
        low, high = settings.exponents
        for channel in range(m):
            if draws.numpy.uniform() <= settings.gamma:
                drawn["exponent"][channel] = low + (high - low) * draws.python.random()
                draws.numpy.uniform()
    return IntensityChange(**drawn)


def changes(stored):
    """`aug/`: each transform alone, and the chain."""
    found, image = {}, stored["aug/in"]
    names = stored["aug/order"].tolist()
    for seed in (3, 4, 5):
        for name, transforms in {**{name: [name] for name in names}, "chain": names}.items():
            ours = apply_change(
                drawn_change(Draws.of(seed), image.shape, transforms), image, np.ones(MODALITIES, np.float32)
            )
            theirs = stored[f"aug/{name}_seed{seed}"]
            found[f"aug/{name}_seed{seed}"] = unlike(thinned(ours, theirs), theirs)
    return found


def volume():
    """Return the volume that the authors' views were cut from: waves in an ellipsoid, integers."""
    z, y, x = np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij")
    inside = sum(((a - (n - 1) / 2) / (0.47 * n)) ** 2 for a, n in zip((z, y, x), SHAPE, strict=True)) < 1
    waves = [
        120
        + 50 * np.sin(0.05 * (c + 1) * x + c)
        + 60 * np.sin(0.11 * (c + 1) * z + 0.3 * c) * np.cos(0.07 * (c + 2) * y)
        for c in range(MODALITIES)
    ]
    return np.where(inside, np.stack(waves), 0).astype(np.uint8).astype(np.float32)


def statistics(values):
    """Return sum, sum of magnitudes, sum of squares, minimum and maximum."""
    flat = np.asarray(values, np.float64).ravel()
    return np.array([flat.sum(), np.abs(flat).sum(), (flat**2).sum(), flat.min(), flat.max()])


def pairs(stored):
    """`view/`: the whole generator, without and with changed intensities."""
    whole = volume()
    sides = [max(side // 8, 1) for side in SHAPE]
    sample = whole[(slice(None), *(slice(None, None, step) for step in sides))]
    found = {
        "view/volume_stats": relative([statistics(channel) for channel in whole], stored["view/volume_stats"]),
        "view/volume_sample": unlike(sample, stored["view/volume_sample"]),
    }
    for changed in (0, 1):
        for seed in (11, 12):
            key = f"view/aug{changed}_seed{seed}_"
            if f"{key}voxel0" in stored:
                found |= one_pair(stored, whole, seed, key, changed)
    return found


def one_pair(stored, whole, seed, key, changed):
    """Run the generator once; attempts are repeated until enough voxels are visible in both views."""
    draws, kept = Draws.of(seed), np.zeros(0)
    while len(kept) < OFFICIAL.voxels:
        starts = np.array([[draws.numpy.randint(0, side - 96 + 1) for side in SHAPE] for _ in range(2)])
        crops = [whole[(slice(None), *(slice(a, a + 96) for a in start))] for start in starts]
        made = [views.scaled_view(crop, crop != 0, drawn_blocks(draws), OFFICIAL) for crop in crops]
        where = views.candidates(made[0].tissue, starts, by_channel=True)
        modalities = np.stack([draws.numpy.randint(0, MODALITIES, len(where)) for _ in range(2)])
        kept = np.flatnonzero(views.visible_in_both([one.visible for one in made], where, starts, modalities))
    rows = draws.numpy.choice(kept, OFFICIAL.voxels, replace=False)
    found = {f"{key}box2_minus_box1": unlike(starts[1] - starts[0], stored[f"{key}box2_minus_box1"])}
    units = np.ones(MODALITIES, np.float32)
    shown = [one.masked for one in made]
    if changed:
        shown = [
            apply_change(drawn_change(draws, one.shape, stored["aug/order"].tolist()), one, units) for one in shown
        ]
    for number, (one, image) in enumerate(zip(made, shown, strict=True)):
        voxel = np.c_[modalities[number][rows], where[rows] - starts[number]]
        found[f"{key}voxel{number}"] = unlike(voxel, stored[f"{key}voxel{number}"])
        for name, values in (("target", one.whole), ("image", image)):
            theirs = stored[f"{key}{name}{number}_sub"]
            found[f"{key}{name}{number}_sub"] = unlike(thinned(values, theirs), theirs)
            stats = [statistics(channel) for channel in values]
            found[f"{key}{name}{number}_stats"] = relative(stats, stored[f"{key}{name}{number}_stats"])
        if not changed:
            found[f"{key}keep{number}"] = unlike(np.packbits(one.visible), stored[f"{key}keep{number}_packed"])
    found[f"{key}unique_spatial"] = unlike(len(np.unique(where[rows], axis=0)), stored[f"{key}unique_spatial"])
    counts = np.zeros((MODALITIES, MODALITIES))
    np.add.at(counts, tuple(modalities[:, rows]), 1)
    found[f"{key}modality_pair_counts"] = unlike(counts, stored[f"{key}modality_pair_counts"])
    return found


def distilling(stored, dtype):
    """`dino/`: three calls in a row, the centre going on."""
    found, centre = {}, torch.zeros(1, 512)
    learner = small_learner(replace(OFFICIAL, ahead=0))
    for call in (call for call in range(3) if f"dino/call{call}_loss" in stored):
        student = torch.from_numpy(stored[f"dino/call{call}_student"]).to(dtype).requires_grad_()
        teacher = torch.from_numpy(stored[f"dino/call{call}_teacher"]).to(dtype)
        temperature = learner.temperature(Progress(200 * int(stored[f"dino/call{call}_epoch"]), STEPS))
        loss = distillation_loss(student, teacher, centre, (OFFICIAL.student_temperature, temperature))
        loss.backward()
        centre = centre.lerp(teacher.mean(0, keepdim=True), 1 - OFFICIAL.centre_momentum)
        for kind, ours in (("loss", loss), ("grad_student", student.grad), ("center_after", centre)):
            found[f"dino/call{call}_{kind}"] = pair(ours, stored[f"dino/call{call}_{kind}"])
    return found


def restoring(stored, dtype):
    """`mae/`."""
    goal = torch.from_numpy(stored["mae/target"]).to(dtype)
    restored = torch.from_numpy(stored["mae/pred"]).to(dtype).tanh()
    return {"mae/loss": pair(restoration_loss(restored, as_pairs(goal, goal, np.zeros((2, 1, 3)))), stored["mae/loss"])}


def as_pairs(image, goal, voxels):
    """Return a batch of complete studies, scaled by crop."""
    count = len(image)
    return views.PairBatch(
        image=torch.as_tensor(image),
        available=torch.ones(count, MODALITIES, dtype=torch.bool),
        whole=torch.as_tensor(goal),
        unit=torch.ones(count, MODALITIES),
        voxels=torch.as_tensor(voxels, dtype=torch.int64),
    )


def weights_by_rule(shapes, tag):
    """Return the p-th floating-point tensor, from its own generator; counters of batches are skipped."""
    weights = {}
    for place, (name, shape) in enumerate((n, s) for n, s in shapes.items() if not n.endswith("num_batches_tracked")):
        draw = np.random.RandomState(10_000 * tag + place).uniform(-1, 1, shape)
        if len(shape) > 1:
            draw = draw * np.sqrt(3 / np.prod(shape[1:]))
        elif name.endswith(("running_var", ".weight")):
            draw = 1 + 0.2 * draw
        else:
            draw = 0.1 * draw
        weights[name] = torch.from_numpy(np.asarray(draw, np.float32))
    return weights


def load_by_rule(module, tag, names=None):
    """Set the weights; `names` maps our names to the authors', in their order."""
    state = module.state_dict()
    names = names or {name: name for name in state}
    back = {theirs: own for own, theirs in names.items()}
    shapes = {theirs: tuple(state[own].shape) for theirs, own in back.items()}
    module.load_state_dict({back[name]: value for name, value in weights_by_rule(shapes, tag).items()}, strict=False)


def their_names(network, order):
    """Return our names of a network's tensors and the authors' names, in the authors' order."""
    theirs = {authors_name(own, voxunet.NAMES): own for own in network.state_dict()}
    return {theirs[name]: name for name in order if name in theirs}


def official_network(stored, dropout=(0, 0, 0.2, 0.2, 0.2), heads=4):
    """Return the authors' U-Net with weights by the rule. Their pretraining network has one unused head."""
    network = voxunet.VoxUNet(voxunet.Config(dropout=dropout, heads=heads), LABELS)
    load_by_rule(network, 0, their_names(network, stored["net/state_keys"].tolist()))
    return network


def small_learner(config):
    """Return any network; only its schedule is used."""
    return VoxMMSD(config, voxunet.VoxUNet(voxunet.Config(width=2, dropout=(0, 0), heads=1), LABELS))


def official_learner(stored):
    """Return the authors' pretraining, without dropout."""
    learner = VoxMMSD(OFFICIAL, official_network(stored, dropout=(0,) * 5))
    load_by_rule(learner.restorer.read[0], 5)
    load_by_rule(learner.projector, 7)
    return learner


def structure(stored):
    """`net/`: names, numbers of parameters, groups of the optimiser, and the input; of `step/` the heads."""
    network = official_network(stored, heads=1)
    names = their_names(network, stored["net/state_keys"].tolist())
    shapes = [str(list(network.state_dict()[own].shape)) for own in names]
    encoder = sum(p.numel() for p in network.encoder.parameters())
    pretrained = official_learner(stored)
    groups = pretrained.parameter_groups()
    own = {id(p): authors_name(name, voxunet.NAMES) for name, p in pretrained.student.named_parameters()}
    found = {
        "net/state_keys": float(list(names.values()) != stored["net/state_keys"].tolist()),
        "net/state_shapes": float(shapes != stored["net/state_shapes"].tolist()),
        "net/n_params_total": unlike(sum(p.numel() for p in network.parameters()), stored["net/n_params_total"]),
        "net/n_params_encoder": unlike(encoder, stored["net/n_params_encoder"]),
        "net/n_params_used_in_pretraining": unlike(
            sum(p.numel() for group in groups for p in group["params"]), stored["net/n_params_used_in_pretraining"]
        ),
    }
    for number, kind in enumerate(("weight_decay", "no_decay")):
        key = f"net/group{number}_names_{kind}"
        # Their optimiser also holds the head that never runs.
        used = [name for name in stored[key].tolist() if "out_conv" not in name]
        found[key] = float(sorted(own[id(p)] for p in groups[number]["params"]) != sorted(used))
    image = torch.from_numpy(np.random.RandomState(99).rand(2, 4, 32, 32, 32).astype(np.float32))
    found["net/input_stats"] = relative(statistics(image), stored["net/input_stats"])
    heads = [p for head in (pretrained.projector, pretrained.restorer) for p in head.parameters()]
    trained = {id(p) for group in groups for p in group["params"]}
    found["step/embed_dim"] = unlike(pretrained.projector[0].in_features, stored["step/embed_dim"])
    found["step/proj_head_params"] = unlike(
        sum(p.numel() for p in pretrained.projector.parameters()), stored["step/proj_head_params"]
    )
    found["step/heads_in_optimizer"] = float(any(id(p) in trained for p in heads))
    for it in (it for it in range(2) if f"step/it{it}_loss" in stored):
        found[f"step/it{it}_ema_m"] = unlike(pretrained.momentum(Progress(it, STEPS)), stored[f"step/it{it}_ema_m"])
    return found


def networks(stored, dtype):
    """`net/`: features of every level."""
    found, network = {}, official_network(stored, heads=1).to(dtype)
    image = torch.from_numpy(np.random.RandomState(99).rand(2, 4, 32, 32, 32).astype(np.float32)).to(dtype)
    everything = torch.ones(2, MODALITIES, dtype=torch.bool)
    for mode in ("eval", "train"):
        network.train(mode == "train")
        for layer in network.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        with torch.no_grad():
            levels = network.pyramid(image, everything)
        for number, level in enumerate(levels):
            key = f"net/{mode}_level{number}"
            found[f"{key}_stats"] = pair(statistics(level), stored[f"{key}_stats"])
            found[f"{key}_sub"] = pair(thinned(level, stored[f"{key}_sub"]), stored[f"{key}_sub"])
    return found


def thinned(values, like):
    """Return every n-th channel and voxel."""
    steps = [max(side // wanted, 1) for side, wanted in zip(values.shape, like.shape, strict=True)]
    return values[tuple(slice(None, None, step) for step in steps)]


def whole_again(stored):
    """Return the first batch of a reduced file: uniform numbers that give the file's shown blocks of 16 voxels."""
    if "step/batch0_label0" in stored:
        return stored
    made, draws = dict(stored), np.random.RandomState(123)
    for v in (0, 1):
        label = draws.rand(2, 4, 32, 32, 32).astype(np.float32).astype(np.float16)
        made |= {f"step/batch0_label{v}": label, f"step/batch0_image{v}": label * grown(stored[f"step/shown{v}"], 16)}
    return made


def grown(blocks, side):
    """Return cubes of this side, in voxels."""
    return blocks.repeat(side, 2).repeat(side, 3).repeat(side, 4)


def steps(stored, dtype):
    """`step/`: two whole iterations."""
    stored, found, learner = whole_again(stored), {}, official_learner(stored).to(dtype)
    recipe = voxmmsd.RECIPES["official"]
    training = TrainingState.begin(learner, recipe.optim, torch.device("cpu"))
    theirs = {authors_name(name, voxunet.NAMES): name for name, _ in learner.student.named_parameters()}
    # Their pretraining has a head that never runs.
    used = ["out_conv" not in name for name in stored["step/param_names"].tolist()]
    names = [theirs[name] for name, runs in zip(stored["step/param_names"].tolist(), used, strict=True) if runs]
    # A bias before a norm has no gradient but rounding.
    null = {name for name in names if name.endswith(("0.bias", "4.bias")) and "narrow" not in name}
    for it in (it for it in range(2) if f"step/it{it}_loss" in stored):
        key, progress = f"step/it{it}_", Progress(it, STEPS)
        image, label, voxel = (np.concatenate([stored[f"step/batch{it}_{kind}{v}"] for v in (0, 1)]) for kind in KINDS)
        image, label = (torch.from_numpy(values).to(dtype) for values in (image, label))
        batch = as_pairs(image, label, voxel[..., 1:])  # without the modality that each was drawn in
        rows = {}
        hooks = [
            learner.projector.register_forward_hook(
                lambda _, given, made, at=rows: at.setdefault(len(at), (given[0], made)) and None
            ),
            learner.restorer.register_forward_hook(lambda _, given, made, at=rows: at.update(rec=made)),
        ]
        terms = learner.losses(batch, progress)
        for hook in hooks:
            hook.remove()
        total = sum(terms.values())
        total.backward()
        found[f"{key}con_loss"] = pair(terms["distillation"], stored[f"{key}con_loss"])
        found[f"{key}rec_loss"] = pair(terms["restoration"], stored[f"{key}rec_loss"])
        found[f"{key}loss"] = pair(total, stored[f"{key}loss"])
        for number, who in enumerate("st"):
            for name, values in zip((f"{key}{who}_feat", f"{key}embed_{who}"), rows[number], strict=True):
                found[name] = pair(thinned(values, stored[name]), stored[name])
        found[f"{key}rec_stats"] = pair(statistics(rows["rec"].detach()), stored[f"{key}rec_stats"])
        student = dict(learner.student.named_parameters())
        norms = [float(student[name].grad.norm()) for name in names]
        for name, ours, their in zip(names, norms, stored[f"{key}grad_norms"][used].tolist(), strict=True):
            if name not in null:
                found[f"{key}grad_norm {name}"] = pair(ours, their)
        training.step(recipe.optim, progress)
        for who, network in (("student", learner.student), ("teacher", learner.teacher)):
            held = dict(network.named_parameters())
            for name, their in zip(names, stored[f"{key}{who}_param_stats"][used], strict=True):
                found[f"{key}{who} {name}"] = pair(statistics(held[name].detach()), their)
            mean = network.encoder.entry[1].running_mean
            found[f"{key}{who}_running_mean0"] = pair(mean, stored[f"{key}{who}_running_mean0"])
        mean = stored[f"{key}projhead_bn1_running_mean"]
        found[f"{key}projhead_bn1_running_mean"] = pair(learner.projector[1].running_mean[: len(mean)], mean)
        found[f"{key}center"] = pair(learner.centre, stored[f"{key}center"])
    return found


KINDS = ("image", "label", "voxel")


def carried(stored):
    """`ft/`: what is taken over of a pretraining."""
    network = official_network(stored)
    pretrained = official_learner(stored)
    given = StoredModel(pretrained.kept, voxmmsd.RECIPES["official"], {}, Path())
    found = {
        "ft/n_params": unlike(sum(p.numel() for p in network.parameters()), stored["ft/n_params_unet3d_multiscale"])
    }
    names = [authors_name(own, voxunet.NAMES) for own in network.state_dict()]
    found["ft/model_keys"] = float(sorted(names) != sorted(stored["ft/model_keys"].tolist()))
    for part, key in (("encoder", "ft/keys_encoder"), ("encoder+decoder", "ft/keys_encoder_decoder")):
        taken = [authors_name(own, voxunet.NAMES) for own in transfer(network, given, Init(transfer=part)).weights]
        found[key] = float(sorted(taken) != sorted(stored[key].tolist()))
    return found


def tuning(stored, dtype):
    """`ft/`: the deeply supervised loss."""
    target = one_hot(torch.from_numpy(stored["ft/label"]).long(), (1, 2, 3)).to(dtype)
    dice, entropy = [], []
    for level in range(4):
        probabilities = torch.from_numpy(stored[f"ft/logits{level}"]).to(dtype).softmax(1)
        goal = downsample_target(target, probabilities.shape[2:])
        dice.append(float(soft_dice_loss(probabilities, goal)))
        entropy.append(float(voxunet.cross_entropy(probabilities, goal)))
    return {
        "ft/DiceLoss_level0": pair(dice[0], stored["ft/DiceLoss_level0"]),
        "ft/CrossEntropyLoss_level0": pair(entropy[0], stored["ft/CrossEntropyLoss_level0"]),
        "ft/deep_sup_loss": pair(np.mean(dice) + np.mean(entropy), stored["ft/deep_sup_loss"]),
    }


def preparing(stored):
    """`prep/`: bytes, and their box, which is ours less its last slice, grown along two axes."""
    low, high = stored["prep/mask_true_box"].reshape(3, 2).T
    mask = np.zeros(high + 5, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    ours = bounding_box(mask)
    box = [[side.start - margin, side.stop - 1 + margin] for side, margin in zip(ours, (0, 10, 10), strict=True)]
    box = np.clip(np.array(box), 0, np.array([40, 60, 70])[:, None])
    return {
        "prep/bounding_box": unlike(box.ravel(), stored["prep/bounding_box"]),
        "prep/uint8": unlike(bytes_of(stored["prep/raw"]), stored["prep/uint8"]),
    }
