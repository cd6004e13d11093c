"""Reading of the MST-KDNet authors' reference numbers, and comparison with ours.

The file holds what their modules computed at 64^3 and at 160 x 192 x 128, and what their losses are for tensors that
follow from seeds. Weights and inputs follow from a rule and need no room. Names of what is compared are the file's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from conformance.reference import ULP, drawn, mapped, pair
from glimpseg.methods import mstkdnet
from glimpseg.methods.mstkdnet.network import Discriminator, NetworkOutput
from glimpseg.methods.mstkdnet.objective import (
    MSTKDNet,
    attention_distance,
    class_distance,
    logit_divergence,
    mean_square,
    prediction_weight,
    scale_distance,
    squared_dice,
    style_products,
)
from glimpseg.modality import Modality
from glimpseg.nets.authors import authors_name
from glimpseg.region import Label

CUBE, FULL = (64, 64, 64), (160, 192, 128)
SEEN = torch.tensor([True, False, False, True])
"""Modalities that the student sees, in the authors' order."""
SALTS = {"model_missing": "S:", "model_full": "T:", "d_style": "D:"}
OURS = [mstkdnet.ORDER.index(modality) for modality in Modality]
LABELS = (Label.NCR, Label.ED, Label.ET)
RATE = 1e-4
FLIPS = 2
"""Number of weights of a tensor whose first step may change its sign by rounding."""
STEP_GRAM, STEP_ATTENTION = 1e11, 1e2
"""Loss weights of the authors' stored step, chosen to give every term an effect."""


def authors_gram(teacher, student, side):
    """Return the authors' Gram term of unscaled layers; `side` is the crop's side."""
    channels = teacher[0].shape[1]
    pairs = zip(style_products(teacher), style_products(student), strict=True)
    distance = torch.stack([mean_square(*pair) for pair in pairs]).sum(0)
    return distance * 1e-4 / (4 * channels**2 * (side[0] // 8 * (side[1] // 8)) ** 2)


def styles(seen):
    """Return the layers that GSME compares."""
    return seen.entry, seen.style, seen.content


def built(crop):
    """Return the official networks with weights by the rule; norms use running statistics, as the authors' `eval`."""
    with torch.device("meta"):
        names = MSTKDNet(replace(mstkdnet.OFFICIAL, crop=crop), LABELS).state_dict()
    weights = {}
    for name, value in names.items():
        key = authors_name(name, mstkdnet.NAMES)
        part, _, inner = key.partition(".")
        weights[key] = drawn(SALTS[part], inner, list(value.shape))
    network = mstkdnet.from_authors(weights)
    for name, norm in list(network.named_modules()):
        if isinstance(norm, nn.InstanceNorm3d):
            part, _, inner = authors_name(name, mstkdnet.NAMES).partition(".")
            network.set_submodule(name, _with_running_statistics(norm, SALTS[part], inner))
    return network.eval()


def _with_running_statistics(norm, salt, key):
    other = nn.BatchNorm3d(norm.num_features)
    other.weight, other.bias = norm.weight, norm.bias
    other.running_mean = drawn(salt, f"{key}.running_mean", [norm.num_features])
    other.running_var = drawn(salt, f"{key}.running_var", [norm.num_features])
    return other


def image(crop, seed):
    """Return the authors' input, in our order of channels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((1, 4, *crop), generator=generator, dtype=torch.float32)[:, OURS]


def both(network, crop, seed):
    """Return the teacher's output for all modalities, and the student's for two."""
    shown = image(crop, seed).to(next(network.parameters()).dtype)
    return network.teacher(shown, True), network.student(shown * SEEN[OURS].view(1, 4, 1, 1, 1), True)


def parts(seen):
    """Return the maps by the file's names."""
    named = {"logit": seen.logits, "style": seen.style, "content": seen.content, "c3d": seen.entry}
    named |= {f"unetr_fs{i}": scale for i, scale in enumerate(seen.scales)}
    return named | {f"attn{i}": attention for i, attention in enumerate(seen.attentions)}


def loss_terms(teacher, student, divided, whole, crop):
    """Every term by the file's names; `divided` and `whole` are the two encodings of the target."""
    logits = teacher.logits, student.logits
    by_teacher, by_student = (x.sigmoid() for x in logits)
    near = class_distance(by_teacher, by_student)[0]
    content = mean_square(teacher.content, student.content)
    found = {}
    for encoding, target, names in (
        ("divide", divided, ("net", "snfh", "et", "bg")),
        ("region", whole, ("wt", "tc", "et")),
    ):
        k = len(names)
        one, other = (squared_dice(p[:, :k], target[:, :k]) for p in (by_teacher, by_student))
        far = near[:k].clone()
        if encoding == "divide":  # the slips
            other[-1] = one[-1]
            far[-1] = one[-1]
        start = f"{encoding}/ep0"
        for name, a, b, c in zip(names, one, other, far, strict=True):
            found |= {f"{start}/{name}_dc_loss": a, f"{start}/{name}_miss_dc_loss": b, f"{start}/{name}_mse_loss": c}
        found |= {f"{start}/loss_dc": one.sum(), f"{start}/loss_miss_dc": other.sum()}
        found |= {f"{start}/consistency_loss": far.sum(), f"{start}/content_loss": content}
        for epoch in (0, 10, 20):
            weight = 10 * prediction_weight(epoch / 100, 0.2)
            whole_term = 0.4 * one.sum() + 0.6 * other.sum() + weight * far.sum() + 0.2 * content
            found[f"{encoding}/ep{epoch}/loss_Co"] = whole_term
    tokens = teacher.attentions[0].shape[-1]
    found["unetr"] = scale_distance(teacher, student)
    pairs = zip(teacher.scales, student.scales, strict=True)
    found |= {f"unetr_term{i}": mean_square(*pair) for i, pair in enumerate(pairs)}
    found["evd"] = attention_distance(teacher, student) / tokens**4
    found["slkd_T7_official_order(full,missing)"] = logit_divergence(*logits, temperature=7)
    found["slkd_T7_swapped(missing,full)"] = logit_divergence(*logits[::-1], temperature=7)
    found["gsm_x1e-4"] = authors_gram(styles(teacher), styles(student), crop)
    found["style_gram_x1e-4"] = authors_gram([teacher.style], [student.style], crop)
    return found


def total(network, teacher, student, target, attention, crop):
    """The objective of teacher and student at the beginning of training, without style, with the authors' weight of
    attention as they write it."""
    tokens = np.prod([side // 32 for side in crop])
    network.config = replace(network.config, attention=float(attention / tokens**4))
    return sum(network.terms(teacher, student, target, torch.ones(1, dtype=torch.bool), 0.0).values())


def targets(stored, dtype):
    """The label map of the 64^3 case in both encodings; it has no label in some voxels if `cut` found so."""
    if "net64/y_divide" in stored:
        return tuple(torch.from_numpy(stored[f"net64/y_{name}"]).to(dtype) for name in ("divide", "region"))
    labels = torch.from_numpy(stored["labels"])
    divided = torch.stack([labels == value for value in (1, 2, 3, 0)], 1)
    net, snfh, et, background = divided.unbind(1)
    return divided.to(dtype), torch.stack([net | snfh | et, net | et, et, background], 1).to(dtype)


def paired_losses(stored, start, values):
    """Return all terms that the file has under `start`."""
    return {f"loss {start}/{name}": pair(value, stored[f"{start}/{name}"]) for name, value in values.items()}


def cube(stored, dtype=torch.float32):
    """Return every map and every loss at 64^3, with running statistics."""
    network = built(CUBE).to(dtype)
    with torch.inference_mode():
        seen = both(network, CUBE, 100)
        found = {}
        for who, one in zip("TS", seen, strict=True):
            for name, value in parts(one).items():
                key = f"net64/{who}/{name}"
                found[f"map {key}"] = mapped(value, stored, key)
        divided, whole = targets(stored, dtype)
        found |= paired_losses(stored, "net64/loss", loss_terms(*seen, divided, whole, CUBE))
        official = total(network, *seen, divided, 1e8, CUBE)
        found["loss net64/loss/TOTAL"] = pair(official, stored["net64/loss/TOTAL_official_train.py_ep0"])
    return found


def fixed(dtype):
    """Return the tensors that are made from seeds, and that require gradients."""

    def randn(shape, seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

    made = []
    for first, second in ((0, 0), (1, 10)):
        logits = 3 * randn((1, 4, 32, 40, 24), 302 + first)
        layers = [randn((1, 128, 20, 24, 16), 310 + second + i) for i in range(3)]
        shapes = ((64, 20, 24, 16), (128, 40, 48, 32), (256, 20, 24, 16), (512, 10, 12, 8))
        scales = [randn((1, *shape), 330 + second + i) for i, shape in enumerate(shapes)]
        attentions = [randn((1, 12, 120, 120), 350 + second + i).softmax(-1) for i in range(4)]
        logits, *rest = [tensor.to(dtype).requires_grad_() for tensor in (logits, *layers, *scales, *attentions)]
        made.append(NetworkOutput(logits, *rest[:3], rest[3:7], rest[7:]))
    return made


def gradient_norms(value, tensors):
    """Return the gradients of one value, in the order of the tensors."""
    return np.array([float(g.double().norm()) for g in torch.autograd.grad(value.sum(), tensors, retain_graph=True)])


def seeded(stored, dtype=torch.float32):
    """Return losses of the seeded tensors, and their gradients to teacher and student; nothing is detached."""
    teacher, student = fixed(dtype)
    values = {
        "unetr": scale_distance(teacher, student),
        "evd": attention_distance(teacher, student) / 120**4,
        "slkd_T7_official_order(full,missing)": logit_divergence(teacher.logits, student.logits, temperature=7),
        "slkd_T7_swapped(missing,full)": logit_divergence(student.logits, teacher.logits, temperature=7),
        "gsm_x1e-4": authors_gram(styles(teacher), styles(student), FULL),
    }
    found = paired_losses(stored, "fixed/loss", values)
    for who, seen in (("teacher", teacher), ("student", student)):
        for name, value, tensors in (
            ("evd", values["evd"], seen.attentions),
            ("gsm", values["gsm_x1e-4"], (seen.entry, seen.style, seen.content)),
            ("unetr", values["unetr"], seen.scales),
        ):
            key = f"fixed/grad/{name}_{who}"
            found[f"gradient {key}"] = pair(gradient_norms(value, tensors), stored[key])
    key = "fixed/grad/slkd_teacher_student"
    norms = gradient_norms(values["slkd_T7_official_order(full,missing)"], (teacher.logits, student.logits))
    found[f"gradient {key}"] = pair(norms, stored[key])
    return found | judged(stored, teacher.style.detach(), student.style.detach().requires_grad_())


def judged(stored, teacher, student):
    """Return the discriminator's output, losses, gradients and first step."""
    judge = Discriminator(128, 64).to(teacher.dtype)
    with torch.no_grad():
        for name, value in judge.named_parameters():
            key = authors_name(f"discriminator.{name}", mstkdnet.NAMES).partition(".")[2]
            value.copy_(drawn("D:", key, list(value.shape)))
    network = MSTKDNet(replace(mstkdnet.OFFICIAL, crop=(32, 32, 32), layers=4, token_width=12), LABELS)
    network.discriminator = judge
    empty = NetworkOutput(*[torch.zeros(0)] * 2, teacher, torch.zeros(0), [], [])
    terms = network.adversaries(empty, empty._replace(style=student), torch.ones(1, dtype=torch.bool))
    adversary = terms["gsme/adversary"]
    found = {
        "map disc/logit_teacher": pair(judge(teacher), stored["disc/logit_teacher"]),
        "map disc/logit_student": pair(judge(student), stored["disc/logit_student"]),
        "loss disc/adversary": pair(adversary / 2e-4, stored["disc/adv_loss_student_as_full"]),
        "loss disc/discriminator": pair(
            terms["gsme/discriminator"], stored["disc/d_loss_teacher0_student1"].sum(dtype=np.float64)
        ),
    }
    (norm,) = gradient_norms(adversary, [student])
    found["gradient disc/style"] = pair(norm, stored["disc/adv_grad_norm_style_x2e-4"])
    before = [value.detach().clone() for value in judge.parameters()]
    group = network.parameter_groups()[1]
    terms["gsme/discriminator"].backward()
    norms = np.array([float(value.grad.norm()) for value in judge.parameters()])
    found["gradient disc/weights"] = pair(norms, stored["disc/d_grad_norm"])
    torch.optim.Adam([{key: group[key] for key in ("params", "betas", "weight_decay")}], lr=1e-4).step()
    moved = [float((new - old).detach().abs().max()) for new, old in zip(judge.parameters(), before, strict=True)]
    found["moved disc/first_step"] = pair(np.array(moved), stored["disc/first_adam_step_max_abs_delta"])
    return found


def step(stored, dtype=torch.float32):
    """Return gradients, weights and running statistics of one step at 64^3, with batch statistics, without dropout."""
    network = built(CUBE).to(dtype).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    teacher, student = both(network, CUBE, 100)
    divided, whole = targets(stored, dtype)
    norms = {_authors(name): module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm3d)}
    found = {}
    for who, seen in (("T", teacher), ("S", student)):
        found[f"map net64/train/{who}_logit"] = mapped(seen.logits, stored, f"net64/train/{who}_logit_s4")
    found |= paired_losses(stored, "net64/train/loss", loss_terms(teacher, student, divided, whole, CUBE))
    value = total(network, teacher, student, divided, STEP_ATTENTION, CUBE)
    value = value + STEP_GRAM * authors_gram(styles(teacher), styles(student), CUBE).sum()
    key = "net64/train/loss/STEP_objective_ep0(0.2*unetr+1e2*evd+slkd+1e11*gsm)"
    found["loss net64/train/total"] = pair(value, stored[key])
    value.backward()
    both_networks = network.parameter_groups()[0]["params"]
    before = {_authors(name): float(value.detach().double().sum()) for name, value in network.named_parameters()}
    torch.optim.Adam(both_networks, lr=RATE, weight_decay=1e-5).step()
    parameters = {_authors(name): value for name, value in network.named_parameters()}
    for who, part in (("T", "model_full"), ("S", "model_missing")):
        for name, norm, after, none in zip(
            stored[f"net64/train/{who}/param_keys"].tolist(),
            stored[f"net64/train/{who}/grad_norm"],
            stored[f"net64/train/{who}/param_sum_after_step"],
            stored[f"net64/train/{who}/grad_is_none"],
            strict=True,
        ):
            if none:
                assert f"{part}.{name}" not in parameters
                continue
            mine = parameters.pop(f"{part}.{name}")
            found[f"gradient {who}/{name}"] = pair(mine.grad.double().norm(), norm)
            # A gradient of 1e-10 is rounding altogether.
            if norm > 1e-6:
                start, count = before[f"{part}.{name}"], mine.numel()
                moved = (float(mine.detach().double().sum()) - start) / count
                # Adam's first step is RATE up or down. Where a gradient is nearly 0, its sign is rounding.
                found[f"moved {who}/{name}"] = pair(moved, (after - start) / count, floor=FLIPS * 2 * RATE / count)
        for name, total_of in zip(
            stored[f"net64/train/{who}/bn_keys"].tolist(), stored[f"net64/train/{who}/bn_sum"], strict=True
        ):
            place, _, statistic = name.rpartition(".")
            mine = getattr(norms[f"{part}.{place}"], statistic)
            found[f"running {who}/{name}"] = pair(mine.double().mean(), total_of / mine.numel(), floor=ULP)
    left = sorted(name for name in parameters if not name.startswith("d_style"))
    assert not left, f"the reference has no gradient of {left}"
    return found


def full(stored, dtype=torch.float32):
    """Return maps, statistics and losses at 160 x 192 x 128, except losses of the target, which is not stored."""
    network = built(FULL).to(dtype)
    found = {}
    with torch.inference_mode():
        seen = both(network, FULL, 200)
        for who, one in zip("TS", seen, strict=True):
            named = parts(one)
            found[f"map full/{who}/logit"] = mapped(named["logit"], stored, f"full/{who}/logit_s8")
            found[f"map full/{who}/style"] = mapped(named["style"], stored, f"full/{who}/style")
            for name, value in {**named, "uout": one.logits.sigmoid()}.items():
                key = f"full/{who}/{name}_stats"
                if key in stored:
                    mine = np.array([float(value.mean()), float(value.std()), float(value.abs().max())])
                    found[f"map {key}"] = pair(mine, stored[key])
        blank = torch.zeros_like(seen[0].logits)
        values = loss_terms(*seen, blank, blank, FULL)
        free = {name: value for name, value in values.items() if "/" not in name or name.endswith("content_loss")}
        found |= paired_losses(stored, "full/loss", free)
    return found


STRIDES = {"logit": 4, "style": 4, "content": 4, "c3d": 4, "unetr_fs": 2, "attn": 1}
"""Stride of the 64^3 maps in a reduced file."""


def cut(stored):
    """Return the part of the file that the tests need: maps at a stride, target as labels."""
    small = {}
    for name, value in stored.items():
        if name.startswith("net64/y_"):
            continue
        kind = name.rpartition("/")[2].rstrip("0123")
        if name.startswith(("net64/T/", "net64/S/")):
            step = STRIDES[kind]
            small[name] = value[..., ::step, ::step, ::step] if kind != "attn" else value
        elif name.startswith(("net64/train/", "net64/loss/", "fixed/", "disc/", "sched/c")) and not name.endswith(
            "README"
        ):
            small[name] = value
    maps = stored["net64/y_divide"]
    small["labels"] = np.where(maps[:, 3] > 0, 0, 1 + maps[:, :3].argmax(1)).astype(np.uint8)
    return small


def numbers(stored, dtype=torch.float32):
    """Return all comparisons that the file allows."""
    found = cube(stored, dtype) | seeded(stored, dtype) | step(stored, dtype)
    return found | full(stored, dtype) if "full/T/style" in stored else found


def _authors(name):
    return authors_name(name, mstkdnet.NAMES)
