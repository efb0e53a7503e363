"""Writes test/goldens/onnx/*.onnx, small models that torch and onnx.helper make, and onnx.safetensors: pictures, what torch computes of
them and its gradients. Pictures are in [-1, 1]; the models see them in [0, 1], clipped. Run from the repository's root:

    python scripts/goldens/onnx_models.py
"""

import shutil
import warnings
from pathlib import Path

import numpy
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTModel

warnings.filterwarnings("ignore")
GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens" / "onnx"
shutil.rmtree(GOLDENS, ignore_errors=True)
GOLDENS.mkdir(parents=True)
torch.manual_seed(3)
tensors = {}


class Convolutional(nn.Module):
    """What small classifiers are made of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.last = nn.Linear(8, 1)
        for p in (self.norm.running_mean, self.norm.weight, self.norm.bias):
            p.data.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu6(self.norm(self.first(x)))
        x = x + F.hardswish(self.depthwise(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1) + F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return self.last(F.leaky_relu(x, 0.1).mean((2, 3)))


class Mixed(nn.Module):
    """Norms, activations, resizing and padding."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 2, stride=2)
        self.group = nn.GroupNorm(4, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.prelu = nn.PReLU(6)
        self.linear = nn.Linear(6, 5)
        self.layer = nn.LayerNorm(5)

    def forward(self, x):
        x = F.silu(self.group(self.down(x)))
        x = F.elu(self.instance(F.pad(x, (1, 2, 2, 1), mode="reflect")))
        x = self.prelu(self.up(F.pad(x, (1, 0, 0, 1), mode="replicate")))
        x = F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=False)
        x = F.interpolate(x, scale_factor=2, mode="nearest") + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        x = F.softplus(self.linear(x.permute(0, 2, 3, 1)))
        x = self.layer(x).flatten(1, 2)
        a, b = x.softmax(1), x[:, ::3].log_softmax(-1)
        return torch.cat([a.amax(1), b.mean(1), x.std(1), torch.logsumexp(x, 1)], 1)


class Attention(nn.Module):
    """Shapes worked out in the graph, as exporters leave them."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x):
        x = self.patch(x)
        x = x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.layer.self_attn.in_proj_weight.chunk(3)
        heads = lambda w: (x @ w.T).view(x.shape[0], -1, 3, 4).transpose(1, 2)
        weights = (heads(q) @ heads(k).transpose(-2, -1) / 2).softmax(-1)
        x = x + (weights @ heads(v)).transpose(1, 2).reshape(x.shape)
        x = x + self.layer.linear2(F.gelu(self.layer.linear1(self.layer.norm2(x)), approximate="tanh"))
        x = torch.where(x > 0, x, torch.einsum("btc->btc", x) * 0.3).clamp(-2, 3)
        return F.normalize(x[:, 0], dim=-1)


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        config = ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=4)
        self.model = ViTModel(config, add_pooling_layer=False)
        for p in self.model.parameters():
            p.data += 0.2 * torch.randn_like(p)

    def forward(self, x):
        return self.model(x).last_hidden_state[:, 0]


def pictures(name, function, count, side):
    # Values stay inside the range, so that clipping hides nothing.
    pixels = (torch.rand(count, 3, side, side) * 1.9 - 0.95).requires_grad_()
    result = function(pixels / 2 + 0.5)
    cotangent = torch.randn_like(result)
    (result * cotangent).sum().backward()
    tensors[f"{name}/pixels"], tensors[f"{name}/output"] = pixels.detach(), result.detach()
    tensors[f"{name}/cotangent"], tensors[f"{name}/gradient"] = cotangent, pixels.grad


def export(name, model, opset, side, dynamic=("batch",), count=2, fixed=False):
    model = model.eval()
    axes = {0: "batch"} if "batch" in dynamic else {}
    if "size" in dynamic:
        axes |= {2: "height", 3: "width"}
    path = GOLDENS / f"{name}.onnx"
    example = torch.rand(count if axes else 1, 3, side, side)
    torch.onnx.export(
        model, (example,), path, dynamo=False, opset_version=opset, input_names=["pixels"], output_names=["result"],
        dynamic_axes={"pixels": axes, "result": {0: "batch"}} if axes else None,
    )
    pictures(name, model, count, side)
    operators = sorted({n.op_type for n in onnx.load(path).graph.node})
    print(name, opset, path.stat().st_size, operators)


export("convolutional-11", Convolutional(), 11, 17, dynamic=("batch", "size"))
export("convolutional-17", Convolutional(), 17, 16)
export("mixed-13", Mixed(), 13, 16)
export("mixed-18", Mixed(), 18, 16)
export("attention-14", Attention(), 14, 12, dynamic=("batch", "size"))
export("attention-20", Attention(), 20, 12)
export("vit-17", Vit(), 17, 12)
export("one-by-one-17", Convolutional(), 17, 16, dynamic=())

# The same with its weights in a file of their own.
model = onnx.load(GOLDENS / "convolutional-17.onnx")
onnx.save(model, GOLDENS / "external-17.onnx", save_as_external_data=True, location="external-17.bin", size_threshold=0)
for key in ("pixels", "output", "cotangent", "gradient"):
    tensors[f"external-17/{key}"] = tensors[f"convolutional-17/{key}"].clone()


def save(name, nodes, initializers, opset, output=("N", 1), inputs=None, check=True):
    graph = helper.make_graph(
        nodes,
        name,
        inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    if check:
        onnx.checker.check_model(model)
    onnx.save(model, GOLDENS / f"{name}.onnx")


def constant(name, value, dtype=numpy.float32):
    return numpy_helper.from_array(numpy.asarray(value, dtype), name)


node = helper.make_node
# Operators that torch does not write: group norm of operator set 21, depth to space, norms of vectors, half and double weights.
scale, bias, weight = numpy.random.RandomState(1).randn(3, 12).astype(numpy.float32)
save(
    "helper-21",
    [
        node("SpaceToDepth", ["x"], ["a"], blocksize=2),
        node("GroupNormalization", ["a", "scale", "bias"], ["b"], num_groups=3, epsilon=1e-3),
        node("DepthToSpace", ["b"], ["c"], blocksize=2, mode="CRD"),
        node("Gelu", ["c"], ["d"], approximate="tanh"),
        node("Mish", ["d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("GlobalMaxPool", ["d"], ["g"]),
        node("Concat", ["f", "g"], ["h"], axis=1),
        node("Flatten", ["h"], ["i"]),
        node("LpNormalization", ["i"], ["j"], axis=1, p=2),
        node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
        node("Mul", ["j", "w"], ["k"]),
        node("Split", ["k"], ["l", "m"], axis=1, num_outputs=2),
        node("Max", ["l", "m"], ["n"]),
        node("ReduceL2", ["n", "axes"], ["y"], keepdims=1),
    ],
    [constant("scale", scale), constant("bias", bias), constant("half", weight[:6], numpy.float16), constant("axes", [1], numpy.int64)],
    21,
)


def by_hand(x):
    b, c, h, w = x.shape
    a = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    n = F.group_norm(a, 3, torch.tensor(scale), torch.tensor(bias), 1e-3)
    d = F.gelu(F.pixel_shuffle(n, 2), approximate="tanh")
    i = torch.cat([F.mish(d).mean((2, 3)), d.amax((2, 3))], 1)
    k = F.normalize(i, dim=1) * torch.tensor(weight[:6].astype(numpy.float16).astype(numpy.float32))
    return torch.maximum(*k.chunk(2, 1)).norm(dim=1, keepdim=True)


pictures("helper-21", by_hand, 2, 8)

# What cannot be taken over.
save(
    "unsupported",
    [
        node("NonMaxSuppression", ["x", "x"], ["a"], name="boxes"),
        node("Det", ["x"], ["b"], name="first"),
        node("Det", ["x"], ["c"]),
        node("MaxPool", ["x"], ["d"], kernel_shape=[2, 2], dilations=[2, 2], name="wide"),
        node("Floor", ["x"], ["e"], name="steps"),
        node("Sum", ["b", "c", "e"], ["y"]),
    ],
    [],
    17,
    check=False,
)
save("steps", [node("Sign", ["x"], ["a"]), node("ReduceMean", ["a"], ["y"], axes=[1, 2, 3], keepdims=0)], [], 17, ("N",))
save(
    "class",
    [node("GlobalAveragePool", ["x"], ["a"]), node("ArgMax", ["a"], ["b"], axis=1), node("Cast", ["b"], ["c"], to=1), node("Flatten", ["c"], ["y"])],
    [],
    17,
)
two = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 8, 8]) for n in ("x", "z")]
save("two-inputs", [node("Add", ["x", "z"], ["a"]), node("ReduceMean", ["a"], ["y"], axes=[1, 2, 3], keepdims=0)], [], 17, ("N",), inputs=two)
four = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 8, 8])]
save("batch-of-four", [node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)], [], 17, (4,), inputs=four)
save("old", [node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)], [], 9, ("N",))
save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, GOLDENS / "onnx.safetensors")
