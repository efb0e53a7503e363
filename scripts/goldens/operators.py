"""Writes test/goldens/operators.{safetensors,json}: every operator's output and gradients, from PyTorch in double precision.

A case holds float32 inputs; PyTorch computes the output and, for a random cotangent of the output, the gradient of every
differentiable input in float64, stored as float32. Run from the repository's root:

    python scripts/goldens/operators.py
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
random = torch.Generator().manual_seed(20240707)

tensors: dict[str, torch.Tensor] = {}
cases: list[dict] = []


def normal(*shape):
    return torch.randn(shape, generator=random)


def positive(*shape):
    return torch.rand(shape, generator=random) * 2 + 0.25


def away_from_zero(*shape):
    """Magnitudes in [0.4, 2.4] of either sign: for reciprocals and for kinks at zero."""
    signs = torch.randint(0, 2, shape, generator=random) * 2 - 1
    return (torch.rand(shape, generator=random) * 2 + 0.4) * signs


def distinct(*shape):
    """A permutation of evenly spaced values: no ties, for maxima and comparisons."""
    count = torch.Size(shape).numel()
    return ((torch.randperm(count, generator=random).float() - count / 2) * 0.11).reshape(shape)


def integers(low, high, *shape):
    return torch.randint(low, high, shape, generator=random, dtype=torch.int64)


def booleans(*shape):
    return torch.randint(0, 2, shape, generator=random).bool()


def operand_pair(values, a):
    """The two operands of a binary operator, of which one may be a plain number."""
    if "left" in a:
        return torch.tensor(a["left"], dtype=torch.float64), values[0]
    if "right" in a:
        return values[0], torch.tensor(a["right"], dtype=torch.float64)
    return values[0], values[1]


def binary(f):
    return lambda v, a: f(*operand_pair(v, a))


def unary(f):
    return lambda v, a: f(v[0])


def padded(x, padding, value=0.0):
    """padding as (top, left, bottom, right), or one number for all sides."""
    if isinstance(padding, int):
        padding = [padding] * 4
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value)


def conv2d(v, a):
    return F.conv2d(
        padded(v[0], a.get("padding", 0)),
        v[1],
        v[2] if len(v) > 2 else None,
        stride=a.get("stride", 1),
        dilation=a.get("dilation", 1),
        groups=a.get("groups", 1),
    )


def conv_transpose2d(v, a):
    full = F.conv_transpose2d(
        v[0],
        v[1],
        v[2] if len(v) > 2 else None,
        stride=a.get("stride", 1),
        dilation=a.get("dilation", 1),
        groups=a.get("groups", 1),
        output_padding=a.get("outputPadding", 0),
    )
    padding = a.get("padding", 0)
    top, left, bottom, right = [padding] * 4 if isinstance(padding, int) else padding
    return full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]


def average_pool2d(v, a):
    """The mean over the kernel's cells, padding counted as zeros."""
    return F.avg_pool2d(padded(v[0], a.get("padding", 0)), a["kernel"], a.get("stride", a["kernel"]))


def max_pool2d(v, a):
    return F.max_pool2d(
        padded(v[0], a.get("padding", 0), value=float("-inf")), a["kernel"], a.get("stride", a["kernel"])
    )


def slice_axis(v, a):
    index = torch.arange(v[0].shape[a["axis"]])
    step = a.get("step", 1)
    picked = index.numpy()[slice(a["start"], a["end"], step)].copy()
    return torch.index_select(v[0], a["axis"], torch.from_numpy(picked))


def pad(v, a):
    pairs = [n for before_after in reversed(a["padding"]) for n in before_after]
    return F.pad(v[0], pairs, value=a.get("value", 0.0))


def gather(v, a):
    x, indices = v
    picked = torch.stack([x.select(a["axis"], int(i)) for i in indices.flatten()], a["axis"])
    return picked.reshape(x.shape[: a["axis"]] + indices.shape + x.shape[a["axis"] + 1 :])


def choice(v, a):
    return torch.where(v[0], *operand_pair(v[1:], a))


def reduction(f):
    def apply(v, a):
        axes = tuple(a["axes"]) if "axes" in a else tuple(range(v[0].dim()))
        return f(v[0], axes, a.get("keepDims", False))

    return apply


def gemm(v, a):
    left = v[0].T if a.get("transA") else v[0]
    right = v[1].T if a.get("transB") else v[1]
    out = a.get("alpha", 1.0) * (left @ right)
    return out + a.get("beta", 1.0) * v[2] if len(v) > 2 else out


def attention(v, a):
    scale = a.get("scale", v[0].shape[-1] ** -0.5)
    scores = v[0] @ v[1].transpose(-1, -2) * scale
    if len(v) > 3:
        scores = scores + v[3]
    return torch.softmax(scores, -1) @ v[2]


def fused_attention(v, a):
    q, k, v = (x.unflatten(2, (a["heads"], -1)).transpose(1, 2) for x in v)
    return attention([q, k, v], {}).transpose(1, 2).flatten(2)


def layer_norm(v, a):
    weight = v[1] if len(v) > 1 else None
    bias = v[2] if len(v) > 2 else None
    return F.layer_norm(v[0], v[0].shape[-1:], weight, bias, a["eps"])


def doubled_conv2d(v, a):
    enlarged = F.interpolate(v[0], scale_factor=2, mode="nearest")
    return F.conv2d(enlarged, v[1], v[2] if len(v) > 2 else None, padding=1)


def depth_to_space(v, a):
    """PyTorch's takes the channels of a pixel's places together; ours, like ONNX's first mode, whole images of channels by place."""
    b = a["block"]
    n, depth, h, w = v[0].shape
    return F.pixel_shuffle(v[0].reshape(n, b * b, -1, h, w).transpose(1, 2).reshape(n, depth, h, w), b)


def space_to_depth(v, a):
    b = a["block"]
    n, c = v[0].shape[:2]
    by_channel = F.pixel_unshuffle(v[0], b)
    return by_channel.reshape(n, c, b * b, *by_channel.shape[2:]).transpose(1, 2).reshape(by_channel.shape)


def geglu(v, a):
    hidden, gate = v[0].chunk(2, -1)
    return hidden * F.gelu(gate)


TORCH_DTYPE = {
    "float32": torch.float64,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}

# What each operator of src/onnx computes, as PyTorch says it.
OPERATORS = {
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "div": binary(torch.div),
    "pow": binary(torch.pow),
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "neg": unary(torch.neg),
    "exp": unary(torch.exp),
    "log": unary(torch.log),
    "sqrt": unary(torch.sqrt),
    "abs": unary(torch.abs),
    "sign": unary(torch.sign),
    "sigmoid": unary(torch.sigmoid),
    "tanh": unary(torch.tanh),
    "erf": unary(torch.erf),
    "sin": unary(torch.sin),
    "cos": unary(torch.cos),
    "relu": unary(torch.relu),
    "reciprocal": unary(torch.reciprocal),
    "square": unary(torch.square),
    "gelu": unary(F.gelu),
    "silu": unary(F.silu),
    "quickGelu": unary(lambda x: x * torch.sigmoid(1.702 * x)),
    "leakyRelu": lambda v, a: F.leaky_relu(v[0], a["slope"]),
    "clip": lambda v, a: v[0].clamp(a["low"], a["high"]),
    "where": choice,
    "equal": binary(lambda x, y: x == y),
    "less": binary(lambda x, y: x < y),
    "greater": binary(lambda x, y: x > y),
    "and": binary(torch.logical_and),
    "or": binary(torch.logical_or),
    "not": unary(torch.logical_not),
    "cast": lambda v, a: v[0].to(TORCH_DTYPE[a["dtype"]]).to(torch.float64),
    "matmul": lambda v, a: v[0] @ v[1],
    "gemm": gemm,
    "conv2d": conv2d,
    "convTranspose2d": conv_transpose2d,
    "averagePool2d": average_pool2d,
    "maxPool2d": max_pool2d,
    "resizeNearest": lambda v, a: F.interpolate(v[0], scale_factor=a["scale"], mode="nearest"),
    "reshape": lambda v, a: v[0].reshape(a["shape"]),
    "transpose": lambda v, a: v[0].permute(a["perm"]),
    "concat": lambda v, a: torch.cat(v, a["axis"]),
    "split": lambda v, a: torch.split(v[0], a["sizes"], a["axis"])[a["part"]],
    "slice": slice_axis,
    "pad": pad,
    "expand": lambda v, a: v[0].expand(a["shape"]),
    "squeeze": lambda v, a: v[0].squeeze(tuple(a["axes"])),
    "unsqueeze": lambda v, a: v[0][tuple(None if n in a["axes"] else slice(None) for n in range(v[0].dim() + len(a["axes"])))],
    "flip": lambda v, a: v[0].flip(a["axes"]),
    "gather": gather,
    "sum": reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "mean": reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "max": reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "min": reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "argMax": lambda v, a: v[0].argmax(a["axis"]),
    "softmax": lambda v, a: torch.softmax(v[0], -1),
    "layerNorm": layer_norm,
    "groupNorm": lambda v, a: F.group_norm(v[0], a["groups"], v[1], v[2], a["eps"]),
    "attention": attention,
    "fusedAttention": fused_attention,
    "winogradConv2d": lambda v, a: F.conv2d(v[0], v[1], v[2] if len(v) > 2 else None, padding=1),
    "doubledConv2d": doubled_conv2d,
    "doubledConv2dByPhase": doubled_conv2d,
    "depthToSpace": depth_to_space,
    "spaceToDepth": space_to_depth,
    "geglu": geglu,
}


def case(op, name, inputs, wrt=None, **attributes):
    """Adds a case. `wrt` names the inputs to differentiate by position; by default all floating-point ones."""
    title = f"{op} {name}"
    assert all(title != c["name"] for c in cases), title
    key = f"{len(cases):03d}"
    values = [x.double() if x.is_floating_point() else x for x in inputs]
    if wrt is None:
        wrt = [i for i, x in enumerate(values) if x.is_floating_point()]
    for i in wrt:
        values[i].requires_grad_(True)
    output = OPERATORS[op](values, attributes)
    record = {
        "name": title,
        "op": op,
        "attributes": attributes,
        "inputs": [f"{key}.x{i}" for i in range(len(inputs))],
        "output": f"{key}.y",
        "cotangent": None,
        "gradients": [None] * len(inputs),
    }
    for i, x in enumerate(inputs):
        tensors[record["inputs"][i]] = x.detach().contiguous().clone()
    # An output that carries no gradient (a comparison, a cast to integers) is compared alone.
    if output.requires_grad:
        cotangent = normal(*output.shape)
        record["cotangent"] = f"{key}.v"
        tensors[record["cotangent"]] = cotangent
        found = torch.autograd.grad(output, [values[i] for i in wrt], cotangent.double())
        for i, gradient in zip(wrt, found):
            record["gradients"][i] = f"{key}.g{i}"
            tensors[record["gradients"][i]] = gradient.float().contiguous().clone()
    tensors[record["output"]] = output.detach().float().contiguous().clone()
    cases.append(record)


# Elementwise, two operands. Every broadcasting pattern for add and mul, the awkward ones for the rest.
BROADCASTS = {
    "same shape": ((3, 5), (3, 5)),
    "right row": ((2, 3, 5), (5,)),
    "left row": ((5,), (2, 3, 5)),
    "right column": ((2, 3, 5), (3, 1)),
    "left column": ((3, 1), (2, 3, 5)),
    "outer": ((4, 1), (1, 6)),
    "both, ranks differ": ((2, 1, 4), (3, 1)),
    "right scalar": ((3, 4), ()),
    "left one element": ((1, 1), (2, 3, 4)),
    "channels": ((2, 3, 4, 5), (1, 3, 1, 1)),
}
for name, (left, right) in BROADCASTS.items():
    case("add", name, [normal(*left), normal(*right)])
    case("mul", name, [normal(*left), normal(*right)])
for name in ("same shape", "left column", "both, ranks differ", "right scalar"):
    left, right = BROADCASTS[name]
    case("sub", name, [normal(*left), normal(*right)])
    case("div", name, [normal(*left), away_from_zero(*right)])
    case("pow", name, [positive(*left), normal(*right)])
    case("maximum", name, [normal(*left), normal(*right)])
    case("minimum", name, [normal(*left), normal(*right)])
for op in ("add", "sub", "mul", "div", "maximum", "minimum"):
    case(op, "number on the right", [away_from_zero(3, 4)], right=0.75)
    case(op, "number on the left", [away_from_zero(3, 4)], left=-1.25)
case("pow", "cube of either sign", [away_from_zero(3, 4)], right=3)
case("pow", "inverse root", [positive(3, 4)], right=-0.5)
case("pow", "number to a value", [normal(3, 4)], left=1.7)

# Elementwise, one operand.
for op in ("neg", "exp", "sigmoid", "tanh", "erf", "sin", "cos", "square", "gelu", "silu", "quickGelu"):
    case(op, "matrix", [normal(3, 7) * 1.5])
    case(op, "rank 4", [normal(2, 3, 1, 4) * 3])
case("exp", "scalar", [normal()])
for op in ("log", "sqrt"):
    case(op, "positive", [positive(3, 7)])
for op in ("abs", "relu", "reciprocal"):
    case(op, "either sign", [away_from_zero(3, 7)])
case("leakyRelu", "slope 0.01", [away_from_zero(3, 7)], slope=0.01)
case("leakyRelu", "slope 0.2", [away_from_zero(2, 3, 4)], slope=0.2)
case("clip", "both bounds", [distinct(5, 7)], low=-1.0, high=0.7)
# Kinks: where PyTorch has a convention, ours is the same.
KINK = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 2.0, -2.0]])
for op in ("abs", "relu"):
    case(op, "at zero", [KINK.clone()])
case("sign", "either sign and zero", [KINK.clone()], wrt=[])
case("leakyRelu", "at zero", [KINK.clone()], slope=0.1)
case("clip", "on the bounds", [KINK.clone()], low=-1.0, high=1.0)
case("maximum", "ties", [KINK.clone(), KINK.clone().relu()])
case("minimum", "ties", [KINK.clone(), KINK.clone().relu()])

# Choice, comparison, type.
case("where", "same shape", [booleans(3, 5), normal(3, 5), normal(3, 5)])
case("where", "mask broadcast", [booleans(3, 1), normal(2, 3, 5), normal(5)])
case("where", "values broadcast", [booleans(2, 3, 5), normal(1, 3, 1), normal()])
case("where", "number when true", [booleans(3, 5), normal(3, 5)], left=-7.5)
case("where", "number when false", [booleans(3, 5), normal(3, 5)], right=2.5)
for op in ("equal", "less", "greater"):
    case(op, "integers", [integers(0, 3, 4, 5), integers(0, 3, 4, 5)])
    case(op, "floats, broadcast", [distinct(3, 5).round(decimals=0), distinct(5).round(decimals=0)], wrt=[])
for op in ("and", "or"):
    case(op, "broadcast", [booleans(3, 5), booleans(5)])
case("not", "mask", [booleans(3, 5)])
case("cast", "to half and back", [normal(4, 5)], dtype="float16")
case("cast", "to the same type", [normal(4, 5)], dtype="float32")
case("cast", "to integers, toward zero", [normal(4, 5) * 4], dtype="int64", wrt=[])
case("cast", "integers to floats", [integers(-5, 6, 4, 5)], dtype="float32")
case("cast", "booleans to floats", [booleans(4, 5)], dtype="float32")

# Linear algebra.
case("matmul", "matrices", [normal(3, 4), normal(4, 5)])
case("matmul", "row and column", [normal(1, 7), normal(7, 1)])
case("matmul", "batched", [normal(2, 3, 4, 5), normal(2, 3, 5, 2)])
case("matmul", "left without batch", [normal(3, 4), normal(2, 4, 5)])
case("matmul", "right without batch", [normal(2, 3, 4), normal(4, 5)])
case("matmul", "both batches broadcast", [normal(2, 1, 3, 4), normal(5, 4, 2)])
case("matmul", "outer batches broadcast", [normal(2, 1, 3, 4), normal(1, 3, 4, 2)])
for trans_a in (False, True):
    for trans_b in (False, True):
        a_shape = (4, 3) if trans_a else (3, 4)
        b_shape = (5, 4) if trans_b else (4, 5)
        flags = f"{'At' if trans_a else 'A'} {'Bt' if trans_b else 'B'}"
        attributes = {"transA": trans_a, "transB": trans_b}
        case("gemm", flags, [normal(*a_shape), normal(*b_shape)], **attributes)
        case("gemm", f"{flags} + row", [normal(*a_shape), normal(*b_shape), normal(5)], **attributes)
        case(
            "gemm",
            f"alpha {flags} + beta matrix",
            [normal(*a_shape), normal(*b_shape), normal(3, 5)],
            alpha=0.7,
            beta=-1.3,
            **attributes,
        )
case("gemm", "column c", [normal(3, 4), normal(4, 5), normal(3, 1)], beta=0.5)
case("gemm", "one-element c", [normal(3, 4), normal(4, 5), normal(1)], alpha=2.0)
case("gemm", "alpha alone", [normal(3, 4), normal(5, 4)], transB=True, alpha=-0.25)

# Convolution: [B, C, H, W] by [O, C / groups, kh, kw].
CONVOLUTIONS = [
    ("3x3 padded", (2, 3, 7, 6), (4, 3, 3, 3), True, {"padding": 1}),
    ("3x3 padded, no bias", (1, 3, 5, 8), (2, 3, 3, 3), False, {"padding": 1}),
    ("3x3 unpadded", (2, 2, 5, 7), (3, 2, 3, 3), True, {}),
    ("1x1", (2, 4, 5, 3), (3, 4, 1, 1), True, {}),
    ("1x1 stride 2", (1, 3, 6, 5), (2, 3, 1, 1), True, {"stride": 2}),
    ("1x1 stride 3 padded", (1, 2, 7, 8), (2, 2, 1, 1), False, {"stride": 3, "padding": 1}),
    ("3x3 stride 2, even input", (2, 3, 8, 6), (4, 3, 3, 3), True, {"stride": 2, "padding": 1}),
    ("3x3 stride 2, odd input", (1, 2, 7, 9), (3, 2, 3, 3), True, {"stride": 2, "padding": 1}),
    ("3x3 stride 2, asymmetric padding", (1, 2, 8, 6), (3, 2, 3, 3), True, {"stride": 2, "padding": [0, 0, 1, 1]}),
    ("3x3 stride 3, rows left over", (1, 2, 10, 8), (2, 2, 3, 3), False, {"stride": 3}),
    ("3x3 all paddings differ", (1, 2, 5, 4), (2, 2, 3, 3), True, {"padding": [0, 1, 2, 3]}),
    ("4x4 patches", (2, 3, 8, 12), (5, 3, 4, 4), False, {"stride": 4}),
    ("4x4 stride 2", (1, 2, 9, 8), (3, 2, 4, 4), True, {"stride": 2, "padding": 1}),
    ("5x5 padded", (1, 2, 6, 7), (2, 2, 5, 5), True, {"padding": 2}),
    ("5x5 stride 3", (1, 2, 11, 9), (2, 2, 5, 5), True, {"stride": 3, "padding": [2, 1, 0, 2]}),
    ("3x5 kernel", (1, 2, 6, 7), (3, 2, 3, 5), True, {"padding": [1, 2, 1, 2]}),
    ("1x3 kernel", (1, 2, 4, 7), (3, 2, 1, 3), True, {}),
    ("dilation 2", (1, 2, 8, 9), (3, 2, 3, 3), True, {"dilation": 2, "padding": 2}),
    ("dilation 2 stride 2", (1, 2, 9, 10), (2, 2, 3, 3), False, {"dilation": 2, "stride": 2, "padding": [1, 2, 0, 1]}),
    ("2 groups", (2, 4, 5, 6), (6, 2, 3, 3), True, {"groups": 2, "padding": 1}),
    ("2 groups stride 2", (1, 4, 7, 6), (4, 2, 3, 3), False, {"groups": 2, "stride": 2, "padding": 1}),
    ("depthwise", (2, 3, 6, 5), (3, 1, 3, 3), True, {"groups": 3, "padding": 1}),
    ("depthwise, two filters a channel", (1, 3, 6, 7), (6, 1, 3, 3), False, {"groups": 3, "stride": 2, "padding": 1}),
    ("kernel as large as the input", (2, 3, 4, 5), (2, 3, 4, 5), True, {}),
    ("padding wider than the kernel's reach", (1, 1, 3, 3), (1, 1, 2, 2), True, {"padding": 3}),
    ("one pixel", (1, 2, 1, 1), (3, 2, 3, 3), True, {"padding": 1}),
]
for name, x, w, bias, attributes in CONVOLUTIONS:
    inputs = [normal(*x), normal(*w)] + ([normal(w[0])] if bias else [])
    case("conv2d", name, inputs, **attributes)
# Transposed convolution: [B, C, H, W] by [C, O / groups, kh, kw].
TRANSPOSED = [
    ("3x3 padded", (2, 3, 4, 5), (3, 2, 3, 3), True, {"padding": 1}),
    ("2x2 stride 2", (1, 3, 4, 3), (3, 2, 2, 2), True, {"stride": 2}),
    ("4x4 stride 2 padded", (1, 2, 4, 5), (2, 3, 4, 4), False, {"stride": 2, "padding": 1}),
    ("3x3 stride 3", (1, 2, 3, 4), (2, 2, 3, 3), True, {"stride": 3, "padding": [1, 0, 1, 2]}),
    ("2 groups", (1, 4, 4, 3), (4, 1, 3, 3), True, {"groups": 2, "stride": 2, "padding": 1}),
    ("dilation 2", (1, 2, 4, 5), (2, 2, 3, 3), False, {"dilation": 2, "padding": 1}),
    ("output padding", (1, 2, 4, 3), (2, 3, 3, 3), True, {"stride": 2, "padding": 1, "outputPadding": 1}),
]
for name, x, w, bias, attributes in TRANSPOSED:
    channels = w[1] * attributes.get("groups", 1)
    case("convTranspose2d", name, [normal(*x), normal(*w)] + ([normal(channels)] if bias else []), **attributes)

# Pooling and resizing.
case("averagePool2d", "2x2", [normal(2, 3, 6, 4)], kernel=2)
case("averagePool2d", "3x3 stride 2, rows left over", [normal(1, 2, 8, 7)], kernel=3, stride=2)
case("averagePool2d", "3x3 stride 1, overlapping", [normal(1, 2, 5, 6)], kernel=3, stride=1)
case("averagePool2d", "2x2 stride 3, gaps", [normal(1, 2, 8, 8)], kernel=2, stride=3)
case("averagePool2d", "3x3 stride 2 padded", [normal(1, 2, 7, 6)], kernel=3, stride=2, padding=1)
case("maxPool2d", "2x2", [distinct(2, 3, 6, 4)], kernel=2)
case("maxPool2d", "3x3 stride 2, rows left over", [distinct(1, 2, 8, 7)], kernel=3, stride=2)
case("maxPool2d", "3x3 stride 1, overlapping", [distinct(1, 2, 5, 6)], kernel=3, stride=1)
case("maxPool2d", "3x3 stride 2 padded", [distinct(1, 2, 7, 6)], kernel=3, stride=2, padding=1)
case("resizeNearest", "by 2", [normal(2, 3, 4, 5)], scale=2)
case("resizeNearest", "by 3", [normal(1, 2, 3, 4)], scale=3)

# Movement.
case("reshape", "with a rest", [normal(2, 3, 4)], shape=[4, -1])
case("reshape", "to a scalar", [normal(1, 1)], shape=[])
case("reshape", "scalar to a matrix", [normal()], shape=[1, 1])
case("transpose", "matrix", [normal(3, 5)], perm=[1, 0])
case("transpose", "rotation of axes", [normal(2, 3, 4)], perm=[2, 0, 1])
case("transpose", "heads", [normal(2, 3, 4, 5)], perm=[0, 2, 1, 3])
case("transpose", "rank 5", [normal(2, 3, 1, 2, 4)], perm=[4, 2, 0, 3, 1])
case("concat", "first axis", [normal(2, 3), normal(1, 3)], axis=0)
case("concat", "three, middle axis", [normal(2, 1, 4), normal(2, 3, 4), normal(2, 2, 4)], axis=1)
case("concat", "last axis, negative", [normal(2, 3), normal(2, 4)], axis=-1)
case("split", "first part", [normal(2, 7)], sizes=[3, 4], axis=1, part=0)
case("split", "middle part", [normal(7, 2)], sizes=[1, 4, 2], axis=0, part=1)
case("split", "last axis, negative", [normal(2, 3, 6)], sizes=[2, 4], axis=-1, part=1)
case("slice", "inside", [normal(3, 7)], axis=1, start=2, end=5)
case("slice", "from the end", [normal(6, 4)], axis=0, start=-3, end=6)
case("slice", "end beyond the axis", [normal(6, 4)], axis=0, start=4, end=100)
case("slice", "step 2", [normal(2, 7)], axis=1, start=0, end=7, step=2)
case("slice", "step 3 from 1", [normal(8, 3)], axis=0, start=1, end=8, step=3)
case("slice", "backwards", [normal(3, 7)], axis=1, start=5, end=1, step=-1)
case("slice", "backwards by 2", [normal(3, 7)], axis=1, start=6, end=0, step=-2)
case("pad", "one side", [normal(2, 3)], padding=[[0, 1], [2, 0]])
case("pad", "with a value", [normal(2, 3, 2)], padding=[[1, 0], [0, 2], [1, 1]], value=1.5)
case("pad", "image", [normal(1, 2, 3, 3)], padding=[[0, 0], [0, 0], [0, 1], [0, 1]])
case("expand", "new axes", [normal(3, 1)], shape=[2, 3, 4])
case("expand", "scalar", [normal()], shape=[2, 3])
case("expand", "no change", [normal(2, 3)], shape=[2, 3])
case("squeeze", "two axes", [normal(1, 3, 1, 4)], axes=[0, 2])
case("unsqueeze", "two axes", [normal(3, 4)], axes=[0, 2])
case("flip", "image", [normal(2, 2, 3, 4)], axes=[2, 3])
case("flip", "first axis", [normal(3, 2)], axes=[0])
case("gather", "embedding, repeated", [normal(6, 4), torch.tensor([[1, 5, 1], [0, 1, 5]])], axis=0)
case("gather", "one row", [normal(6, 4), torch.tensor([3])], axis=0)
case("gather", "scalar index", [normal(6, 4), torch.tensor(2)], axis=0)
case("gather", "middle axis, repeated", [normal(2, 5, 3), torch.tensor([4, 0, 4, 2])], axis=1)
case("gather", "last axis", [normal(3, 6), torch.tensor([[5, 2], [2, 2]])], axis=1)

# Reductions.
REDUCTIONS = {
    "all": ((3, 4), {}),
    "last": ((2, 3, 4), {"axes": [2]}),
    "first, kept": ((2, 3, 4), {"axes": [0], "keepDims": True}),
    "outer two": ((2, 3, 4), {"axes": [0, 2]}),
    "spatial, kept": ((2, 3, 4, 5), {"axes": [2, 3], "keepDims": True}),
    "negative": ((2, 3, 4), {"axes": [-1]}),
}
for name, (shape, attributes) in REDUCTIONS.items():
    for op in ("sum", "mean"):
        case(op, name, [normal(*shape)], **attributes)
    for op in ("max", "min"):
        case(op, name, [distinct(*shape)], **attributes)
case("max", "ties", [torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])], axes=[1])
case("min", "ties", [torch.tensor([[1.0, 3.0, 1.0], [2.0, 2.0, 2.0]])], axes=[1])
case("argMax", "last axis", [distinct(4, 5)], axis=1, wrt=[])
case("argMax", "first axis", [distinct(4, 5)], axis=0, wrt=[])

# Normalisation and attention.
case("softmax", "matrix", [normal(3, 5) * 2])
case("softmax", "heads", [normal(2, 3, 4, 6) * 3])
case("softmax", "large logits", [normal(3, 5) * 40 + 100])
case("layerNorm", "affine", [normal(2, 3, 8) * 2 + 1, normal(8), normal(8)], eps=1e-5)
case("layerNorm", "scale alone", [normal(4, 7), normal(7)], eps=1e-5)
case("layerNorm", "plain", [normal(4, 7)], eps=1e-5)
case("layerNorm", "large epsilon", [normal(3, 6), normal(6), normal(6)], eps=0.1)
case("groupNorm", "2 groups", [normal(2, 6, 3, 5) * 2 + 1, normal(6), normal(6)], groups=2, eps=1e-5)
case("groupNorm", "one group", [normal(1, 4, 3, 3), normal(4), normal(4)], groups=1, eps=1e-6)
case("groupNorm", "a group a channel", [normal(2, 3, 4, 5), normal(3), normal(3)], groups=3, eps=1e-5)
case("groupNorm", "sequence", [normal(2, 4, 5), normal(4), normal(4)], groups=2, eps=1e-5)
case("attention", "self", [normal(2, 5, 4), normal(2, 5, 4), normal(2, 5, 4)])
case("attention", "cross, heads", [normal(2, 3, 6, 4), normal(2, 3, 5, 4), normal(2, 3, 5, 4)])
case("attention", "scale", [normal(1, 4, 3), normal(1, 6, 3), normal(1, 6, 3)], scale=0.3)
case("attention", "value width differs", [normal(1, 4, 3), normal(1, 6, 3), normal(1, 6, 5)])
causal = torch.full((5, 5), -10000.0).triu(1)
case("attention", "causal mask", [normal(2, 2, 5, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4), causal], wrt=[0, 1, 2])
case("attention", "learned bias", [normal(2, 2, 4, 3), normal(2, 2, 4, 3), normal(2, 2, 4, 3), normal(1, 2, 4, 4)])
case("geglu", "last axis halves", [normal(2, 3, 8)])
case("fusedAttention", "self", [normal(2, 6, 8), normal(2, 6, 8), normal(2, 6, 8)], heads=2)
case("fusedAttention", "cross, value width differs", [normal(2, 6, 12), normal(2, 5, 12), normal(2, 5, 6)], heads=3)
case("fusedAttention", "sharp", [normal(1, 4, 8) * 3, normal(1, 7, 8) * 3, normal(1, 7, 8)], heads=2)
case("winogradConv2d", "bias, two images", [normal(2, 3, 8, 12), normal(5, 3, 3, 3), normal(5)])
case("winogradConv2d", "many channels", [normal(1, 96, 4, 8) + 1, normal(2, 96, 3, 3) * 0.03])
case("doubledConv2d", "bias, two images", [normal(2, 3, 3, 4), normal(5, 3, 3, 3), normal(5)])
case("doubledConv2d", "many channels", [normal(1, 96, 3, 3) + 1, normal(2, 96, 3, 3) * 0.03])
case("doubledConv2dByPhase", "bias, two images", [normal(2, 3, 3, 4), normal(5, 3, 3, 3), normal(5)])
case("doubledConv2dByPhase", "many channels", [normal(1, 96, 3, 3) + 1, normal(2, 96, 3, 3) * 0.03])
case("depthToSpace", "blocks of 2", [normal(2, 12, 3, 2)], block=2)
case("spaceToDepth", "blocks of 3", [normal(2, 2, 3, 6)], block=3)

GOLDENS.mkdir(parents=True, exist_ok=True)
save_file(dict(sorted(tensors.items())), GOLDENS / "operators.safetensors")
lines = ",\n".join(json.dumps(c) for c in cases)
(GOLDENS / "operators.json").write_text(f"[\n{lines}\n]\n")
print(f"{len(cases)} cases, {len(tensors)} tensors")
