"""Networks of images: with waves as weights, what their authors' code gives, by tests/reference/networks.py."""

import re

import pytest
import torch

import regard
from reference.stages import state
from reference.waves import wave
from regard.blocks.spatial import flat, image
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.steps.agents import Agents
from regard.networks.stages.steps.varied import VariedWindows
from regard.networks.vision import patnet
from regard.networks.vision.bevanet import BEVANet, BEVANetClasses
from regard.networks.vision.high_order import Adversary, MixedHighOrder
from regard.networks.vision.overlock import OverLoCK, Sizes
from regard.networks.vision.rasm import RASM
from unit.networks.authors import VALUES, check

PATNET = [
    (r"^stem\.convolution", "patch_embed.proj"),
    (r"^stem\.norm", "patch_embed.norm"),
    (r"^head\.first\.", "avgpool_pre_head.1."),
    (r"^head\.classes", "head"),
    (r"^stages\.(\d)\.down\.convolution", lambda m: f"stages.{2 * int(m[1]) - 1}.reduction"),
    (r"^stages\.(\d)\.down", lambda m: f"stages.{2 * int(m[1]) - 1}"),
    (r"^stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"stages.{2 * int(m[1])}.blocks.{m[2]}."),
    (r"(blocks\.\d+)\.0\.step\.(?!mlp)", r"\1.spatial_mixing."),
    (r"(blocks\.\d+)\.0\.step\.mlp\.", r"\1.mlp."),
    (r"(blocks\.\d+)\.1\.step\.", r"\1.mlp."),
    (r"spatial_mixing\.convolution", "spatial_mixing.partial_conv3"),
    (r"spatial_mixing\.gate\.mix\.linear", "spatial_mixing.attn.cfc1"),
    (r"spatial_mixing\.gate\.mix\.norm", "spatial_mixing.attn.bn"),
    (r"spatial_mixing\.projection\.out", "spatial_mixing.attn.proj"),
    (r"spatial_mixing\.projection", "spatial_mixing.attn.qkv"),
    (r"spatial_mixing\.table", "spatial_mixing.attn.rpe_k.lookup_table_bias"),
    (r"mlp\.first", "mlp.0"),
    (r"mlp\.norm", "mlp.1"),
    (r"mlp\.second", "mlp.3"),
    (r"mlp\.cells\.matrix", "mlp.4.conv"),
    (r"mlp\.cells\.score", "mlp.4.conv_attn"),
    (r"mlp\.cells\.first_norm", "mlp.4.norm"),
    (r"mlp\.cells\.second_norm", "mlp.4.norm2"),
]


def test_patnet():
    net = Stages(patnet.design((1, 2, 1, 1), 16, "gelu", True, 4, 11), 5)
    check(net, VALUES["patnet"], PATNET, {"cfc1": lambda weight: weight.permute(0, 3, 1, 2)})


RESIDUAL = [
    (r"^stem\.convolution", "model.conv1"),
    (r"^stem\.norm", "model.bn1"),
    (r"^early\.(\d)\.", lambda m: f"model.layer{1 + int(m[1])}."),
    (r"^late\.(\d)\.", lambda m: f"model.layer{3 + int(m[1])}."),
    *((rf"\.{ours}\.convolution", f".conv{n}") for n, ours in enumerate(("first", "middle", "last"), 1)),
    *((rf"\.{ours}\.norm", f".bn{n}") for n, ours in enumerate(("first", "middle", "last"), 1)),
    (r"\.skip\.convolution", ".downsample.0"),
    (r"\.skip\.norm", ".downsample.1"),
]


def products(theirs):
    """The matrices of a term, which stand one after the other here."""
    found, terms = {}, {}
    for name, tensor in theirs.items():
        part = re.match(r"(HIGH\d+)\.order\d+_(\d+)_\d+\.0\.weight", name)
        if part:
            terms.setdefault(f"{part[1]}.inner.{int(part[2]) - 1}.weight", []).append(tensor)
        else:
            found[re.sub(r"convb\d+_(\d+)\.0", lambda m: f"outer.{int(m[1]) - 1}", name)] = tensor
    return found | {name: torch.cat(parts) for name, parts in terms.items()}


@pytest.mark.parametrize("stripes", [1, 2])
def test_branches_of_all_orders(stripes):
    net = MixedHighOrder(5, 3, stripes, (1, 1, 1, 1))
    names = [*RESIDUAL, (r"^gates\.(\d)\.mix\.", r"HIGH\1.")]
    if stripes == 1:
        names += [(r"^embeddings\.0", "fc"), (r"^classes\.(\d)", r"classifier\1.0")]
    else:
        names.append((r"^embeddings\.(\d)", r"fc\1"))
        names.append((r"^classes\.(\d)", lambda m: f"classifier{int(m[1]) // 3}_{int(m[1]) % 3}.0"))
    check(net, VALUES["mhn" if stripes == 1 else "mhn_stripes"], names, before=products)


def test_an_adversary_reverses_what_it_is_told():
    """What it learns makes the distance smaller, what it reads learns to make it larger; alike branches have none."""
    torch.manual_seed(0)
    against, x = Adversary(6).double(), torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    found = against(x)
    found.backward()
    with torch.no_grad():
        assert against(x + 1e-3 * x.grad) < found
        for weight in against.parameters():
            weight -= 1e-3 * weight.grad
        assert against(x) < found
        assert against(x[:1].expand(3, -1, -1)) == 0


def block_names(prefix, ours):
    """A basic block or a bottleneck."""
    parts = enumerate(("first", "second", "third"), 1)
    names = [(rf"^{ours}\.{part}\.convolution", f"{prefix}.conv{n}") for n, part in parts]
    parts = enumerate(("first", "second", "third"), 1)
    names += [(rf"^{ours}\.{part}\.norm", f"{prefix}.bn{n}") for n, part in parts]
    return [
        *names,
        (rf"^{ours}\.skip\.convolution", f"{prefix}.downsample.0"),
        (rf"^{ours}\.skip\.norm", f"{prefix}.downsample.1"),
    ]


def large_kernel_names(block, norm, ours):
    return [
        (rf"^{ours}\.last", norm),
        (rf"^{ours}\.norms\.0", f"{block}.norm1"),
        (rf"^{ours}\.norms\.1", f"{block}.norm2"),
        (rf"^{ours}\.scales\.(\d)", lambda m: f"{block}.layer_scale_{1 + int(m[1])}"),
        (rf"^{ours}\.near", f"{block}.mlp.dwconv.dwconv"),
        (rf"^{ours}\.first", f"{block}.mlp.fc1.pwconv"),
        (rf"^{ours}\.second", f"{block}.mlp.fc2.pwconv"),
        (rf"^{ours}\.attended", f"{block}.attn"),
    ]


BEVANET = [
    (r"^stem", "conv1"),
    *block_names(r"layer1.\1", r"first\.(\d)"),
    *block_names(r"layer2.\1", r"second\.(\d)"),
    *block_names(r"layer3_semantic.\1", r"meaning\.0\.(\d)"),
    *block_names("layer4_down_semantic.0", r"meaning\.1\.0"),
    *block_names("layer5_down_semantic_seg.0", r"meaning\.2\.0"),
    *block_names(r"layer3_detail.\1", r"details\.0\.(\d)"),
    *block_names("layer4_detail_conv.0", r"details\.1\.0"),
    *block_names("layer5_detail_semantic.0", r"details\.2"),
    *block_names("layer5_detail_boundary.0", "boundary"),
    *(
        name
        for n in (1, 2)
        for name in large_kernel_names(f"layer4_semantic_{n}", f"norm4_semantic_{n}", rf"meaning\.1\.{n}")
    ),
    *(
        name
        for n in (1, 2)
        for name in large_kernel_names(f"layer5_semantic_{n}_seg", f"norm5_semantic_{n}_seg", rf"meaning\.2\.{n}")
    ),
    *large_kernel_names("layer4_detail", "norm4_detail", r"details\.1\.1"),
    (r"^narrow\.(\d)\.convolution", lambda m: f"compression{3 + int(m[1])}.0"),
    (r"^narrow\.(\d)\.norm", lambda m: f"compression{3 + int(m[1])}.1"),
    (
        r"^fusions\.(\d)\.(own|other)\.(convolution|norm)",
        lambda m: f"fuse_sd_{3 + int(m[1])}.f_{'xy'[m[2] == 'other']}.{int(m[3] == 'norm')}",
    ),
    (r"^pyramid\.levels\.0", "spp.scale0"),
    (r"^pyramid\.levels\.(\d)\.(\d)", lambda m: f"spp.scale{(0, 1, 2, 4, 5)[int(m[1])]}.{1 + int(m[2])}"),
    (r"^pyramid\.steps\.(\d)", lambda m: f"spp.process{(1, 2, '_lska', 4, 5)[int(m[1])]}"),
    (r"^pyramid\.norm", "spp.bn"),
    (r"^pyramid\.attended", "spp.lska"),
    (r"^pyramid\.scale", "spp.layer_scale_lska"),
    (r"^pyramid\.joined", "spp.compression"),
    (r"^pyramid\.skip", "spp.shortcut"),
    (r"^(spp\.(?:scale0\.2|scale[1-9]\.3|compression\.2|shortcut\.2))", r"\1.pwconv"),
    (
        r"^joined\.(details|meaning|out)",
        lambda m: "dfm." + {"details": "conv_p", "meaning": "conv_i", "out": "out"}[m[1]],
    ),
    (r"^supervised\.details", "seghead_ds"),
    (r"^supervised\.boundary", "seghead_db"),
    (r"^((?:seg)?head\w*)\.(\d)\.(\d)\.", lambda m: f"{m[1]}.{'bn' if m[3] == '0' else 'conv'}{1 + int(m[2])}."),
    (
        r"\.gate\.strips\.(\d)",
        lambda m: f".spatial_gating_unit.DW_{('', 'D_')[int(m[1]) // 2]}conv_{'hv'[int(m[1]) % 2]}.dwconv",
    ),
    (r"\.gate\.square", ".spatial_gating_unit.DW_conv.dwconv"),
    (r"\.gate\.row", ".spatial_gating_unit.DW_D_conv_h.dwconv"),
    (r"\.gate\.column", ".spatial_gating_unit.DW_D_conv_v.dwconv"),
    (r"\.gate\.mix", ".spatial_gating_unit.pwconv.pwconv"),
    (r"\.gate\.select\.cells", ".spatial_gating_unit.FS_kernel.conv_squeeze"),
    (r"\.gate\.select\.reduce", ".spatial_gating_unit.FS_kernel.fc_reduce"),
    (
        r"\.gate\.select\.expand\.(\d)",
        lambda m: f".spatial_gating_unit.FS_kernel.fc_expand_{('small', 'big_h', 'big_v')[int(m[1])]}",
    ),
    (r"(FS_kernel\.fc_\w+)\.0", r"\1.0.pwconv"),
    (r"(FS_kernel\.fc_\w+)\.1", r"\1.1.dwconv"),
    (r"(attn|lska)\.first", r"\1.proj_1.pwconv"),
    (r"(attn|lska)\.second", r"\1.proj_2.pwconv"),
]


def test_bevanet():
    net = BEVANet(5, (2, 1, 2), 4, 6, 7, True)

    def call(image):
        found = net.all_outputs(image)
        return torch.cat([found[name].flatten() for name in ("details", "classes", "boundary")])

    check(net, VALUES["bevanet"], BEVANET, call=call)


def test_bevanet_of_whole_images():
    names = [
        *block_names("layer5_down_semantic_cls.0", r"meaning\.2\.0"),
        *block_names("layer5_semantic_bn_cls.0", r"meaning\.2\.3"),
        *(
            name
            for n in (1, 2)
            for name in large_kernel_names(f"layer5_semantic_{n}_cls", f"norm5_semantic_{n}_cls", rf"meaning\.2\.{n}")
        ),
        *conv_norm(r"^down\.0", "layer5_down"),
        *conv_norm(r"^down\.2", "layer5_down", 3),
        *conv_norm("^last", "last_layer"),
    ]
    others = [each for each in BEVANET if not each[0].startswith(r"^((?:seg)?head")]
    check(BEVANetClasses(5, (2, 1, 2), 4, 6), VALUES["bevanet_classes"], [*names, *others])


def conv_norm(ours, there, first=0):
    return [(rf"{ours}\.convolution", rf"{there}.{first}"), (rf"{ours}\.norm", rf"{there}.{first + 1}")]


def kernel(m):
    """A kernel of some beside each other: the first is the large one, of the last stage's side or of the others'."""
    last = m[1].startswith(("blocks4", "sub_blocks4"))
    sizes = ("k5_1", "k3_1", "k3_2", "k3_3") if last else ("k3_1", "k3_2")
    kind = "conv" if m[2] == "convolutions" else "bn"
    place = int(m[3])
    return m[1] + (f"dil_{kind}_{sizes[place - 1]}" if place else {"conv": "lk_origin", "bn": "origin_bn"}[kind])


LOOK, BASE = r"^(sub_blocks\d\.\d+)", r"^(blocks\d\.\d+)"
OVERLOCK = [
    (r"^stem\.(\d)\.convolution", lambda m: f"patch_embed1.{3 * int(m[1]) // 2}"),
    (r"^stem\.(\d)\.norm", lambda m: f"patch_embed1.{3 * int(m[1]) // 2 + 1}"),
    *(name for n in range(3) for name in conv_norm(rf"^downs\.{n}", f"patch_embed{n + 2}")),
    *conv_norm("^context_down", "patch_embedx.h_proj"),
    *conv_norm("^map_down", "patch_embedx.x_proj"),
    (r"^context\.", "high_level_proj."),
    *conv_norm("^wide", "head"),
    (r"^classes", "head.4"),
    (r"^supervised\.overview\.(\d)", lambda m: f"aux_head.{2 * int(m[1])}"),
    (r"^stages\.(\d)\.(\d)", lambda m: f"blocks{1 + int(m[1])}.{m[2]}"),
    (r"^closer\.(\d)\.(\d)", lambda m: f"sub_blocks{3 + int(m[1])}.{m[2]}"),
    (rf"{BASE}\.near\.convolution", r"\1.dwconv"),
    (rf"{BASE}\.norm", r"\1.proj.0"),
    (rf"{BASE}\.large", r"\1.proj.1"),
    (rf"{BASE}\.after", r"\1.proj.2"),
    (rf"{BASE}\.squeeze", r"\1.proj.3"),
    (rf"{BASE}\.perceptron\.(\d)", lambda m: f"{m[1]}.proj.{4 + int(m[2])}"),
    (rf"{BASE}\.scale", r"\1.ls"),
    (rf"{LOOK}\.scales\.(\d)", lambda m: f"{m[1]}.{'xh'[int(m[2])]}_scale"),
    (rf"{LOOK}\.near\.convolution", r"\1.dwconv1"),
    (rf"{LOOK}\.again\.convolution", r"\1.dwconv2"),
    (rf"{LOOK}\.norm", r"\1.norm1"),
    (rf"{LOOK}\.second_norm", r"\1.norm2"),
    *conv_norm(rf"{LOOK}\.query", r"\1.weight_query"),
    *conv_norm(rf"{LOOK}\.key", r"\1.weight_key", 1),
    *conv_norm(rf"{LOOK}\.mixed", r"\1.dyconv_proj"),
    *conv_norm(rf"{LOOK}\.gate", r"\1.gate"),
    (rf"{LOOK}\.mechanism\.slots", r"\1.weight_proj"),
    (rf"{LOOK}\.mechanism\.tables\.(\d)", lambda m: f"{m[1]}.rpb{1 + int(m[2])}"),
    (rf"{LOOK}\.large", r"\1.lepe.0"),
    (rf"{LOOK}\.after", r"\1.lepe.1"),
    (rf"{LOOK}\.squeeze", r"\1.se_layer"),
    (rf"{LOOK}\.last", r"\1.proj"),
    (rf"{LOOK}\.perceptron", r"\1.mlp"),
    (rf"{LOOK}\.outer\.(\d)", lambda m: f"{m[1]}.ls{1 + int(m[2])}"),
    (r"(proj\.3|se_layer)\.first", r"\1.proj.1"),
    (r"(proj\.3|se_layer)\.second", r"\1.proj.3"),
    (r"(proj\.6|mlp\.2)\.convolution", r"\1"),
    (r"^((?:sub_)?blocks\d\.\d+\.(?:proj\.1|lepe\.0)\.)(convolutions|norms)\.(\d)", kernel),
]


def overlock():
    return OverLoCK(Sizes((1, 1, 1, 1), (8, 8, 16, 24), (2, 1), (1, 2), (5, 5, 5, 7), 11), 5, supervised=True)


def test_overlock():
    """Its last map has 5 × 3 cells, fewer than the window, and is enlarged."""
    check(overlock(), VALUES["overlock"], OVERLOCK)


def test_kernels_beside_each_other_are_one():
    net = overlock().double().eval()
    with torch.no_grad():
        for place, (name, tensor) in enumerate(net.state_dict().items()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * wave(tensor.shape, place).abs() if "var" in name else 0.1 * wave(tensor.shape, place))
    image = wave((2, 3, 96, 65))
    folded = net.folded()
    assert not [name for name, _ in folded.named_modules() if name.endswith(("norms.1", "large.norms"))]
    torch.testing.assert_close(folded(image), net(image), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("form", ["shares", "levels"])
def test_quadtree(form):
    """To float32, in which their code runs; its weights are those of the levels, coarse to fine."""
    about = VALUES["quadtree" if form == "shares" else "quadtree_levels"]
    mechanism = regard.build("quadtree", topk=(3, 2), form=form).double()
    if form == "levels":
        mechanism.mix.data = state(about["state"])["weight"]
    maps = [wave(shape, 0.3 * place) for place, shape in enumerate(about["inputs"])]
    q, k, v = (x.flatten(2).unflatten(1, (2, 3)).mT for x in maps)
    out = mechanism(q, k, v, regard.Layout(grid=(8, 12))).transpose(1, 2)
    want = torch.tensor(about["out"], dtype=torch.float64)
    assert want.std() > 1e-2
    torch.testing.assert_close(out.flatten()[::3], want, atol=1e-6, rtol=0)


def bottom_up(name: str) -> str:
    """RASM's stages as its authors call them: down, the bottom, up."""
    stages = ("encoderlayer_0", "encoderlayer_1", "encoderlayer_2", "conv", *(f"decoderlayer_{n}" for n in range(3)))
    stage, rest = name.removeprefix("stages.").split(".", 1)
    return f"{stages[int(stage)]}.blocks.{rest}"


VSA_NAMES = [
    (r"^projection\.([qkv])\.", r"qkv.\1."),
    (r"^projection\.out\.", "proj."),
    (r"^(scale|offset)s\.", r"sampling_\1s.2."),
    (r"^table", "relative_position_bias_table"),
]


@pytest.mark.parametrize("size", ["vsa", "vsa_filled"])
def test_varied_windows(size):
    """On maps that windows divide, and on others, which zeros fill up."""
    flat = {"bias_table": lambda table: table.T}
    check(VariedWindows(12, 2, side=3), VALUES[size], VSA_NAMES, flat)


AGENT_NAMES = [
    (r"projection\.([qkv])\.", r"qkv.\1."),
    (r"projection\.out\.", "proj."),
    (r"near\.", "dwc."),
    (r"gathering\.table", "an_bias"),
    (r"gathering\.rows", "ah_bias"),
    (r"gathering\.columns", "aw_bias"),
    (r"asking\.table", "na_bias"),
    (r"asking\.rows", "ha_bias"),
    (r"asking\.columns", "wa_bias"),
]
AGENT_NET = [
    (r"^stem\.convolution", "patch_embed.proj"),
    (r"^stem\.norm", "patch_embed.norm"),
    (r"^head\.norm", "norm"),
    (r"^head\.classes", "head"),
    (r"^stages\.1\.down\.matrix", "layers.0.downsample.reduction"),
    (r"^stages\.1\.down", "layers.0.downsample"),
    (r"^stages\.(\d)\.blocks", r"layers.\1.blocks"),
    (r"\.([01])\.norm\.", lambda found: f".norm{int(found[1]) + 1}."),
    (r"\.0\.step\.", ".attn."),
    (r"\.1\.step\.first\.", ".mlp.fc1."),
    (r"\.1\.step\.second\.", ".mlp.fc2."),
    *AGENT_NAMES,
]
ASKED = {"(ha|wa)_bias": lambda table: table.movedim(-1, 2)}
"""Theirs have the agents last."""


def test_agents_of_a_map():
    step = Agents(12, 2, count=9, grid=10)
    check(step, VALUES["agent_layer"], AGENT_NAMES, ASKED, call=lambda x: flat(step(image(x, (10, 10)))))


def test_agent_swin():
    design = "agents(count=4, grid=16) + mlp", "(agents(count=9, grid=8) + mlp)*2"
    check(Stages(Design((8, 16), design, (2, 4), down="merge"), 5), VALUES["agent_net"], AGENT_NET, ASKED)


def test_agents_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="square"):
        Agents(12, 2, count=8)


RASM_NAMES = [
    (r"^first\.", "input_proj.proj.0."),
    (r"^last\.", "output_proj.proj.0."),
    (r"^down\.(\d)\.", r"dowsample_\1.conv.0."),
    (r"^up\.(\d)\.", r"upsample_\1.deconv.0."),
    (r"^stages\.[^a-z]+\d.*", lambda found: bottom_up(found[0])),
    (r"blocks\.(\d)\.(norm\.|step\.)", lambda found: f"blocks.{int(found[1]) // 2}.{int(found[1]) % 2}.{found[2]}"),
    (r"\.([01])\.norm\.", lambda found: f".norm{int(found[1]) + 1}."),
    (r"\.0\.step\.attend\.attention\.mechanism\.table", ".attn.rpb"),
    (r"\.0\.step\.attend\.attention\.projection\.([qkv])\.", r".attn.qkv.\1."),
    (r"\.0\.step\.attend\.attention\.projection\.out\.", ".attn.proj."),
    (r"\.0\.step\.convolutions\.first\.", ".CAB.body.0."),
    (r"\.0\.step\.convolutions\.between\.", ".CAB.body.1."),
    (r"\.0\.step\.convolutions\.second\.", ".CAB.body.2."),
    (r"\.0\.step\.convolutions\.gate\.mix\.first\.", ".CAB.CA.conv_du.0."),
    (r"\.0\.step\.convolutions\.gate\.mix\.second\.", ".CAB.CA.conv_du.2."),
    (r"\.1\.step\.first\.", ".mlp.linear1.0."),
    (r"\.1\.step\.near\.", ".mlp.dwconv.0."),
    (r"\.1\.step\.second\.", ".mlp.linear2.0."),
]


def test_rasm():
    net = RASM(8, 2, (2, 4, 2), "nat(axes=2, window=3, dilation=2)")
    flipped = {"rpb": lambda table: table.flip(1, 2)}  # ours is of query less key
    check(net, VALUES["rasm"], RASM_NAMES, flipped, call=lambda *given: net(*given)[:, :, ::3, ::2])


def test_rasm_has_its_parameters_and_refuses_a_mask_of_another_size():
    """5.2 million, by their code with tables of biases."""
    assert RASM().parameter_count == 5_180_489
    with pytest.raises(ValueError, match="shadow"):
        RASM(8, 1, (2, 4, 2))(torch.zeros(1, 3, 9, 8), torch.zeros(1, 1, 8, 8))


def test_another_size_is_told():
    with pytest.raises(ValueError, match="divisor"):
        Stages("stages(widths=(8,), layers='partial_channels(divisor=9)')", 5)
